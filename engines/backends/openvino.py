"""OpenVINO: the default where there is no GPU. Loading a built engine imports no torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from openvino import CompiledModel

MODEL_FILE = "model.xml"


def version() -> str:
    import openvino

    return str(openvino.__version__).split("-")[0]


class OpenVinoEngine:
    """An Engine over a compiled OpenVINO model, float32 on every CPU so that results agree between machines."""

    backend = "openvino"

    def __init__(self, compiled: "CompiledModel", spec: ModelSpec, input_size: tuple[int, int]) -> None:
        self.spec = spec
        self.input_size = input_size
        self._request = compiled.create_infer_request()
        self._outputs = [compiled.output(i) for i in range(len(spec.outputs))]

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        results = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        # The request's own buffers are written again by the next call, hence the copies.
        return {
            name: results[port].copy() for name, port in zip(self.spec.outputs, self._outputs, strict=True)
        }


def load(folder: Path, spec: ModelSpec, size: tuple[int, int], threads: int) -> OpenVinoEngine:
    """Compile the model saved in `folder` for this CPU; the compiled form is cached beside it."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
        "CACHE_DIR": str(folder / "compiled"),
    }
    compiled = openvino.Core().compile_model(folder / MODEL_FILE, "CPU", options)
    return OpenVinoEngine(compiled, spec, size)


def save(program: "torch.export.ExportedProgram", folder: Path) -> None:
    """Convert an exported program and write it to `folder`."""
    import openvino

    openvino.save_model(openvino.convert_model(program), folder / MODEL_FILE, compress_to_fp16=False)
