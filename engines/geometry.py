"""Where a face is cut from: crops, alignment, heatmap decoding, boxes. Each rule is written once, here.

Pixel centres lie at whole coordinates, as in OpenCV. N faces, K landmarks; images are HxWx3 uint8 BGR.
What lies outside a frame is filled by replicating its border.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

LANDMARK_SIZE = 128
LANDMARK_MARGIN = 1.25  # crop side over the longer side of the detector's box
FACE_SIZE = 112
GREY = 114  # what a letterbox is padded with
FINE_STRIDES = (8, 16, 32)  # of the detector on the picture
COARSE_STRIDES = (32, 64)  # of its pass over the picture at half size, in px of the picture

# Eyes, nose, mouth corners, the image's left first, in a 112x112 crop (Deng et al. 2019, "ArcFace", sec. 3.1).
TEMPLATE: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)
# Attribute data are stored more tightly: enlarged 1.25 times about the centroid and moved 10 px up, eyes 44 px apart.
ATTRIBUTE_TEMPLATE: Floats = (
    (TEMPLATE - TEMPLATE.mean(0)) * 1.25 + TEMPLATE.mean(0) - np.array([0, 10], np.float32)
).astype(np.float32)
ALIGNMENTS = ("similarity", "eyes", "eyes_nose")


def warp(image: Image, matrix: Floats, size: tuple[int, int]) -> Image:
    """Apply a 2x3 affine map from image to a (width, height) crop, without aliasing when it shrinks."""
    plan = shrink_plan(image.shape[:2], matrix, size)
    if plan is not None:
        image, matrix = halved(image[plan.rows, plan.columns], plan.times), plan.matrix
    crop = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return crop.astype(np.uint8, copy=False)


def halvings(shape: Sequence[int], scale: float) -> int:
    """How often a picture (height, width, ...) is halved before a bilinear map shrinks it by what is left.

    That is at most by half: a bilinear sample sees four pixels, and shrinking by more it would skip some. Halving
    costs next to nothing (OpenCV's INTER_AREA takes 25 times as long for any other factor). At least a pixel is left.
    """
    return max(0, min(math.ceil(math.log2(0.5 / scale) - 1e-6), min(shape[:2]).bit_length() - 1))


def halved(image: Image, times: int) -> Image:
    """Each pixel the mean of 2x2, `times` over; an odd last row or column is left out."""
    for _ in range(times):
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        even = image[:height, :width]
        image = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA).astype(
            np.uint8, copy=False
        )
    return image


@dataclass(frozen=True, slots=True)
class ShrinkPlan:
    """Halve this part of an image so many times, then warp it by `matrix`."""

    rows: slice
    columns: slice
    times: int
    matrix: Floats


def shrink_plan(shape: tuple[int, ...], matrix: Floats, size: tuple[int, int]) -> ShrinkPlan | None:
    """How an image of (height, width) is shrunk before a warp that would alias; None where it would not."""
    (a, b, left), (c, d, top) = matrix.tolist()
    determinant = a * d - b * c
    if determinant == 0:  # everything falls onto a line
        return None
    times = halvings(shape, abs(determinant) ** 0.5)
    if times == 0:
        return None
    factor = 2**times
    xs, ys = [], []
    for u, v in ((0, 0), (size[0], 0), (0, size[1]), size):
        u, v = u - left, v - top
        xs.append((d * u - b * v) / determinant)
        ys.append((a * v - c * u) / determinant)
    (x1, x2), (y1, y2) = (
        _whole(min(xs), max(xs), shape[1], factor),
        _whole(min(ys), max(ys), shape[0], factor),
    )
    middle = (factor - 1) / 2
    enlarge = np.array([[factor, 0, x1 + middle], [0, factor, y1 + middle], [0, 0, 1]])
    return ShrinkPlan(slice(y1, y2), slice(x1, x2), times, (matrix @ enlarge).astype(np.float32))


def _whole(first: float, last: float, length: int, factor: int) -> tuple[int, int]:
    """The span of an axis that a crop needs, within the picture, in whole blocks of `factor` px.

    Blocks begin at the picture's edge: landmarks a tenth of a pixel aside must not average other pixels together.
    """
    blocks = length // factor
    start = min(max(math.floor(first / factor) - 2, 0), blocks - 1)
    end = min(max(math.ceil(last / factor) + 2, start + 1), blocks)
    return start * factor, end * factor


def transform_points(points: Floats, matrix: Floats) -> Floats:
    """(..., 2) points through a 2x3 affine map."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def landmark_matrix(box_xyxy: Sequence[float] | Floats) -> Floats:
    """2x3 map from the image to the landmark crop: the square of 1.25 x the longer side, about the centre."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    scale = LANDMARK_SIZE / (max(x2 - x1, y2 - y1, 1.0) * LANDMARK_MARGIN)
    middle = (LANDMARK_SIZE - 1) / 2
    cx, cy = (x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2
    return np.array([[scale, 0, middle - scale * cx], [0, scale, middle - scale * cy]], np.float32)


def landmark_crop(image: Image, box_xyxy: Sequence[float] | Floats) -> tuple[Image, Floats]:
    """128x128x3 crop around a detector's box, and the 2x3 map that made it."""
    matrix = landmark_matrix(box_xyxy)
    return warp(image, matrix, (LANDMARK_SIZE, LANDMARK_SIZE)), matrix


def similarity_matrix(source: Floats, target: Floats) -> Floats:
    """2x3 least-squares similarity (rotation, one scale, shift) between (K, 2) point sets.

    Umeyama 1991, in complex numbers: two dimensions need no singular values.
    """
    z = [complex(x, y) for x, y in source.tolist()]
    w = [complex(x, y) for x, y in target.tolist()]
    z_mean, w_mean = sum(z) / len(z), sum(w) / len(w)
    spread = sum(abs(each - z_mean) ** 2 for each in z)
    turned = sum((v - w_mean) * (u - z_mean).conjugate() for u, v in zip(z, w, strict=True))
    a = turned / spread if spread > 1e-9 else 1.0 + 0j
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], np.float32)


def alignment_matrix(landmarks: Floats, template: Floats = TEMPLATE, method: str = "similarity") -> Floats:
    """2x3 map that lays (5, 2) landmarks onto a template.

    `similarity` fits all five points, `eyes` the two eyes exactly, `eyes_nose` the eyes and the nose
    exactly (a full affine map, which shears a turned head upright). Raises ValueError for another name.
    """
    if method == "similarity":
        return similarity_matrix(landmarks, template)
    if method == "eyes":
        return similarity_matrix(landmarks[:2], template[:2])
    if method == "eyes_nose":
        matrix = cv2.getAffineTransform(landmarks[:3].astype(np.float32), template[:3].astype(np.float32))
        return matrix.astype(np.float32)
    raise ValueError(f"alignment {method!r} is none of {', '.join(ALIGNMENTS)}")


def attribute_matrix(landmarks: Floats, size: int = FACE_SIZE, room: int = 0) -> Floats:
    """2x3 map from the image to the attribute crop, with `room` px of 112 around it, at `size` px in all."""
    factor = size / (FACE_SIZE + 2 * room)
    template = ((ATTRIBUTE_TEMPLATE + room + 0.5) * factor - 0.5).astype(np.float32)
    return alignment_matrix(landmarks, template)


def mirrored(matrix: Floats, width: int = FACE_SIZE) -> Floats:
    """The 2x3 map to the mirror image of a crop, which is `width` px wide."""
    flipped = matrix.copy()
    flipped[0] *= -1
    flipped[0, 2] += width - 1
    return flipped


def recognition_crop(image: Image, landmarks: Floats, method: str = "similarity") -> Image:
    """112x112x3 crop aligned for the embedder: eyes 35 px apart."""
    return warp(image, alignment_matrix(landmarks, TEMPLATE, method), (FACE_SIZE, FACE_SIZE))


def attribute_crop(image: Image, landmarks: Floats, size: int = FACE_SIZE, room: int = 0) -> Image:
    """112x112x3 crop aligned for the attributes: eyes 44 px apart, at about a third of the height.

    Another `size` shows the same part of the face, larger or smaller; `room` (px of 112) shows more around it.
    """
    return warp(image, attribute_matrix(landmarks, size, room), (size, size))


def heatmaps_to_points(heatmaps: Floats, stride: int = 4) -> tuple[Floats, Floats]:
    """(N, K, h, w) heatmaps -> points (N, K, 2) in crop px, and each peak's height (N, K).

    A point is the centre of mass of its heatmap's sixth power: near one peak as exact as fitting it, and between two
    that are about as high it glides where the highest would jump (Sun et al. 2018, "Integral Human Pose Regression",
    sec. 2.1; the power, as good as any for the error on MTFL's training part, keeps what is far and low out of it).
    """
    height = np.maximum(heatmaps, 1e-3)
    mass = (height * height * height) ** 2  # numpy's own sixth power takes ten times as long
    rows, columns = mass.sum(3), mass.sum(2)  # (N, K, h), (N, K, w)
    y, x = (each @ np.arange(each.shape[2]) / each.sum(2) for each in (rows, columns))
    points = (np.stack((x, y), 2) + 0.5) * stride - 0.5
    return points.astype(np.float32), heatmaps.max((2, 3)).astype(np.float32)


def points_to_heatmaps(points: Floats, size: int, sigma: float = 1.5, stride: int = 4) -> Floats:
    """The reverse, for training: (N, K, 2) crop px -> Gaussians of height 1 (N, K, size, size)."""
    centres = (points + 0.5) / stride - 0.5
    axis = np.arange(size, dtype=np.float32)
    gx = np.exp(-((axis - centres[..., :1]) ** 2) / (2 * sigma**2))  # (N, K, size)
    gy = np.exp(-((axis - centres[..., 1:]) ** 2) / (2 * sigma**2))
    return (gy[..., :, None] * gx[..., None, :]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Fit:
    """Halve a picture so many times, then bring it to `size` (width, height): by these scales along x and y in all."""

    times: int
    size: tuple[int, int]
    scales: tuple[float, float]


def fit(shape: Sequence[int], size: tuple[int, int]) -> Fit:
    """How a picture of (height, width, ...) is shrunk into (width, height), never enlarged.

    Sides are whole pixels, and an odd row or column is left out by `halved`: each axis has a scale of its own.
    """
    scale = min(size[0] / shape[1], size[1] / shape[0], 1.0)
    times = halvings(shape, scale)
    w, h = (max(1, round(side * scale)) for side in (shape[1], shape[0]))
    used_w, used_h = (side >> times << times for side in (shape[1], shape[0]))
    return Fit(times, (w, h), (w / used_w, h / used_h))


def letterbox(image: Image, size: tuple[int, int]) -> tuple[Image, tuple[float, float]]:
    """Shrink to fit (width, height), never enlarge, pad right and below with grey; and the scales along x and y."""
    fitted = fit(image.shape, size)
    canvas = np.full((size[1], size[0], 3), GREY, np.uint8)
    w, h = fitted.size
    if (h, w) != image.shape[:2]:
        small = halved(image, fitted.times)
        image = cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    canvas[:h, :w] = image
    return canvas, fitted.scales


def fitting_size(size: tuple[int, int], shape: Sequence[int]) -> tuple[int, int]:
    """The least (width, height), in whole strides, where a picture of `shape` is as large as `letterbox` makes it."""
    step = FINE_STRIDES[-1]
    width, height = (-(-side // step) * step for side in fit(shape, size).size)
    return width, height


def location_centres(size: tuple[int, int], strides: Sequence[int]) -> tuple[Floats, Floats]:
    """Centres (A, 2) of a detector's locations and the stride of each (A,), finest first, row by row."""
    centres, steps = [], []
    for stride in strides:
        xs = (np.arange(size[0] // stride, dtype=np.float32) + 0.5) * stride
        ys = (np.arange(size[1] // stride, dtype=np.float32) + 0.5) * stride
        grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
        centres.append(grid)
        steps.append(np.full(len(grid), stride, np.float32))
    return np.concatenate(centres), np.concatenate(steps)


@functools.cache
def detector_locations(size: tuple[int, int]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Centres (A, 2), strides (A,) and which (A,) belong to the pass at half size; these come last.

    A detector without that pass answers for the first locations alone. The half picture is padded to whole
    strides of 32, so that the coarse locations cover the size rounded up to 64.
    """
    centres, strides = location_centres(size, FINE_STRIDES)
    width, height = (-(-side // 64) * 64 for side in size)
    more, steps = location_centres((width, height), COARSE_STRIDES)
    coarse = np.arange(len(centres) + len(more)) >= len(centres)
    return np.concatenate((centres, more)), np.concatenate((strides, steps)), coarse


def iou_matrix(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes (N, 4) and (M, 4), xyxy -> (N, M)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(2)
    area_a, area_b = (np.clip(v[:, 2:] - v[:, :2], 0, None).prod(1) for v in (a, b))
    iou: Floats = (overlap / np.maximum(area_a[:, None] + area_b[None] - overlap, 1e-9)).astype(np.float32)
    return iou


def nms(boxes_xyxy: Floats, scores: Floats, max_iou: float = 0.4) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the boxes kept, best first."""
    left = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while left.size:  # a step for each box kept: there are a tenth as many as candidates
        keep.append(int(left[0]))
        left = left[1:]
        left = left[iou_matrix(boxes_xyxy[keep[-1:]], boxes_xyxy[left])[0] <= max_iou]
    return np.array(keep, np.int64)
