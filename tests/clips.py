"""Small videos of known content for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def grey_levels(num: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """`num` uniform BGR images, each brighter than the one before; size is (width, height)."""
    width, height = size
    return [np.full((height, width, 3), 20 + 200 * i // max(num, 1), np.uint8) for i in range(num)]


def noise(num: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """`num` BGR images that do not compress, so that a cut through the file is a cut through the pictures."""
    random = np.random.default_rng(0)
    width, height = size
    return [random.integers(0, 255, (height, width, 3), np.uint8) for _ in range(num)]


def write_clip(
    path: Path, images: Iterable[NDArray[np.uint8]], *, fps: int = 25, codec: str = "libx264", **options: str
) -> Path:
    """Writes BGR images as a video; `options` go to the container, such as movflags="faststart"."""
    images = list(images)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.height, stream.width = images[0].shape[:2]
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return path
