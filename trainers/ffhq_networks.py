"""What the recipe `ffhq` trains: our own trunk or a torchvision classifier's, and the weights it starts from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from engines.errors import MienError, UsageError
from engines.expression import without_prefix
from engines.networks import AttributesNet
from engines.runtime import WEIGHTS
from engines.tensors import read_tensors
from trainers.attributes import start_from

if TYPE_CHECKING:
    from trainers.ffhq import FfhqConfig

START = str(WEIGHTS / "attributes")  # what training starts from where nothing else is said
WIDE_ROOM = 32  # px of 112: what a wide crop shows around the daemon's, hair and neck


def make_network(config: FfhqConfig) -> AttributesNet:
    """Our trunk or a torchvision backbone, with the starting weights that were asked for.

    Raises UsageError for a backbone that is none, MienError for weights that do not fit or cannot be fetched.
    """
    network = untrained(config)
    start = Path(config.start)
    if config.start == "imagenet":
        weights, body = imagenet(config.backbone), body_of(network)
        body.load_state_dict({k: v for k, v in weights.items() if k in body.state_dict()})
    elif config.start and not start.is_dir():
        load_state(network, start)
    elif config.start and not config.backbone:
        start_from(network, config.start, room_of(config))
    elif config.start == START:
        print(
            f"backbone={config.backbone}: from scratch; start=imagenet takes ImageNet's weights", flush=True
        )
    elif config.start:
        raise UsageError(
            f"start={start}: a folder starts our own trunk; with backbone={config.backbone} "
            f"name a file, such as {start / 'weights.safetensors'}, or imagenet"
        )
    return network


def untrained(config: FfhqConfig) -> AttributesNet:
    backbone, prepared = config.backbone, imagenet_input(config)
    try:
        return AttributesNet(
            age_bins=config.age_bins,
            input_size=config.input_size,
            backbone=backbone,
            imagenet_input=prepared,
        )
    except (ValueError, IndexError):  # no such network; no linear layer at its end
        if not backbone:
            raise
        raise UsageError(
            f"backbone={backbone}: torchvision has no such classifier, or it does not end in a linear layer; "
            "name one such as resnet18"
        ) from None


def imagenet(backbone: str) -> Mapping[str, Tensor]:
    """torchvision's best ImageNet weights of a classifier, from its cache or fetched."""
    from torchvision.models import get_model, get_model_weights

    if not backbone:
        raise UsageError("start=imagenet: needs backbone=NAME, a torchvision classifier such as resnet18")
    try:
        # By way of a network: some files (DenseNet's) hold names from before torchvision renamed its layers.
        return get_model(backbone, weights=get_model_weights(backbone).DEFAULT, progress=False).state_dict()
    except (OSError, RuntimeError) as error:  # no way there; cut off on the way
        raise MienError(
            f"start=imagenet: cannot be fetched here ({error}); set start to a file that you copied"
        ) from None


def load_state(network: AttributesNet, path: Path) -> None:
    """A file of tensors, of the whole network or of a trunk, or a run's last.ckpt, of which the average is taken.

    Nothing is run that such a file may hold.
    """
    state = without_prefix(read_tensors(path))
    target: nn.Module = network if any(name.startswith("trunk.") for name in state) else body_of(network)
    own = target.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    body = [name for name in own if name.startswith("trunk.") or target is not network]
    lacking = [name for name in body if name not in fitting and not name.endswith("num_batches_tracked")]
    if lacking:
        raise MienError(
            f"{path}: {len(lacking)} of the trunk's {len(body)} tensors are not in it, or of another shape, "
            f"{lacking[0]} first; set backbone (and input_size) to the network it is of"
        )
    target.load_state_dict(own | fitting)


def body_of(network: AttributesNet) -> nn.Module:
    """The trunk, without what prepares its input."""
    return getattr(network.trunk, "body", network.trunk)


def imagenet_input(config: FfhqConfig) -> bool:
    """Whether the backbone is fed as torchvision feeds its own: where it starts from weights that are used to that."""
    if config.start == "imagenet":
        return True
    start = Path(config.start)
    return bool(config.backbone and config.start) and not start.is_dir() and is_used_to_imagenet(start)


@functools.cache  # asked again when training ends, when the file may be gone
def is_used_to_imagenet(path: Path) -> bool:
    """A file of a bare backbone, whose weights are torchvision's; or of a network of ours that began with such."""
    names = without_prefix(read_tensors(path))
    ours = any(name.startswith("trunk.") for name in names)
    return not ours or any(name.startswith("trunk.body.") for name in names)


def room_of(config: FfhqConfig) -> int:
    return WIDE_ROOM if config.crop == "wide" else 0
