"""What every test leaves as it was."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from engines.spec import ModelSpec
from tests.expression_sets import write_expression
from tests.face_sets import write_all
from tests.gpu_driver import write_driver


@pytest.fixture(autouse=True)
def logs_go_nowhere_closed() -> Iterator[None]:
    """A command under test sets logging up for its own stderr, which pytest closes when the test ends."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every data set of the recipes, tiny. Read only."""
    folder = tmp_path_factory.mktemp("sets")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def expression_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four expression sets, tiny. Read only."""
    folder = tmp_path_factory.mktemp("expression_sets")
    write_expression(folder)
    return folder


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the libcuda.so.1 of tests.gpu_driver."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is needed to make a driver")
    folder = tmp_path_factory.mktemp("driver")
    write_driver(folder, compiler)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelSpec], Path]:
    """Writes a checkpoint of random weights, and gives the folder of weights that it is in."""
    import torch

    from engines.checkpoint import make_network, save_checkpoint

    def write(spec: ModelSpec) -> Path:
        folder = tmp_path_factory.mktemp("weights")
        torch.manual_seed(0)
        save_checkpoint(folder / spec.name, make_network(spec), spec, "# a card\n")
        return folder

    return write
