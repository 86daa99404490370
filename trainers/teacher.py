"""A permissively licensed embedder as a teacher: MobileFaceNet, 192-d, ONNX, run by OpenVINO."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.geometry import Floats


class TeacherEmbedder:
    """(M, 112, 112, 3) uint8 BGR recognition crops -> (M, 192) unit embeddings.

    The model takes NHWC RGB, (x - 127.5) / 128, in batches of exactly two. `mirror` feeds each face with
    its mirror and adds the two answers: half as fast, a little better.
    """

    def __init__(self, path: str | Path, mirror: bool = False) -> None:
        import openvino

        if not Path(path).is_file():
            raise MienError(
                f"{path}: the teacher is missing; set teacher=FILE, or teacher= to train without one"
            )
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
        self._model = openvino.Core().compile_model(path, "CPU", options)
        self._mirror = mirror

    def __call__(self, crops: NDArray[np.uint8]) -> Floats:
        if self._mirror:
            crops = np.stack((crops, crops[:, :, ::-1]), 1).reshape(-1, *crops.shape[1:])
        elif len(crops) % 2:
            return self(np.concatenate((crops, crops[-1:])))[:-1]
        rgb = crops[..., ::-1]
        pairs = [(rgb[i : i + 2].astype(np.float32) - 127.5) / 128 for i in range(0, len(rgb), 2)]
        found = [self._model([pair])[0] for pair in pairs]
        stacked = np.stack([f.sum(0) for f in found]) if self._mirror else np.concatenate(found)
        return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)
