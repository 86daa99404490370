"""How much memory a network takes on a GPU, estimated before it is put there."""

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from engines.errors import MienError

if TYPE_CHECKING:
    from engines.source import Source

RUNTIME_BYTES = (
    600 << 20
)  # the CUDA context and the libraries' kernels and workspaces, as seen on data-centre GPUs
MIB = 1 << 20


class Gpu(Protocol):
    """The GPU an engine is put on."""

    def free_bytes(self) -> int: ...


class CurrentGpu:
    """The one that torch takes."""

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]


def measure(deployed: nn.Module, example: Tensor) -> dict[str, int]:
    """Bytes of the weights, and an estimate for one picture: four times the largest layer's output, and the input.

    `example` is one picture on the CPU. Four: a layer's input and output, and what branches hold meanwhile.
    """
    largest = 0

    def look(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    leaves = [module for module in deployed.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        with torch.inference_mode():
            deployed(example)
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(p.numel() * p.element_size() for p in deployed.parameters())
    return {"weights": weights, "per_picture": 4 * largest + example.numel()}


def needed(source: "Source") -> dict[str, int]:
    """What `measure` finds for the network, run on the CPU in float32 wherever and however the engine will run."""
    plain = replace(source, request=replace(source.request, device="cpu", precision="f32"))
    return measure(plain.deployed(), plain.example(1))


def check(memory: dict[str, int], batch: int, model: str, gpu: Gpu | None = None) -> None:
    """Raises MienError naming the need and the batch that would fit where too little is free on the GPU."""
    if not memory:
        return
    free_bytes = (gpu or CurrentGpu()).free_bytes()
    fixed = RUNTIME_BYTES + memory["weights"]
    need = fixed + batch * memory["per_picture"]
    if need <= free_bytes:
        return
    fits = (free_bytes - fixed) // memory["per_picture"]
    remedy = (
        f"a batch of {fits} would fit: set engines.max_batch, or build with --max-batch {fits}"
        if fits >= 1
        else "not even one picture fits; free memory on the GPU, or use device: cpu"
    )
    raise MienError(
        f"{model}: needs about {need // MIB} MiB on the GPU for batches of {batch}, {free_bytes // MIB} MiB are free; "
        f"{remedy}"
    )
