"""Random changes to training pictures. Images are HxWx3 uint8 BGR; `rng` makes every draw repeatable."""

import cv2
import numpy as np

from engines.geometry import Floats, Image

LANDMARK_SWAP = (1, 0, 2, 4, 3)  # mirrored: the left eye becomes the right one


def replicate_black_border(image: Image, black: float = 8.0) -> Image:
    """Replace rows and columns that are black up to the edge by the nearest picture row or column."""
    rows, cols = image.max(2).mean(1), image.max(2).mean(0)
    lit_rows, lit_cols = np.flatnonzero(rows > black), np.flatnonzero(cols > black)
    if len(lit_rows) < 2 or len(lit_cols) < 2:
        return image
    # One row further in: the border between black and picture is smeared by compression.
    y1, y2 = lit_rows[0] + (lit_rows[0] > 0), lit_rows[-1] - (lit_rows[-1] < len(rows) - 1)
    x1, x2 = lit_cols[0] + (lit_cols[0] > 0), lit_cols[-1] - (lit_cols[-1] < len(cols) - 1)
    ys, xs = np.clip(np.arange(len(rows)), y1, y2), np.clip(np.arange(len(cols)), x1, x2)
    return image[ys][:, xs]


def jitter_matrix(rng: np.random.Generator, size: int, degrees: float, scale: float, shift: float) -> Floats:
    """2x3 map of a square crop onto itself: rotation up to +-degrees, size within +-scale, shift in sizes."""
    angle = rng.uniform(-degrees, degrees)
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, float(np.exp(rng.uniform(-scale, scale))))
    matrix[:, 2] += rng.uniform(-shift, shift, 2) * size
    return matrix.astype(np.float32)


def compose(outer: Floats, inner: Floats) -> Floats:
    """The 2x3 map that applies `inner`, then `outer`."""
    square = np.vstack((inner, [0, 0, 1]))
    return (outer @ square).astype(np.float32)


def photometric(
    rng: np.random.Generator, image: Image, strength: float = 1.0, degrade: float | None = None
) -> Image:
    """Brightness, contrast, colour cast, grey, blur, low resolution, noise and JPEG, each at times.

    `degrade` is the strength of the last four; by default that of the others.
    """
    if rng.random() < 0.8:
        gain = 1 + strength * rng.uniform(-0.3, 0.3) + strength * rng.uniform(-0.08, 0.08, 3)
        table = np.arange(256)[:, None] * gain + strength * rng.uniform(-30, 30)
        image = cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    if rng.random() < 0.15:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return _degrade(rng, image, strength if degrade is None else degrade)


def _degrade(rng: np.random.Generator, image: Image, strength: float) -> Image:
    height, width = image.shape[:2]
    if rng.random() < 0.15 * strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    if rng.random() < 0.15 * strength:
        factor = rng.uniform(0.25, 0.8)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15 * strength:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2 * strength:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 80))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return image.astype(np.uint8, copy=False)


def occlude(rng: np.random.Generator, image: Image, chance: float) -> Image:
    """At times cover one rectangle of up to 45 % of each side with a flat colour or noise."""
    if rng.random() >= chance:
        return image
    height, width = image.shape[:2]
    h, w = (int(s * rng.uniform(0.15, 0.45)) for s in (height, width))
    y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
    image = image.copy()
    flat = rng.integers(0, 256, 3)
    image[y : y + h, x : x + w] = flat if rng.random() < 0.5 else rng.integers(0, 256, (h, w, 3))
    return image
