"""The same functions as engines.image_ops.HostOps in torch, for pictures that stay on a device.

M crops of any of N pictures are one batch, whatever the pictures' sizes. Numbers are OpenCV's to within a grey
level or two: see tests/test_gpu.py.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engines.geometry import GREY, Floats, Image, fit, shrink_plan
from engines.image_ops import Scales
from engines.runtime import Engine


class TorchOps:
    """torch on `device`. The host waits for it in `run` and `fetch` alone: once for each."""

    pictures_a_call = faces_a_call = 0  # an engine on a device bounds its batches itself

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._upload = Upload(self.device) if self.device.type == "cuda" else None

    def take(self, images: Sequence[Image]) -> list[Tensor]:
        if self._upload:
            return self._upload(images)
        return [torch.from_numpy(np.ascontiguousarray(image)) for image in images]

    @torch.inference_mode()
    def letterbox(self, pictures: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[Scales]]:
        width, height = size
        canvas = torch.full((len(pictures), height, width, 3), GREY, dtype=torch.uint8, device=self.device)
        for shape in dict.fromkeys(picture.shape for picture in pictures):  # pictures of one size together
            rows = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            alike = torch.stack([pictures[i] for i in rows])
            fitted = fit(shape, size)
            w, h = fitted.size
            small = resized(halved(alike, fitted.times), (w, h)) if (h, w) != shape[:2] else alike
            for i, picture in zip(rows, small, strict=True):
                canvas[i, :h, :w] = picture
        return canvas, [fit(picture.shape, size).scales for picture in pictures]

    @torch.inference_mode()
    def warp(self, pictures: Sequence[Tensor], matrices: Sequence[Floats], size: tuple[int, int]) -> Tensor:
        plans = [shrink_plan(p.shape[:2], m, size) for p, m in zip(pictures, matrices, strict=True)]
        plain = [i for i, plan in enumerate(plans) if plan is None]
        crops: dict[int, Tensor] = {}
        if plain:
            batch = sampled([pictures[i] for i in plain], [matrices[i] for i in plain], size)
            if len(plain) == len(plans):
                return batch
            crops = dict(zip(plain, batch, strict=True))
        for i, plan in enumerate(plans):  # large faces, of which a picture holds few
            if plan is not None:
                small = halved(pictures[i][plan.rows, plan.columns][None], plan.times)[0]
                crops[i] = sampled([small], [plan.matrix], size)[0]
        return torch.stack([crops[i] for i in range(len(plans))])

    @torch.inference_mode()
    def stack(self, crops: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(crops))

    @torch.inference_mode()
    def run(self, engine: Engine, batch: Tensor) -> dict[str, NDArray[np.float32]]:
        on_device = getattr(engine, "on_device", None)
        if on_device is None:  # a user's own model takes arrays
            return engine(self.fetch(batch))
        outputs: dict[str, Tensor] = on_device(batch)
        return dict(zip(outputs, self._on_host(list(outputs.values())), strict=True))

    def fetch(self, batch: Tensor) -> NDArray[np.uint8]:
        return self._on_host([batch])[0]

    def _on_host(self, tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
        """All of them with one wait."""
        if self.device.type == "cpu":
            return [tensor.numpy() for tensor in tensors]
        pinned = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
        for there, here in zip(tensors, pinned, strict=True):
            here.copy_(there, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return [here.numpy() for here in pinned]


class Upload:
    """Pictures of a batch to the GPU in one copy, from page-locked memory and on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8)

    def __call__(self, images: Sequence[Image]) -> list[Tensor]:
        total = sum(image.size for image in images)
        if len(self._pinned) < total:
            self._pinned = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        self._copied.synchronize()  # the copy before has left the pinned memory
        shapes = [image.shape for image in images]
        for image, here in zip(images, parted(self._pinned, shapes), strict=True):
            here.copy_(torch.from_numpy(np.ascontiguousarray(image)))
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            there = self._pinned[:total].to(self._device, non_blocking=True)
            self._copied.record()
        computing.wait_stream(self._stream)
        there.record_stream(computing)
        return parted(there, shapes)


def parted(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of the given shapes, one after the other in a flat tensor."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes]).tolist()
    starts = [0, *ends[:-1]]
    return [flat[a:b].view(shape) for a, b, shape in zip(starts, ends, shapes, strict=True)]


def halved(pictures: Tensor, times: int) -> Tensor:
    """engines.geometry.halved of (N, H, W, 3) uint8."""
    if not times:
        return pictures
    x = pictures.permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    for _ in range(times):
        x = (F.avg_pool2d(x, 2) + 0.5).floor()  # rounded as OpenCV does
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, height, width, 3) uint8, bilinear, of (width, height)."""
    x = F.interpolate(pictures.permute(0, 3, 1, 2).float(), (size[1], size[0]), mode="bilinear")
    return x.round().to(torch.uint8).permute(0, 2, 3, 1)


def sampled(pictures: Sequence[Tensor], matrices: Sequence[Floats], size: tuple[int, int]) -> Tensor:
    """Bilinear samples of picture i through the 2x3 map i, borders replicated: (M, height, width, 3) uint8.

    Gathered from one flat memory, so that pictures of different sizes are one batch.
    """
    flat, starts = _one_memory(pictures)
    back = np.stack([cv2.invertAffineTransform(matrix.astype(np.float64)) for matrix in matrices])
    shapes = np.array([[start, *picture.shape[:2]] for start, picture in zip(starts, pictures, strict=True)])
    table = torch.from_numpy(np.concatenate((back.reshape(-1, 6), shapes), 1))  # (M, 9) float64
    if flat.is_cuda:
        table = table.pin_memory()
    table = table.to(flat.device, non_blocking=True)[..., None, None]  # (M, 9, 1, 1)
    u = torch.arange(size[0], device=flat.device, dtype=torch.float64)[None, None]  # (1, 1, w)
    v = torch.arange(size[1], device=flat.device, dtype=torch.float64)[None, :, None]  # (1, h, 1)
    a, b, c, d, e, f, start, height, width = table.unbind(1)  # (M, 1, 1) each
    x = (a * u + b * v + c).clamp(min=0).minimum(width - 1)  # (M, h, w)
    y = (d * u + e * v + f).clamp(min=0).minimum(height - 1)
    left, top = x.floor(), y.floor()
    fx, fy = (x - left).float()[..., None], (y - top).float()[..., None]  # (M, h, w, 1)
    right, below = (left + 1).minimum(width - 1), (top + 1).minimum(height - 1)
    channels = torch.arange(3, device=flat.device)

    def at(row: Tensor, column: Tensor) -> Tensor:
        first = start + 3 * (row * width + column)  # exact in float64
        return flat[first.long()[..., None] + channels].float()  # (M, h, w, 3)

    upper = at(top, left).lerp(at(top, right), fx)
    lower = at(below, left).lerp(at(below, right), fx)
    return upper.lerp(lower, fy).round().to(torch.uint8)


def _one_memory(pictures: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """One flat tensor that holds every picture, and where each begins: as uploaded, or copied together."""
    first = pictures[0].untyped_storage().data_ptr()
    if all(p.untyped_storage().data_ptr() == first and p.is_contiguous() for p in pictures):
        whole = torch.as_strided(pictures[0], (pictures[0].untyped_storage().nbytes(),), (1,), 0)
        return whole, [int(p.storage_offset()) for p in pictures]
    distinct = {id(picture): picture for picture in pictures}
    ends = np.cumsum([picture.numel() for picture in distinct.values()]).tolist()
    begins = dict(zip(distinct, [0, *ends[:-1]], strict=True))
    return torch.cat([p.reshape(-1) for p in distinct.values()]), [begins[id(p)] for p in pictures]
