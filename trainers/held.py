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
from trainers.batched_changes import degraded, draw_light, greyed, lit, occluded, resampled, warped
from trainers.zips import SEED

CHOICES = ("auto", "true", "false")
FREE_SHARE = 0.5  # of the GPU's free memory that the pictures may take


@dataclass(frozen=True, slots=True)
class Draw:
    """What a batch is made of: rows (B,) of the held pictures, maps (B, 2, 3) from them to crops of `size` px.

    grey (B,) and coarse (B,) levels change a picture before it is cut, -1 being none; `targets` go with it.
    """

    rows: NDArray[np.int64]
    matrices: Floats
    size: int
    strength: float
    hidden: float  # chance of an occlusion
    targets: tuple[NDArray, ...]
    grey: NDArray[np.bool_] | None = None
    coarse: NDArray[np.int64] | None = None


class Holdable(Protocol):
    """Samples whose pictures are of one size, so that they can be held."""

    def pictures(self) -> list[NDArray[np.uint8]]:
        """(M, S, S, 3) uint8 BGR in parts, in the order of a draw's rows."""

    def draw(self, rng: np.random.Generator, count: int) -> Draw: ...


class HeldBatches(Dataset):
    """Item i is a whole batch, drawn with a generator of its own, so that a run can be repeated."""

    def __init__(self, samples: Holdable, batch_size: int, steps: int, device: torch.device) -> None:
        self.samples, self.batch_size, self.length, self.first = samples, batch_size, steps, 0
        parts = samples.pictures()
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        self.pictures = torch.empty(shape, dtype=torch.uint8, device=device)
        at = 0
        for part in parts:
            self.pictures[at : at + len(part)] = torch.from_numpy(np.ascontiguousarray(part))
            at += len(part)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index >= self.length:
            raise IndexError(index)
        rng = np.random.default_rng((SEED, self.first + index))
        return made(self.pictures, self.samples.draw(rng, self.batch_size), rng)


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
        raise UsageError(
            "fit.gpu_data=true: only recognition, attributes and landmarks hold their data on the device, with "
            "fit.devices=1; leave it out"
        )
    on_gpu = torch.cuda.is_available() and options.accelerator in ("auto", "gpu", "cuda")
    if not can or options.gpu_data == "false" or (options.gpu_data == "auto" and not on_gpu):
        return None
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.gpu_data == "auto":
        need = sum(part.nbytes for part in samples.pictures())
        if need > FREE_SHARE * torch.cuda.mem_get_info()[0]:
            return None
    return HeldBatches(samples, options.batch_size, options.steps_per_epoch, device)
