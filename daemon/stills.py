"""Faces of a still picture, which has no track: found at every size, looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.config import Config, QualityConfig
from daemon.quality import assess
from daemon.records import Quality
from engines.geometry import nms, recognition_crop
from engines.runtime import Engine, FaceEngines, Progress, load_face_engines
from engines.stages import Detections, detect, find_landmarks

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

DETECTOR_SIZE = (1280, 736)
SHRUNK = 0.35
"""A still is looked at once more at this share of its size: a portrait may be one large face."""

SHRUNK_FROM_PX = 480
BORDER = 0.4
"""Share of its longer side by which a picture without a face is widened: it may be a tight cut of one."""

GREY = (114, 114, 114)
SURE_LANDMARKS = 0.75
"""Mean height of the landmarks' peaks from which a detection is surely a face: hands and helmets stay below."""

SECOND_SHARE = 0.4
"""A face smaller than this share of the largest is in the background, and not the one that is meant."""


@dataclass(frozen=True, slots=True, eq=False)
class StillFace:
    """One face: box_xyxy (4,) and landmarks (5, 2) in px; aligned_crop (112, 112, 3) uint8 BGR.

    confidence: the mean height of the landmarks' peaks, about 0.9 for a plain view of a face.
    """

    box_xyxy: Floats
    score: float
    landmarks: Floats
    confidence: float
    quality: Quality
    aligned_crop: Image

    @property
    def side_px(self) -> float:
        """The longer side of the box."""
        return float((self.box_xyxy[2:] - self.box_xyxy[:2]).max())


def load_still_engines(
    config: Config, *, attributes: bool = True, progress: Progress | None = None
) -> FaceEngines:
    """Engines for stills: the detector's input is larger than for streams."""
    return load_face_engines(
        **config.engines.for_faces(),
        detector_size=DETECTOR_SIZE,
        attributes=attributes,
        progress=progress,
    )


def find_faces(
    engines: FaceEngines, image: Image, quality: QualityConfig, *, min_score: float | None = None
) -> list[StillFace]:
    """The faces of an (H, W, 3) uint8 BGR image, largest first."""
    found = _detected(engines.detector, image, min_score)
    points, sure = find_landmarks(engines.landmarks, [image] * len(found), found.boxes_xyxy)
    faces = [
        _face(image, box, float(score), five, float(confidence), quality)
        for box, score, five, confidence in zip(found.boxes_xyxy, found.scores, points, sure, strict=True)
    ]
    return sorted(faces, key=lambda face: -face.side_px)


def _detected(detector: Engine, image: Image, min_score: float | None) -> Detections:
    found = _at_two_sizes(detector, image, min_score)
    if len(found):
        return found
    margin = round(max(image.shape[:2]) * BORDER)
    wide = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=GREY)
    found = _at_two_sizes(detector, wide.astype(np.uint8, copy=False), min_score)
    height, width = image.shape[:2]
    boxes = (found.boxes_xyxy - margin).clip(0, [width, height, width, height])
    return Detections(boxes.astype(np.float32), found.scores)


def _at_two_sizes(detector: Engine, image: Image, min_score: float | None) -> Detections:
    images, scales = [image], [1.0]
    if max(image.shape[:2]) > SHRUNK_FROM_PX:
        images.append(
            cv2.resize(image, None, fx=SHRUNK, fy=SHRUNK, interpolation=cv2.INTER_AREA).astype(np.uint8)
        )
        scales.append(SHRUNK)
    found = detect(detector, images, min_score=min_score)
    boxes = np.concatenate([each.boxes_xyxy / scale for each, scale in zip(found, scales, strict=True)])
    scores = np.concatenate([each.scores for each in found])
    keep = nms(boxes.astype(np.float32), scores)
    return Detections(boxes[keep].astype(np.float32), scores[keep])


def _face(
    image: Image, box: Floats, score: float, landmarks: Floats, confidence: float, settings: QualityConfig
) -> StillFace:
    crop = recognition_crop(image, landmarks)
    size = (image.shape[1], image.shape[0])
    return StillFace(
        box_xyxy=box,
        score=score,
        landmarks=landmarks,
        confidence=confidence,
        quality=assess(box, score, landmarks, crop, size, settings),
        aligned_crop=crop,
    )


def the_face(faces: Sequence[StillFace]) -> StillFace | None:
    """The one face a picture shows; None where there is none, or a second one of comparable size.

    Where a face is surely one, what only looks like one to the detector does not count.
    """
    faces = [face for face in faces if face.confidence >= SURE_LANDMARKS] or faces
    if not faces or (len(faces) > 1 and faces[1].side_px >= SECOND_SHARE * faces[0].side_px):
        return None
    return faces[0]
