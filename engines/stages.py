"""The chain's stages on top of engines: what daemon and trainers both call.

Images are HxWx3 uint8 BGR, points and boxes in px of the image they lie in. N images, M faces. `ops` says where
pictures are cut up; with others than the host's, images are what its `take` made of them.
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
    detector_locations,
    heatmaps_to_points,
    landmark_matrix,
    nms,
    transform_points,
)
from engines.image_ops import HOST, Batch, ImageOps, Scales
from engines.runtime import Engine

Images = NDArray[np.uint8]

COARSE_FROM = 120.0  # px of the detector's input, longer side: what the pass at half size may answer for


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


def detect(
    engine: Engine, images: Sequence[Image], *, min_score: float | None = None, ops: ImageOps = HOST
) -> list[Detections]:
    """Faces in each image; `min_score` None is the threshold of the engine's spec."""
    threshold = min_score if min_score is not None else engine.spec.threshold or 0.5
    found = []
    step = ops.pictures_a_call or max(1, len(images))
    for i in range(0, len(images), step):
        part = images[i : i + step]
        canvases, scales = ops.letterbox(part, engine.input_size)
        outputs = ops.run(engine, canvases)
        for image, scale_xy, scores, sides in zip(
            part, scales, outputs["scores"], outputs["sides"], strict=True
        ):
            found.append(_decode(scores, sides, engine.input_size, threshold, scale_xy, image))
    return found


def _decode(
    scores: Floats, sides: Floats, size: tuple[int, int], threshold: float, scale_xy: Scales, image: Image
) -> Detections:
    chosen = np.flatnonzero(scores >= threshold)
    centres, strides, coarse = detector_locations(size)
    reach = sides[chosen] * strides[chosen, None]
    large = (reach[:, :2] + reach[:, 2:]).max(1, initial=0) >= COARSE_FROM
    chosen, reach = (each[large | ~coarse[chosen]] for each in (chosen, reach))
    corners = np.concatenate((centres[chosen] - reach[:, :2], centres[chosen] + reach[:, 2:]), 1)
    corners /= np.array(scale_xy * 2, np.float32)
    height, width = image.shape[:2]
    boxes: Floats = np.clip(corners, 0, np.array([width, height, width, height])).astype(np.float32)
    keep = nms(boxes, scores[chosen])
    return Detections(boxes[keep], scores[chosen][keep].astype(np.float32))


def find_landmarks(
    engine: Engine, images: Sequence[Image], boxes_xyxy: Floats, *, ops: ImageOps = HOST
) -> tuple[Floats, Floats]:
    """Five landmarks of each face: points (M, 5, 2), and confidence (M,), the mean height of the peaks.

    images[i] is the picture that face i lies in.
    """
    matrices = [landmark_matrix(box) for box in boxes_xyxy]
    if not matrices:
        return np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32)
    batch = ops.warp(images, matrices, (LANDMARK_SIZE, LANDMARK_SIZE))
    heatmaps = _in_batches(engine, batch, ops)["heatmaps"]
    points, peaks = heatmaps_to_points(heatmaps)
    back = [cv2.invertAffineTransform(matrix) for matrix in matrices]
    placed = [transform_points(p, m.astype(np.float32)) for p, m in zip(points, back, strict=True)]
    return np.stack(placed), peaks.mean(1)


def embed(engine: Engine, crops: Batch, *, ops: ImageOps = HOST) -> Floats:
    """(M, 112, 112, 3) aligned crops -> (M, D) unit embeddings."""
    return _in_batches(engine, crops, ops)["embedding"]


def embed_both_sides(engine: Engine, crops: Images) -> Floats:
    """Each face and its mirror image as one: (M, 112, 112, 3) aligned crops -> (M, D) unit embeddings.

    Twice the work, for stills, which are looked at once; a track's looks are from alternating sides.
    """
    both = _mean_of_sides(embed(engine, _with_mirror_images(crops)))
    unit: Floats = both / np.linalg.norm(both, axis=1, keepdims=True)
    return unit


def classify(engine: Engine, crops: Batch, *, ops: ImageOps = HOST) -> AttributeScores:
    """(M, S, S, 3) attribute crops of the engine's input size -> age, gender and emotion."""
    outputs = _in_batches(engine, crops, ops)
    return AttributeScores(outputs["age_years"], outputs["female"], outputs["emotion"])


def classify_both_sides(engine: Engine, crops: Images) -> AttributeScores:
    """The mean of what `classify` says of each face and of its mirror image."""
    sides = classify(engine, _with_mirror_images(crops))
    return AttributeScores(
        _mean_of_sides(sides.age_years), _mean_of_sides(sides.female), _mean_of_sides(sides.emotion)
    )


def express_both_sides(engine: Engine, crops: Images) -> Floats:
    """(M, 112, 112, 3) attribute crops -> (M, classes): the mean of a face's and its mirror image's probabilities."""
    return _mean_of_sides(_in_batches(engine, _with_mirror_images(crops), HOST)["probabilities"])


def _with_mirror_images(crops: Images) -> Images:
    """(M, H, W, 3) -> (2M, H, W, 3), the mirror images last."""
    return np.concatenate((crops, crops[:, :, ::-1]))


def _mean_of_sides(values: Floats) -> Floats:
    """(2M, ...) of `_with_mirror_images` -> (M, ...)."""
    mean: Floats = values.reshape(2, -1, *values.shape[1:]).mean(0)
    return mean


def _in_batches(engine: Engine, batch: Batch, ops: ImageOps) -> dict[str, Floats]:
    if not len(batch):
        raise ValueError("no faces: an engine is called with at least one")
    step = ops.faces_a_call or len(batch)
    parts = [ops.run(engine, batch[i : i + step]) for i in range(0, len(batch), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
