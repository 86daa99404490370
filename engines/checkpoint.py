"""Checkpoints: a folder with weights.safetensors, spec.json and card.md. Nothing in it is ever unpickled."""

import hashlib
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines import networks
from engines.errors import MienError
from engines.spec import ModelSpec

WEIGHTS_FILE, SPEC_FILE, CARD_FILE = "weights.safetensors", "spec.json", "card.md"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_network(spec: ModelSpec) -> nn.Module:
    """A network with fresh weights. Raises MienError when the spec names one that does not exist."""
    if spec.network not in networks.__all__:
        raise MienError(
            f"spec of {spec.name}: network {spec.network!r} is none of {', '.join(networks.__all__)}"
        )
    network = getattr(networks, spec.network)(**spec.network_args)
    assert isinstance(network, nn.Module)
    return network


def save_checkpoint(folder: Path, network: nn.Module, spec: ModelSpec, card: str) -> ModelSpec:
    """Write the checkpoint with half-precision weights; returns the spec with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    half = {k: v.detach().cpu().contiguous() for k, v in half.items()}
    save_file(half, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it private; a service of another user reads it
    spec = replace(spec, weights_sha256=file_sha256(folder / WEIGHTS_FILE))
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return spec


def load_weights(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """Float32 tensors by name. Raises MienError when the file is missing, damaged or not the spec's."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise MienError(f"{path}: missing; copy the whole checkpoint folder again")
    if spec.weights_sha256 and file_sha256(path) != spec.weights_sha256:
        raise MienError(
            f"{path}: its checksum is not the one in {SPEC_FILE}; copy the checkpoint folder again"
        )
    try:
        return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    except SafetensorError as error:
        raise MienError(
            f"{path}: not a safetensors file ({error}); copy the checkpoint folder again"
        ) from None


def load_checkpoint(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """The network in evaluation mode, float32, and its spec. Raises MienError for what is no whole checkpoint."""
    if not folder.is_dir():
        raise MienError(
            f"{folder}: is not a checkpoint, which is a folder; "
            f"name one with {WEIGHTS_FILE}, {SPEC_FILE} and {CARD_FILE}"
        )
    spec = ModelSpec.load(folder / SPEC_FILE)
    network, weights = make_network(spec), load_weights(folder, spec)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MienError(
            f"{folder / WEIGHTS_FILE}: does not fit network {spec.network} of {SPEC_FILE}: {first}"
        ) from None
    return network.eval(), spec
