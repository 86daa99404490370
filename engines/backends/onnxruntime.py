"""A user's ONNX model as ONNX Runtime runs it: what the backends' engines of it are compared with."""

import numpy as np
from numpy.typing import NDArray

from engines.backends.onnx_engine import OnnxEngine
from engines.onnx_spec import OnnxSpec
from engines.request import EngineRequest
from engines.spec import ModelSpec

FED = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}  # else float32


def load(spec: OnnxSpec, request: EngineRequest, model: ModelSpec) -> tuple[OnnxEngine, bool]:
    """On the CPU, fed as the spec says, by numpy; and whether the file computes in float16."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(spec.onnx), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    kind = FED.get(given.type, np.float32)
    names = spec.output_names(tuple(sorted(output.name for output in session.get_outputs())))

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        ordered = images[..., ::-1] if spec.colour == "RGB" else images
        x = (ordered.astype(np.float32) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
        x = x.transpose(0, 3, 1, 2) if spec.layout == "NCHW" else x
        values: list[NDArray[np.float32]] = session.run(
            list(names), {given.name: np.ascontiguousarray(x, kind)}
        )
        return values

    return OnnxEngine(run, spec, request, model), kind is np.float16
