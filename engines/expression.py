"""An expression model from a checkpoint's folder, or from a foreign file of tensors, which is never unpickled."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from engines.backends.eager import EagerEngine
from engines.checkpoint import SPEC_FILE, make_network
from engines.deploy import Deployed
from engines.errors import MienError, UsageError
from engines.networks.expression import KINDS
from engines.runtime import WEIGHTS, Engine, load_engine
from engines.spec import EXPRESSIONS, ModelSpec
from engines.tensors import read_tensors

PREFIXES = ("averaged.module.", "network.", "model.", "module.")
ENLARGED = {"efficientnet_b0": 2}  # times, where nothing else is said; the other kinds see a crop as it is


def expression_spec(kind: str, dropout: float = 0.4, enlarged: int = 0) -> ModelSpec:
    """The contract of an expression model of this kind; `enlarged` 0 is what the kind is used to."""
    args = {"kind": kind, "dropout": dropout, "enlarged": enlarged or ENLARGED.get(kind, 1)}
    return ModelSpec(
        "expression", "expression", "ExpressionNet", args, (112, 112), ("probabilities",), labels=EXPRESSIONS
    )


def load_classifier(checkpoint: Path | None, kind: str = "") -> tuple[str, Engine]:
    """The model's name and its engine, eager. Raises MienError when it is no expression model.

    A folder says itself what it is. A file holds a state dict of an ExpressionNet, plain or as our training
    saves it (best.ckpt). What kind it is says a spec beside it, as a run leaves one; else each kind is tried, or `kind`
    alone.
    """
    path = checkpoint or WEIGHTS / "expression"
    if not path.exists():
        remedy = "name one with --checkpoint" if checkpoint is None else "check the path"
        raise MienError(f"{path}: no such checkpoint; {remedy}")
    if path.is_file():
        return str(path), _from_file(path, kind)
    spec = ModelSpec.load(path / "spec.json")
    if spec.task != "expression":
        raise UsageError(f"{path}: is a checkpoint of {spec.task}, not of expression")
    return str(path), load_engine(path.resolve().name, backend="eager", weights=path.resolve().parent)


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's own names for its tensors, where a training or a wrapper has put a prefix before them."""
    for prefix in PREFIXES:
        inner = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        if inner:
            return inner
    return tensors


def _from_file(path: Path, kind: str) -> Engine:
    if kind and kind not in KINDS:
        raise UsageError(f"--network {kind}: is none of {', '.join(KINDS)}")
    tensors = without_prefix(read_tensors(path))
    shapes = {name: value.shape for name, value in tensors.items()}
    for spec in _specs(path, kind):
        network = make_network(spec)
        if {name: value.shape for name, value in network.state_dict().items()} == shapes:
            network.load_state_dict(tensors)
            return EagerEngine(Deployed(network.eval().float(), spec), spec, spec.input_size)
    raise MienError(f"{path}: fits no expression network ({', '.join(KINDS)}); give the checkpoint's folder")


def _specs(path: Path, kind: str) -> Iterator[ModelSpec]:
    """What a file may hold: first what a spec beside it says (of its folder, or of the run's checkpoint)."""
    for beside in (path.parent / SPEC_FILE, path.parent / "expression" / SPEC_FILE):
        spec = ModelSpec.load(beside) if beside.is_file() else None
        if spec and spec.task == "expression" and kind in ("", spec.network_args.get("kind")):
            yield spec
    for each in (kind,) if kind else KINDS:
        yield expression_spec(each)
