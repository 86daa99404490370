"""Cuts: where a film, or a camera that is switched, goes over to another picture, nobody walked there."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GRID = (32, 18)
"""Width and height of the grey thumbnails that are compared."""

COARSE = 4
"""Only every so many rows and columns are read: a thumbnail needs no more."""

MAX_LIKENESS = 0.4
"""Correlation below which two thumbnails show different scenes; switching on the light leaves it above 0.7."""

MIN_DIFFERENCE = 12.0
"""Mean difference in grey levels below which nothing has changed, however dark and noisy the picture is."""


class SceneWatch:
    """Remembers the picture before."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None

    def is_cut(self, image: NDArray[np.uint8]) -> bool:
        """Whether an (H, W, 3) uint8 BGR picture shows another scene than the one given before it."""
        now, before = _thumbnail(image), self._before
        self._before = now
        if before is None or float(np.abs(now - before).mean()) < MIN_DIFFERENCE:
            return False
        a, b = now - now.mean(), before - before.mean()
        return float((a * b).sum()) < MAX_LIKENESS * float(np.linalg.norm(a) * np.linalg.norm(b))


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    if min(height, width) >= COARSE * max(GRID):
        image = cv2.resize(
            image, (width // COARSE, height // COARSE), interpolation=cv2.INTER_NEAREST
        ).astype(np.uint8, copy=False)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return cv2.resize(grey, GRID, interpolation=cv2.INTER_AREA).astype(np.float32)
