"""Cutting pictures up where the engines run: cv2 on the host, engines.image_ops_torch on a GPU. Free of torch.

A picture is HxWx3 uint8 BGR and a batch (N, H, W, 3) uint8: arrays on the host, tensors on a device.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.geometry import Floats, Image, letterbox, warp
from engines.runtime import Engine, FaceEngines

Picture = Any
Batch = Any
Scales = tuple[float, float]  # along x and y


class ImageOps(Protocol):
    """The same functions on every device; tests hold their numbers together."""

    pictures_a_call: int
    faces_a_call: int
    """How many whole pictures a detector takes at once, and crops another engine; 0: all there are."""

    def take(self, images: Sequence[Image]) -> list[Picture]:
        """Pictures where the engines run; on a GPU they are uploaded once, together."""

    def letterbox(self, pictures: Sequence[Picture], size: tuple[int, int]) -> tuple[Batch, list[Scales]]:
        """engines.geometry.letterbox of each, and the scales."""

    def warp(self, pictures: Sequence[Picture], matrices: Sequence[Floats], size: tuple[int, int]) -> Batch:
        """engines.geometry.warp of picture i by the 2x3 matrix i, to crops of (width, height); at least one."""

    def stack(self, crops: Sequence[Picture]) -> Batch:
        """Rows of batches as a batch."""

    def run(self, engine: Engine, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """What the engine says of a batch, on the host."""

    def fetch(self, batch: Batch) -> NDArray[np.uint8]:
        """The batch on the host."""


class HostOps:
    """cv2 on arrays."""

    pictures_a_call = 1  # on a CPU a batch of large pictures gains nothing
    faces_a_call = 32  # bounds memory in a crowd

    def take(self, images: Sequence[Image]) -> list[Picture]:
        return list(images)

    def letterbox(self, pictures: Sequence[Picture], size: tuple[int, int]) -> tuple[Batch, list[Scales]]:
        canvases = [letterbox(picture, size) for picture in pictures]
        if len(canvases) == 1:  # without another copy
            return canvases[0][0][None], [canvases[0][1]]
        return np.stack([canvas for canvas, _ in canvases]), [scales for _, scales in canvases]

    def warp(self, pictures: Sequence[Picture], matrices: Sequence[Floats], size: tuple[int, int]) -> Batch:
        return np.stack([warp(picture, m, size) for picture, m in zip(pictures, matrices, strict=True)])

    def stack(self, crops: Sequence[Picture]) -> Batch:
        return np.stack(crops)

    def run(self, engine: Engine, batch: Batch) -> dict[str, NDArray[np.float32]]:
        return engine(batch)

    def fetch(self, batch: Batch) -> NDArray[np.uint8]:
        crops: NDArray[np.uint8] = batch
        return crops


HOST: ImageOps = HostOps()


def ops_for(engines: FaceEngines) -> ImageOps:
    """Where all engines run on a GPU, the pictures go there, too."""
    used = (engines.detector, engines.landmarks, engines.embedder, engines.attributes)
    devices = {getattr(engine, "device", "cpu") for engine in used if engine is not None}
    if devices != {"cuda"}:
        return HOST
    from engines.image_ops_torch import TorchOps

    return TorchOps("cuda")
