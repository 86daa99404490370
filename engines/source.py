"""What an engine is built from: a checkpoint or a user's ONNX file, for one request."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.deploy import Deployed, export
from engines.onnx_spec import OnnxSpec
from engines.request import EngineRequest
from engines.spec import ModelSpec

DTYPES = {"f32": torch.float32, "int8": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """`network` of a checkpoint, or `onnx` of a user's model; `calibration` (N, H, W, 3) uint8 for int8."""

    request: EngineRequest
    spec: ModelSpec
    network: torch.nn.Module | None = None
    onnx: OnnxSpec | None = None
    calibration: NDArray[np.uint8] | None = None

    @property
    def onnx_spec(self) -> OnnxSpec:
        assert self.onnx is not None
        return self.onnx

    def deployed(self) -> Deployed:
        """The network as it is run, in the request's precision and on its device."""
        assert self.network is not None
        network = self.network.to(dtype=DTYPES[self._dtype])
        return Deployed(network, self.spec).to(self.request.device).eval()

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The exported program with a free batch size: the source of every backend."""
        return export(self.deployed(), self.request.size, self.request.device)

    def example(self, batch: int) -> Tensor:
        width, height = self.request.size
        return torch.zeros((batch, height, width, 3), dtype=torch.uint8, device=self.request.device)

    @property
    def _dtype(self) -> str:
        # OpenVINO lowers the precision of a float32 program itself.
        return "f32" if self.request.backend == "openvino" else self.request.precision


def shapes(source: Source) -> dict[str, Any]:
    """The engine's input as its manifest states it."""
    width, height = source.request.size
    batch = source.onnx.batch if source.onnx else None
    words = str(batch) if batch else f"1..{source.request.max_batch}"
    return {"images": [words, str(height), str(width), "3"]}
