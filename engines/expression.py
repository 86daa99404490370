"""An expression model from a checkpoint's folder, or from a foreign file of tensors, which is never unpickled."""

from pathlib import Path

from engines.backends.eager import EagerEngine
from engines.checkpoint import make_network
from engines.deploy import Deployed
from engines.errors import MienError, UsageError
from engines.networks.expression import KINDS
from engines.runtime import WEIGHTS, Engine, load_engine
from engines.spec import EXPRESSIONS, ModelSpec
from engines.tensors import read_tensors

PREFIXES = ("averaged.module.", "network.", "model.", "module.")


def expression_spec(kind: str, dropout: float = 0.4, enlarged: int = 1) -> ModelSpec:
    """The contract of an expression model of this kind."""
    args = {"kind": kind, "dropout": dropout, "enlarged": enlarged}
    return ModelSpec(
        "expression", "expression", "ExpressionNet", args, (112, 112), ("probabilities",), labels=EXPRESSIONS
    )


def load_classifier(checkpoint: Path | None, kind: str = "") -> tuple[str, Engine]:
    """The model's name and its engine, eager. Raises MienError when it is no expression model.

    A folder says itself what it is. A file holds a state dict of an ExpressionNet, plain or as our training
    saves it (best.ckpt); without `kind` each kind is tried.
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


def _from_file(path: Path, kind: str) -> Engine:
    tensors = read_tensors(path)
    for prefix in PREFIXES:
        inner = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        if inner:
            tensors = inner
            break
    if kind and kind not in KINDS:
        raise UsageError(f"--network {kind}: is none of {', '.join(KINDS)}")
    for each in (kind,) if kind else KINDS:
        spec = expression_spec(each)
        network = make_network(spec)
        if {name: value.shape for name, value in network.state_dict().items()} == {
            name: value.shape for name, value in tensors.items()
        }:
            network.load_state_dict(tensors)
            return EagerEngine(Deployed(network.eval().float(), spec), spec, spec.input_size)
    raise MienError(f"{path}: fits no expression network ({', '.join(KINDS)}); give the checkpoint's folder")
