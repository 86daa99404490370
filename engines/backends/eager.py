"""The reference: the network as torch runs it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines import machine, memory
from engines.backends.torch_engine import TorchEngine
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.request import EngineRequest
from engines.source import Source
from engines.spec import ModelSpec


def why_not(device: str, precision: str) -> str | None:
    if machine.version("torch") is None:
        return "torch is not installed: pip install torch"
    return machine.why_no_gpu() if device == "cuda" else None


def versions(device: str) -> dict[str, str]:
    return {"torch": str(machine.version("torch"))}


class EagerEngine:
    """An Engine over plain torch on the CPU, float32."""

    backend = "eager"
    device = "cpu"
    precision = "f32"

    def __init__(self, module: Deployed, spec: ModelSpec, input_size: tuple[int, int]) -> None:
        self.spec = spec
        self.input_size = input_size
        self._module = module

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        images = torch.from_numpy(np.ascontiguousarray(batch))
        return {name: out.numpy() for name, out in self.on_device(images).items()}

    @torch.inference_mode()
    def on_device(self, images: Tensor) -> dict[str, Tensor]:
        """The same with tensors: (N, H, W, 3) uint8 -> outputs."""
        return dict(zip(self.spec.outputs, self._module(images), strict=True))


def load(request: EngineRequest, threads: int) -> EagerEngine | TorchEngine:
    """Straight from the checkpoint: nothing is built."""
    if threads:
        torch.set_num_threads(threads)
    network, spec = load_checkpoint(request.checkpoint)
    source = Source(request, spec, network)
    if request.device == "cuda":
        memory.check(memory.needed(source), request.max_batch, request.model)
    module = source.deployed()
    if (request.device, request.precision) == ("cpu", "f32"):
        return EagerEngine(module, spec, request.size)

    def run(images: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = module(images)
        return outputs

    return TorchEngine(run, request, spec)


def reference(request: EngineRequest) -> EagerEngine:
    """What every engine is compared with: eager, float32, on the CPU."""
    plain = replace(request, backend="eager", device="cpu", precision="f32")
    engine = load(plain, 0)
    assert isinstance(engine, EagerEngine)
    return engine
