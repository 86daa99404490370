"""trainers.transforms for whole batches of tensors, on whatever device they are. JPEG is the one change left out.

Every draw is made on the host by `rng`, so that a step can be repeated; only noise is drawn on the device.
x is (B, 3, S, S) float of 0..255, BGR.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engines.geometry import Floats

LEVELS = 24  # steps from the least to the most of a blur or a loss of resolution
GREY = (0.114, 0.587, 0.299)  # of blue, green, red
SIGMA_PX = (0.5, 2.0)
FACTOR = (0.25, 0.8)


def jitter_matrices(
    rng: np.random.Generator, count: int, size: int, degrees: Floats | float, scale: float, shift: float
) -> Floats:
    """trainers.transforms.jitter_matrix `count` times, (B, 2, 3); `degrees` may be one for each."""
    angle = np.radians(rng.uniform(-1, 1, count) * degrees)
    factor = np.exp(rng.uniform(-scale, scale, count))
    a, b, middle = factor * np.cos(angle), factor * np.sin(angle), (size - 1) / 2
    dx, dy = rng.uniform(-shift, shift, (2, count)) * size
    rows = (
        np.stack((a, b, (1 - a) * middle - b * middle + dx), 1),
        np.stack((-b, a, b * middle + (1 - a) * middle + dy), 1),
    )
    return np.stack(rows, 1).astype(np.float32)


def mirrored(matrices: Floats, chosen: NDArray[np.bool_], size: int) -> Floats:
    """The maps to crops of `size` px, the chosen ones to the crop's mirror image."""
    matrices = matrices.copy()
    matrices[chosen, 0] *= -1
    matrices[chosen, 0, 2] += size - 1
    return matrices


def moved(matrices: Floats, pixels: float) -> Floats:
    """The maps, of pictures whose origin lies `pixels` further right and down."""
    matrices = matrices.copy()
    matrices[:, :, 2] -= matrices[:, :, :2].sum(2) * pixels
    return matrices


def warped(x: Tensor, matrices: Floats, size: int) -> Tensor:
    """Each picture through its 2x3 map, or 3x3 one in perspective, to a crop of `size` px, borders replicated."""
    square = matrices
    if matrices.shape[1] == 2:
        square = np.concatenate((matrices, np.tile(np.float32([[[0, 0, 1]]]), (len(matrices), 1, 1))), 1)
    back = np.linalg.inv(square.astype(np.float64))
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels.
    to_unit = 2 / (x.shape[-1] - 1)
    axis = torch.arange(size, device=x.device, dtype=torch.float32)
    ones = torch.ones((size, size), device=x.device)
    points = torch.stack((axis.expand(size, size), axis[:, None].expand(size, size), ones))  # (3, S, S)
    places = torch.einsum("bij,jhw->bhwi", on(x, back), points)  # (B, S, S, 3)
    grid = places[..., :2] / places[..., 2:] * to_unit - 1
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=True)


def on(x: Tensor, values: NDArray) -> Tensor:
    """An array as float32 where x is."""
    there = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return there.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else there.to(x.device)


def column(x: Tensor, values: NDArray) -> Tensor:
    """(B,) or (B, 3) as (B, 1 or 3, 1, 1) where x is."""
    return on(x, values.reshape(len(values), -1, 1, 1))


@dataclass(frozen=True, slots=True)
class Light:
    """Of each picture: gain (B, 3), offset (B,), grey (B,) 0 or 1."""

    gain: Floats
    offset: Floats
    grey: Floats


def draw_light(rng: np.random.Generator, count: int, strength: float) -> Light:
    chosen = rng.random(count) < 0.8
    gain = 1 + strength * (rng.uniform(-0.3, 0.3, (count, 1)) + rng.uniform(-0.08, 0.08, (count, 3)))
    offset = strength * rng.uniform(-30, 30, count)
    return Light(
        np.where(chosen[:, None], gain, 1.0), np.where(chosen, offset, 0.0), rng.random(count) < 0.15
    )


def lit(x: Tensor, light: Light) -> Tensor:
    x = (x * column(x, light.gain) + column(x, light.offset)).clamp(0, 255)
    return greyed(x, light.grey)


def greyed(x: Tensor, chosen: NDArray) -> Tensor:
    luma = (x * column(x, np.float32([GREY]))).sum(1, keepdim=True)
    return x.lerp(luma.expand_as(x), column(x, chosen.astype(np.float32)))


def degraded(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Blur, low resolution and noise, each at times."""
    count, chance = len(x), 0.15 * strength
    blurred, coarse, noisy = rng.random((3, count)) < chance
    x = resampled(x, "blur", np.where(blurred, rng.integers(0, LEVELS, count), -1))
    x = resampled(x, "linear", np.where(coarse, rng.integers(0, LEVELS, count), -1))
    sigma = column(x, np.where(noisy, rng.uniform(2, 10, count), 0.0))
    generator = torch.Generator(x.device).manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn(x.shape, device=x.device, generator=generator)
    return (x + noise * sigma).clamp(0, 255)


def resampled(x: Tensor, kind: str, levels: NDArray[np.int64]) -> Tensor:
    """Each picture's rows and columns through a matrix of `kind` and level; -1 leaves it as it is."""
    if (levels < 0).all():
        return x
    table = _matrices(kind, x.shape[-1]).to(x.device, non_blocking=True)
    index = torch.from_numpy(levels + 1).to(x.device, non_blocking=True)
    each = table[index][:, None]  # (B, 1, S, S)
    return (each @ x @ each.mT).clamp(0, 255)


@lru_cache(maxsize=16)
def _matrices(kind: str, size: int) -> Tensor:
    """(LEVELS + 1, S, S): what cv2 does to a column of pixels, as matrices; the first is the identity."""
    eye = np.eye(size, dtype=np.float32)
    rows = [eye]
    for level in np.linspace(0, 1, LEVELS):
        if kind == "blur":
            sigma = SIGMA_PX[0] + level * (SIGMA_PX[1] - SIGMA_PX[0])
            rows.append(cv2.GaussianBlur(eye, (1, 2 * round(3 * sigma) + 1), sigmaX=1, sigmaY=sigma))
            continue
        low, high = (0.35, 0.78) if kind == "cubic" else FACTOR  # cubic: as coarse as FER+, once enlarged
        small = max(2, round(size * (low + level * (high - low))))
        down = cv2.resize(eye, (size, small), interpolation=cv2.INTER_AREA)
        how = cv2.INTER_CUBIC if kind == "cubic" else cv2.INTER_LINEAR
        rows.append(cv2.resize(down, (size, size), interpolation=how))
    return torch.from_numpy(np.stack(rows))


def framed(x: Tensor, ovals: Floats) -> Tensor:
    """Black around an oval in the middle: ovals (B, 3) half its width, half its height, radians; 0: none."""
    width, height, angle = column(x, ovals).unbind(1)  # (B, 1, 1) each
    axis = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32) - (x.shape[-1] - 1) / 2
    across, down = axis, axis[:, None]
    along = (across * angle.cos() + down * angle.sin()) / width
    beside = (down * angle.cos() - across * angle.sin()) / height
    seen = (along.square() + beside.square() <= 1) | (width == 0)  # (B, S, S)
    return x * seen[:, None]


def occluded(x: Tensor, rng: np.random.Generator, chance: float) -> Tensor:
    """At times one rectangle of up to 45 % of each side is covered with a flat colour or noise."""
    count, size = len(x), x.shape[-1]
    chosen = rng.random(count) < chance
    sides = (size * rng.uniform(0.15, 0.45, (2, count))).astype(int)
    starts = (rng.random((2, count)) * (size - sides)).astype(int)
    axis = torch.arange(size, device=x.device)
    inside = []
    for start, side in zip(starts, sides, strict=True):
        low, high = on(x, start)[:, None], on(x, start + side)[:, None]
        inside.append((axis >= low) & (axis < high))
    cover = inside[0][:, None, :, None] & inside[1][:, None, None, :] & (column(x, chosen) > 0)
    generator = torch.Generator(x.device).manual_seed(int(rng.integers(1 << 62)))
    noise = torch.rand(x.shape, device=x.device, generator=generator) * 255
    flat = column(x, rng.uniform(0, 255, (count, 3))).expand_as(x)
    paint = torch.where(column(x, rng.random(count) < 0.5) > 0, flat, noise)
    return torch.where(cover, paint, x)
