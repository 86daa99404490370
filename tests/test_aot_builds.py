"""What AOTInductor compiles with, and for which CPU. A GPU's headers and library are found without a GPU."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_torch_device_options
from torch._inductor.exc import CppCompileError
from torch.utils import cpp_extension

from bench.gpu_engines import told
from engines import machine
from engines.backends import aot_inductor, aot_inductor_cuda
from engines.build import build_engine
from engines.errors import MienError
from engines.runtime import WEIGHTS, resolve
from engines.source import Source
from tests.processes import child
from tests.test_gpu_asked_for import request_for_a_gpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor builds with g++")


def toolkit(folder, headers=aot_inductor_cuda.HEADERS):
    (folder / "include").mkdir(parents=True)
    for header in headers:
        (folder / "include" / header).touch()
    return folder


@pytest.fixture
def machine_without_cuda(tmp_path, monkeypatch):
    """A folder in /usr/local's place, where an nvcc has led torch astray."""
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(aot_inductor_cuda, "TOOLKITS", local)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(local))
    monkeypatch.setattr(aot_inductor_cuda.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return local


def compiled_with(monkeypatch, cache):
    """Where torch looks for CUDA's headers while it compiles an engine for a GPU."""
    seen = []
    monkeypatch.setattr(Source, "program", None)
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda *_, **__: seen.append(get_cpp_torch_device_options("cuda", aot_mode=True)[1]),
    )
    request = request_for_a_gpu("landmarks", "aot_inductor", "f16", cache)
    aot_inductor.save(Source(request, None), cache)
    return seen[0]


def test_torch_is_shown_the_newest_toolkit_that_has_all_the_headers(
    machine_without_cuda, tmp_path, monkeypatch
):
    for version in ("9.2", "12.4"):
        toolkit(machine_without_cuda / f"cuda-{version}")
    toolkit(machine_without_cuda / "cuda-13.0", ("cuda.h",))
    (machine_without_cuda / "cuda-13.0/include/cuda.h").write_text('#include "crt/host_defines.h"')

    include_paths = compiled_with(monkeypatch, tmp_path)

    assert str(machine_without_cuda / "cuda-12.4/include") in include_paths
    assert str(machine_without_cuda / "include") not in include_paths
    assert "CUDA_HOME" not in os.environ


def test_the_toolkit_that_the_user_names_comes_first(machine_without_cuda, tmp_path, monkeypatch):
    toolkit(machine_without_cuda / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "own")))

    assert str(tmp_path / "own/include") in compiled_with(monkeypatch, tmp_path)
    assert str(tmp_path / "own") == os.environ["CUDA_HOME"]


def test_a_machine_without_cuda_s_headers_is_told_what_is_missing(
    machine_without_cuda, tmp_path, monkeypatch
):
    with pytest.raises(MienError, match=r"CUDA's headers \(cuda.h, .*install the CUDA toolkit"):
        compiled_with(monkeypatch, tmp_path)


def test_the_linker_finds_a_driver_of_which_there_is_libcuda_so_1_alone(driver, tmp_path):
    link = f"subprocess.run(['g++', '-shared', '-o', {str(tmp_path / 'x.so')!r}, '-lcuda']).returncode"

    result = child(
        "import subprocess; from pathlib import Path; from engines.backends import aot_inductor_cuda\n"
        "aot_inductor_cuda.compiles = lambda compiler, home: True\n"
        f"with aot_inductor_cuda.cuda_for_the_compiler('g++'): print({link})\n"
        f"print({link})",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=99000,
    )

    assert ["0", "1"] == result.stdout.split(), result.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("x.cpp:1:10: fatal error: cuda.h: No such file", "fatal error: cuda.h: No such file"),
        ("ld: cannot find -lcuda: No such file\ncollect2: error: ld returned 1", "cannot find -lcuda"),
    ],
)
def test_a_build_that_the_compiler_refuses_says_why(tmp_path, monkeypatch, output, reason):
    error = CppCompileError(["g++", "-Werror"], f"In file included from y.h:\n{output}")

    def save(source: Source, folder: Path) -> None:
        raise error

    monkeypatch.setattr(aot_inductor, "save", save)
    request = resolve("embedder", "aot_inductor", None, WEIGHTS, tmp_path, device="cpu")

    with pytest.raises(MienError, match=rf"the build failed \(C\+\+ compile error: .*{reason}"):
        build_engine(replace(request, cache=tmp_path))
    assert reason in told(error) and told(error).startswith("CppCompileError: C++ compile error: ")


def test_an_engine_for_a_cpu_is_for_all_that_this_cpu_can_do(monkeypatch):
    def versions(device, *flags):
        monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
        return aot_inductor.versions(device)

    assert versions("cpu", "avx2", "fma") == versions("cpu", "fma", "avx2")
    assert versions("cpu", "avx2", "fma") != versions("cpu", "avx2", "fma", "gfni")
    assert versions("cuda", "avx2") == versions("cuda", "avx2", "gfni")
