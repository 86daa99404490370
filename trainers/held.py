"""Training pictures held on the device: batches are cut, moved and changed there, and no loader starves it."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engines.errors import UsageError
from engines.geometry import Floats
from trainers.batched_changes import (
    degraded,
    draw_light,
    framed,
    greyed,
    lit,
    occluded,
    resampled,
    warped,
)

CHOICES = ("auto", "true", "false")
AT_ONCE = 4096  # pictures that are copied to the device
FREE_SHARE = 0.5  # of the GPU's free memory that the pictures may take


@dataclass(frozen=True, slots=True)
class Draw:
    """What a batch is made of: rows (B,) of the held pictures, maps (B, 2 or 3, 3) from them to crops of `size` px.

    grey (B,) and coarse (B,) levels change a picture before it is cut, -1 being none; `frames` (B, 3) are ovals
    around which a crop is black, see `framed`; `targets` go with it.
    """

    rows: NDArray[np.int64]
    matrices: Floats
    size: int
    strength: float
    hidden: float  # chance of an occlusion
    targets: tuple[NDArray, ...]
    grey: NDArray[np.bool_] | None = None
    coarse: NDArray[np.int64] | None = None
    frames: Floats | None = None


class Holdable(Protocol):
    """Samples whose pictures are of one size, so that they can be held."""

    def pictures(self) -> list[NDArray[np.uint8]]:
        """(M, S, S, 3) uint8 BGR in parts, in the order of a draw's rows."""

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        """`first` is the number of the batch's first sample, for who shows each picture once an epoch."""
        ...


class HeldBatches(Dataset):
    """Item i is a whole batch, drawn with a generator of its own, so that a run can be repeated."""

    def __init__(
        self, samples: Holdable, batch_size: int, steps: int, device: torch.device, seed: int
    ) -> None:
        self.samples, self.batch_size, self.length, self.seed = samples, batch_size, steps, seed
        self.first = 0
        parts = samples.pictures()
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        self.pictures = torch.empty(shape, dtype=torch.uint8, device=device)
        at = 0
        for part in parts:
            for start in range(0, len(part), AT_ONCE):
                # A copy, for what is mapped from a file cannot be written to, as torch wants it.
                piece = torch.from_numpy(np.array(part[start : start + AT_ONCE]))
                self.pictures[at : at + len(piece)] = piece
                at += len(piece)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index >= self.length:
            raise IndexError(index)
        number = self.first + index
        rng = np.random.default_rng((self.seed, number))
        return made(self.pictures, self.samples.draw(rng, self.batch_size, number * self.batch_size), rng)


@torch.no_grad()
def made(pictures: Tensor, draw: Draw, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """(B, size, size, 3) uint8 and the targets, on the pictures' device."""
    rows = torch.from_numpy(draw.rows).to(pictures.device)
    x = pictures[rows].permute(0, 3, 1, 2).float()  # (B, 3, S, S)
    if draw.grey is not None:
        x = greyed(x, draw.grey)
    if draw.coarse is not None:
        x = resampled(x, "cubic", draw.coarse)
    x = warped(x, draw.matrices, draw.size)
    if draw.frames is not None:
        x = framed(x, draw.frames)
    x = lit(x, draw_light(rng, len(x), draw.strength))
    x = occluded(degraded(x, rng, draw.strength), rng, draw.hidden)
    images = x.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images, *(torch.from_numpy(np.ascontiguousarray(t)).to(pictures.device) for t in draw.targets)


def held_batches(samples: Any, options: Any) -> HeldBatches | None:
    """The samples held on the training device, where fit.gpu_data asks for it or there is room; else None."""
    if options.gpu_data not in CHOICES:
        raise UsageError(f"fit.gpu_data={options.gpu_data}: is none of {', '.join(CHOICES)}")
    can = hasattr(samples, "draw") and options.devices == 1
    if options.gpu_data == "true" and not can:
        why = "is not for the detector's scenes, of many sizes"
        if options.devices > 1:
            why = "is for fit.devices=1"
        raise UsageError(f"fit.gpu_data=true: {why}; leave it out")
    on_gpu = torch.cuda.is_available() and options.accelerator in ("auto", "gpu", "cuda")
    if not can or options.gpu_data == "false" or (options.gpu_data == "auto" and not on_gpu):
        return None
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.gpu_data == "auto":
        need = sum(part.nbytes for part in samples.pictures())
        if need > FREE_SHARE * torch.cuda.mem_get_info()[0]:
            return None
    return HeldBatches(samples, options.batch_size, options.steps_per_epoch, device, options.seed)
