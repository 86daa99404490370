"""A camera's region of interest: only there are faces looked for; boxes stay in pixels of the whole frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daemon.config import CameraConfig
from engines.image_ops import Picture
from engines.stages import Detections

Corner = tuple[int, int]
WHOLE = (0.0, 0.0, 1.0, 1.0)


def region_views(
    pictures: Sequence[Picture], cameras: Sequence[CameraConfig]
) -> tuple[list[Picture], list[Corner]]:
    """The part of each frame to look at, (h, w, 3) uint8 BGR, and its upper left corner (x, y) in px."""
    pairs = [_view(picture, camera.roi or WHOLE) for picture, camera in zip(pictures, cameras, strict=True)]
    return [view for view, _ in pairs], [corner for _, corner in pairs]


def _view(image: Picture, roi: tuple[float, ...]) -> tuple[Picture, Corner]:
    height, width = image.shape[:2]
    left, top = min(int(roi[0] * width), width - 1), min(int(roi[1] * height), height - 1)
    right, bottom = max(round(roi[2] * width), left + 1), max(round(roi[3] * height), top + 1)
    return image[top:bottom, left:right], (left, top)


def shifted(found: Detections, corner: Corner) -> Detections:
    """Detections of a part of a frame, in pixels of the frame."""
    if corner == (0, 0):
        return found
    return Detections(found.boxes_xyxy + np.array(corner * 2, np.float32), found.scores)
