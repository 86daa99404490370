"""The chain's stages on top of engines: what daemon and trainers both call.

Images are HxWx3 uint8 BGR, points and boxes in px of the image they lie in. N images, M faces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.geometry import (
    LANDMARK_SIZE,
    Floats,
    Image,
    heatmaps_to_points,
    landmark_crop,
    letterbox,
    location_centres,
    nms,
    transform_points,
)
from engines.runtime import Engine

STRIDES = (8, 16, 32)
MAX_BATCH = 32  # faces a call: bounds memory in a crowd


@dataclass(frozen=True, slots=True)
class Detections:
    """Faces found in one image: boxes_xyxy (N, 4) float32 px, scores (N,) float32, best first."""

    boxes_xyxy: Floats
    scores: Floats

    def __post_init__(self) -> None:
        if self.boxes_xyxy.shape != (len(self.scores), 4):
            raise ValueError(f"boxes_xyxy {self.boxes_xyxy.shape} does not fit scores {self.scores.shape}")

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class AttributeScores:
    """age_years (M,), female (M,) probability, emotion (M, 8) probabilities in the order of EMOTIONS."""

    age_years: Floats
    female: Floats
    emotion: Floats


def detect(engine: Engine, images: Sequence[Image], *, min_score: float | None = None) -> list[Detections]:
    """Faces in each image; `min_score` None is the threshold of the engine's spec."""
    threshold = min_score if min_score is not None else engine.spec.threshold or 0.5
    found = []
    for image in images:  # one by one: on a CPU a batch of large pictures gains nothing
        canvas, scale = letterbox(image, engine.input_size)
        outputs = engine(canvas[None])
        found.append(
            _decode(outputs["scores"][0], outputs["sides"][0], engine.input_size, threshold, scale, image)
        )
    return found


def _decode(
    scores: Floats, sides: Floats, size: tuple[int, int], threshold: float, scale: float, image: Image
) -> Detections:
    chosen = np.flatnonzero(scores >= threshold)
    centres, strides = location_centres(size, STRIDES)
    reach = sides[chosen] * strides[chosen, None]
    corners = np.concatenate((centres[chosen] - reach[:, :2], centres[chosen] + reach[:, 2:]), 1) / scale
    height, width = image.shape[:2]
    boxes: Floats = np.clip(corners, 0, np.array([width, height, width, height])).astype(np.float32)
    keep = nms(boxes, scores[chosen])
    return Detections(boxes[keep], scores[chosen][keep].astype(np.float32))


def find_landmarks(engine: Engine, images: Sequence[Image], boxes_xyxy: Floats) -> tuple[Floats, Floats]:
    """Five landmarks of each face: points (M, 5, 2), and confidence (M,), the mean height of the peaks.

    images[i] is the picture that face i lies in.
    """
    crops = [landmark_crop(image, box) for image, box in zip(images, boxes_xyxy, strict=True)]
    if not crops:
        return np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32)
    batch = np.stack([crop for crop, _ in crops])
    assert batch.shape[1:] == (LANDMARK_SIZE, LANDMARK_SIZE, 3)
    heatmaps = _in_batches(engine, batch)["heatmaps"]
    points, peaks = heatmaps_to_points(heatmaps)
    back = [cv2.invertAffineTransform(matrix) for _, matrix in crops]
    placed = [transform_points(p, m.astype(np.float32)) for p, m in zip(points, back, strict=True)]
    return np.stack(placed), peaks.mean(1)


def embed(engine: Engine, crops: NDArray[np.uint8]) -> Floats:
    """(M, 112, 112, 3) aligned crops -> (M, D) unit embeddings."""
    return _in_batches(engine, crops)["embedding"]


def classify(engine: Engine, crops: NDArray[np.uint8]) -> AttributeScores:
    """(M, 112, 112, 3) attribute crops -> age, gender and emotion."""
    outputs = _in_batches(engine, crops)
    return AttributeScores(outputs["age_years"], outputs["female"], outputs["emotion"])


def _in_batches(engine: Engine, batch: NDArray[np.uint8]) -> dict[str, Floats]:
    if not len(batch):
        raise ValueError("no faces: an engine is called with at least one")
    parts = [engine(batch[i : i + MAX_BATCH]) for i in range(0, len(batch), MAX_BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
