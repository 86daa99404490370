"""Permissively licensed teachers: MobileFaceNet for embeddings, run by OpenVINO, and YuNet for boxes, by OpenCV."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.backends import openvino
from engines.errors import MienError
from engines.geometry import Floats, Image


class TeacherEmbedder:
    """(M, 112, 112, 3) uint8 BGR recognition crops -> (M, 192) unit embeddings.

    The model takes NHWC RGB, (x - 127.5) / 128, in batches of exactly two. `mirror` feeds each face with
    its mirror and adds the two answers: half as fast, a little better.
    """

    def __init__(self, path: str | Path, mirror: bool = False) -> None:
        if not Path(path).is_file():
            raise MienError(
                f"{path}: the teacher is missing; set teacher=FILE, or teacher= to train without one"
            )
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
        self._model = openvino.core().compile_model(path, "CPU", options)
        self._mirror = mirror

    def __call__(self, crops: NDArray[np.uint8]) -> Floats:
        if self._mirror:
            crops = np.stack((crops, crops[:, :, ::-1]), 1).reshape(-1, *crops.shape[1:])
        elif len(crops) % 2:
            return self(np.concatenate((crops, crops[-1:])))[:-1]
        found = [self._pair(crops[i : i + 2]) for i in range(0, len(crops), 2)]
        stacked = np.stack([f.sum(0) for f in found]) if self._mirror else np.concatenate(found)
        return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)

    def _pair(self, crops: NDArray[np.uint8]) -> Floats:
        rgb = crops[..., ::-1].astype(np.float32)
        return self._model([(rgb - 127.5) / 128])[0].copy()


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
