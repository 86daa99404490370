"""Backbones of the closed-set recipe, what they may start from, and the folder they are left in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.errors import MienError, UsageError
from engines.networks import FaceResNet, MobileFaceNet
from engines.networks.layers import ImageNetInput, behind_imagenet_input
from trainers.provenance import provenance

RESNETS = ("resnet18", "resnet50")
EMBEDDERS = {"face_resnet": FaceResNet, "mobile_face_net": MobileFaceNet}
NETWORKS = (*RESNETS, *EMBEDDERS)
WEIGHTS, ABOUT = "backbone.safetensors", "backbone.json"


def make_backbone(config: Any) -> tuple[nn.Module, int]:
    """(B, 3, 112, 112) -> (B, D), and D. With an embedder as a start, its own network and size."""
    if config.network in RESNETS:
        return resnet(config), config.embedding_size
    if config.start == "imagenet":
        raise UsageError(
            f"start=imagenet: {config.network} has no ImageNet weights; {' and '.join(RESNETS)} have"
        )
    if config.start and (Path(config.start) / "spec.json").is_file():
        network, spec = load_checkpoint(Path(config.start))
        if not isinstance(network, EMBEDDERS[config.network]):
            raise UsageError(f"start={config.start}: holds a {spec.network}, not a {config.network}")
        return network.train(), int(spec.network_args["embedding_size"])
    return EMBEDDERS[config.network](config.embedding_size), config.embedding_size


def resnet(config: Any) -> nn.Module:
    """torchvision's ResNet (He et al. 2016) that ends in an embedding; ImageNet's weights by start=imagenet."""
    from torchvision import models

    weights = "DEFAULT" if config.start == "imagenet" else None
    try:
        # Blocks that begin as nothing let a deep one learn from the first step (Goyal et al. 2017, sec. 5.1).
        network = models.get_model(config.network, weights=weights, zero_init_residual=True)
    except OSError as error:
        raise MienError(
            f"start=imagenet: torchvision could not download its weights ({error}); leave start= empty"
        ) from None
    if config.stem_stride == 2:
        network.maxpool = nn.Identity()
    elif config.stem_stride != 4:
        raise UsageError(f"stem_stride={config.stem_stride}: 4 or 2")
    features = network.fc.in_features
    network.fc = nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(features, config.embedding_size, bias=False),
        nn.BatchNorm1d(config.embedding_size),
    )
    return behind_imagenet_input(network) if imagenet_input(config) else network


def imagenet_input(config: Any) -> bool:
    """Whether the start's weights are used to ImageNet's input: they are its own, or a run's that began with them."""
    if config.start == "imagenet":
        return True
    path = Path(config.start) / ABOUT
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("imagenet_input", False)


def load_start(backbone: nn.Module, config: Any, persons: Sequence[str]) -> str:
    """Fill the backbone from `start`; returns what the table says of it."""
    if not config.start:
        return "from scratch"
    if config.start == "imagenet":
        return "ImageNet (torchvision)"
    folder = Path(config.start)
    if (folder / ABOUT).is_file():
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        fill(backbone, load_file(folder / WEIGHTS), folder)
        seen = len(set(about["persons"]) & set(persons))
        return config.start_note or f"{folder.name}: {seen} of these persons seen before"
    if config.network not in EMBEDDERS or not (folder / "spec.json").is_file():
        raise MienError(
            f"start={config.start}: not a start for {config.network}; give a folder with {ABOUT}, "
            "that this recipe left, or for face_resnet and mobile_face_net an embedder's checkpoint"
        )
    return config.start_note or f"{folder.name}: whom it has seen is not recorded"


def fill(backbone: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MienError(f"start={folder}: does not fit this network: {first}") from None


def save_backbone(
    run: Path, backbone: nn.Module, config: Any, persons: Sequence[str], embedding_size: int
) -> None:
    """Weights, and what they are: network, alignment and the persons they have seen."""
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, run / WEIGHTS)
    about = {
        "network": config.network,
        "embedding_size": embedding_size,
        "alignment": config.alignment,
        "loss": config.loss,
        "start": config.start,
        "imagenet_input": any(isinstance(each, ImageNetInput) for each in backbone.modules()),
        "persons": list(persons),
        "made": provenance("closed_set", config).splitlines(),
    }
    (run / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
