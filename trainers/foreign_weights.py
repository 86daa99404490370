"""Starting weights: of our own checkpoints, of torchvision by name, and of files, which are never unpickled."""

from pathlib import Path

from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.errors import MienError, UsageError
from engines.expression import without_prefix
from engines.networks import ExpressionNet, FaceResNet
from engines.spec import ModelSpec
from engines.tensors import read_tensors

IMAGENET = {"resnet18": "ResNet18_Weights", "efficientnet_b0": "EfficientNet_B0_Weights"}


def own_start(start: str, spec: ModelSpec) -> nn.Module:
    """A checkpoint of the network that `spec` is of, ready to learn on. Raises UsageError for one of another."""
    network, its = load_checkpoint(Path(start))
    if (its.task, its.network) != (spec.task, spec.network):
        raise UsageError(
            f"start={start}: is a {its.network} for {its.task}, not a {spec.network} for {spec.task}"
        )
    if other := [
        f"{name}={value}"
        for name, value in its.network_args.items()
        if spec.network_args.get(name, value) != value
    ]:
        raise UsageError(f"start={start}: has {', '.join(other)}; set it so, or leave start out")
    return network.train()


def start_network(network: ExpressionNet, kind: str, start: str) -> None:
    """Fill the trunk from `imagenet`, a checkpoint folder or a file of torch tensors."""
    if start == "imagenet":
        weights = _imagenet(kind)  # which refuses a trunk of our own
        _load(network.trunk[1], weights, "torchvision's ImageNet weights")
    elif Path(start).is_dir():
        _load_trunk(network, Path(start))
    else:
        _load_file(network, kind, Path(start))


def _load_trunk(network: ExpressionNet, folder: Path) -> None:
    other, spec = load_checkpoint(folder)
    if spec.task == "attributes":
        raise _attributes(folder)
    if not isinstance(other, FaceResNet | ExpressionNet):
        raise UsageError(f"{folder}: is a {spec.network}; start from an embedder or an expression checkpoint")
    _load(network.trunk, other.trunk.state_dict(), str(folder))


def _load_file(network: ExpressionNet, kind: str, path: Path) -> None:
    """Of a network of ours (a run's best.ckpt or last.ckpt) the trunk; of any other file what fits the kind's own."""
    tensors = without_prefix(read_tensors(path))
    trunk = {name.removeprefix("trunk."): value for name, value in tensors.items() if name[:6] == "trunk."}
    if trunk and any(name.startswith("emotion.") for name in tensors):
        raise _attributes(path)
    foreign = kind in IMAGENET and not trunk  # names as torchvision gives them
    _load(network.trunk[1] if foreign else network.trunk, trunk or tensors, str(path))


def _attributes(path: Path) -> UsageError:
    return UsageError(f"{path}: FER pictures serve both models with different splits; start from an embedder")


def _imagenet(kind: str) -> dict[str, Tensor]:
    if kind not in IMAGENET:
        raise UsageError(f"model.start=imagenet: {kind} has no ImageNet weights; {', '.join(IMAGENET)} have")
    from torchvision import models

    try:
        return dict(getattr(models, IMAGENET[kind]).DEFAULT.get_state_dict(progress=False))
    except OSError as error:
        raise MienError(
            f"model.start=imagenet: cannot be fetched here ({error}); set model.start to a file that you copied"
        ) from None


def _load(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Take what has the same name and shape; classifiers may differ, the body may not."""
    own = network.state_dict()
    fitting = {
        name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape
    }
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        raise MienError(
            f"{where}: does not fit this network; {len(missing)} tensors lack, {missing[0]} first; "
            "choose the model that it was made for, or set model.start= to begin from scratch"
        )
    network.load_state_dict(fitting, strict=False)
