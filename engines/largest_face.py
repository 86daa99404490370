"""The face that a picture is of, cut as the attributes and the expression see it; or else the whole picture."""

import cv2
import numpy as np

from engines.geometry import FACE_SIZE, Floats, Image, attribute_crop
from engines.runtime import Engine
from engines.stages import detect, find_landmarks

LEAST_SIDE = 160  # px: smaller pictures are enlarged before the detector sees them
BORDER = (
    0.4  # of the longer side, put around a picture in which no face is found: it may be a tight cut of one
)
GREY = (114, 114, 114)
SURE = 0.5  # mean height of the landmarks' peaks from which a tight cut shows a face


def largest_face(detector: Engine, landmarks: Engine, image: Image) -> Floats | None:
    """Five landmarks (5, 2) of the largest face of an HxWx3 BGR image, or None."""
    scale = max(1.0, LEAST_SIDE / max(image.shape[:2]))
    large = _enlarged(image, scale)
    boxes = _boxes(detector, large)
    if boxes is None:
        return None
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    points, confidence = find_landmarks(landmarks, [large], boxes[sides.argmax()][None])
    return (points[0] + 0.5) / scale - 0.5 if confidence[0] >= SURE else None


def face_crop(image: Image, points: Floats | None) -> Image:
    """112x112x3: the attribute crop, or the whole image where there is no face."""
    if points is not None:
        return attribute_crop(image, points)
    shrinks = max(image.shape[:2]) > FACE_SIZE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=how).astype(np.uint8, copy=False)


def _enlarged(image: Image, scale: float) -> Image:
    if scale == 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(
        np.uint8, copy=False
    )


def _boxes(detector: Engine, image: Image) -> Floats | None:
    found = detect(detector, [image])[0]
    if len(found):
        return found.boxes_xyxy
    margin = round(max(image.shape[:2]) * BORDER)
    wide = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=GREY)
    found = detect(detector, [wide.astype(np.uint8, copy=False)])[0]
    return found.boxes_xyxy - margin if len(found) else None
