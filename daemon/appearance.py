"""How a face and what is below it look, in colours: cheap enough for every face of every frame.

It tells two people apart while they cross, when their boxes do not. It names nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PATCH = 24
"""Side in pixels to which a region is shrunk before its colours are counted."""

BINS = 6
LENGTH = 2 * BINS**3


def appearances(image: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, LENGTH) float32 unit rows for N boxes in pixels of an (H, W, 3) uint8 BGR image.

    The product of two rows is the mean Bhattacharyya coefficient of head and clothing: 1 for equal colours.
    """
    head, clothing = _colours(image, boxes_xyxy), _colours(image, _below(boxes_xyxy))
    # Below the frame's edge there is no clothing to be seen: the head has to stand for both.
    unseen = ~clothing.any(1)
    clothing[unseen] = head[unseen]
    return np.asarray(np.concatenate((head, clothing), 1) / np.sqrt(2), np.float32)


def _below(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where the clothing is: as large as the face, half a face lower than its chin, and a little wider."""
    x1, y1, x2, y2 = boxes_xyxy.T
    height, extra = y2 - y1, (x2 - x1) * 0.25
    return np.stack((x1 - extra, y2 + 0.2 * height, x2 + extra, y2 + 1.2 * height), 1)


def _colours(image: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, BINS**3) unit rows: the roots of the colour histograms; zero where a box lies outside the image."""
    height, width = image.shape[:2]
    corners = np.clip(np.rint(boxes_xyxy).astype(int), 0, (width, height, width, height))
    counts = np.zeros((len(corners), BINS**3), np.float32)
    for row, corner in zip(counts, corners.tolist(), strict=True):
        _count(image, corner, row)
    return np.asarray(np.sqrt(counts / counts.sum(1, keepdims=True).clip(1)), np.float32)


def _count(image: NDArray[np.uint8], corner: Sequence[int], counts: NDArray[np.float32]) -> None:
    """Fills in how many of a region's PATCH x PATCH px have each colour; none where there is no region."""
    x1, y1, x2, y2 = corner
    if x2 - x1 < 2 or y2 - y1 < 2:
        return
    rows, columns = max(1, (y2 - y1) // (2 * PATCH)), max(1, (x2 - x1) // (2 * PATCH))
    sparse = image[y1:y2:rows, x1:x2:columns]  # averaging every pixel of a large face takes ten times as long
    patch = cv2.resize(sparse, (PATCH, PATCH), interpolation=cv2.INTER_AREA)
    counts[:] = cv2.calcHist([patch], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3).reshape(-1)
