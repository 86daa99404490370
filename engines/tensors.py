"""Tensors from files of others. Nothing in such a file is ever unpickled: weights_only alone."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engines.errors import MienError

WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth, .ckpt or .safetensors file, by name.

    Raises MienError where the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MienError(f"{path}: no such file; check the path") from None
    except Exception as error:  # damaged zips and pickles with code in them: each raises its own kind
        first = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise MienError(f"{path}: holds no plain tensors ({first}); save its state dict alone") from None
    for name in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    tensors = (
        {name: value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise MienError(f"{path}: holds no state dict; save one with torch.save(network.state_dict(), ...)")
    return tensors
