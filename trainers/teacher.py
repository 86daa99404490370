"""Permissively licensed teachers: MobileFaceNet for embeddings, run by OpenVINO, and YuNet for boxes, by OpenCV."""

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.backends import openvino, openvino_bf16
from engines.errors import MienError
from engines.geometry import Floats, Image
from engines.request import default_cache

if TYPE_CHECKING:
    from openvino import InferRequest


class TeacherEmbedder:
    """(M, 112, 112, 3) uint8 BGR recognition crops -> (M, 192) unit embeddings.

    The model takes NHWC RGB, (x - 127.5) / 128, in batches of exactly two; as many of them at once as there are cores.
    `fast` computes in bf16 where the CPU is faster in it: cosine to float32 0.9999, in half the time.
    """

    def __init__(self, path: str | Path, fast: bool = False) -> None:
        if not Path(path).is_file():
            raise MienError(
                f"{path}: the teacher is missing; set teacher=FILE, or teacher= to train without one"
            )
        options = {"PERFORMANCE_HINT": "THROUGHPUT"}
        if not (fast and openvino_bf16.pays(default_cache())):
            options["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = openvino.core().compile_model(path, "CPU", options)

    def __call__(self, crops: NDArray[np.uint8]) -> Floats:
        from openvino import AsyncInferQueue  # not everyone who trains has it

        if len(crops) % 2:
            return self(np.concatenate((crops, crops[-1:])))[:-1]
        found: Floats = np.empty((len(crops), *self._model.output(0).shape[1:]), np.float32)

        def keep(request: "InferRequest", first: int) -> None:
            found[first : first + 2] = request.get_output_tensor().data

        queue = AsyncInferQueue(self._model)
        queue.set_callback(keep)
        for first in range(0, len(crops), 2):
            rgb = crops[first : first + 2, ..., ::-1].astype(np.float32)
            queue.start_async([(rgb - 127.5) / 128], first)
        queue.wait_all()
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class TeacherDetector:
    """YuNet: boxes (N, 4) xyxy and scores (N,) of an HxWx3 uint8 BGR picture, at its own size."""

    SURE, FAINT = 0.6, 0.3  # scores from which a box is a face, and from which it may be one

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise MienError(f"{path}: the teacher is missing; set yunet=FILE, or yunet= to train without it")
        self._model = cv2.FaceDetectorYN.create(str(path), "", (320, 320), self.FAINT)

    def __call__(self, image: Image) -> tuple[Floats, Floats]:
        self._model.setInputSize(image.shape[1::-1])
        _, rows = self._model.detect(image)
        if rows is None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), 1), rows[:, 14]

    def central(self, image: Image) -> Floats | None:
        """The sure box (4,) nearest the picture's centre, or None."""
        boxes, scores = self(image)
        boxes = boxes[scores >= self.SURE]
        if not len(boxes):
            return None
        away = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - np.array(image.shape[1::-1]) / 2).max(1)
        return boxes[int(away.argmin())]
