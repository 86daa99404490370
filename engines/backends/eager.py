"""The reference: the network as torch runs it, float32."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.spec import ModelSpec


class EagerEngine:
    """An Engine over plain torch on the CPU."""

    backend = "eager"

    def __init__(self, module: Deployed, spec: ModelSpec, input_size: tuple[int, int]) -> None:
        self.spec = spec
        self.input_size = input_size
        self._module = module

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        outputs = self._module(torch.from_numpy(np.ascontiguousarray(batch)))
        return {name: out.numpy() for name, out in zip(self.spec.outputs, outputs, strict=True)}


def load(checkpoint: Path, size: tuple[int, int] | None, threads: int) -> EagerEngine:
    if threads:
        torch.set_num_threads(threads)
    network, spec = load_checkpoint(checkpoint)
    return EagerEngine(Deployed(network, spec), spec, size or spec.input_size)
