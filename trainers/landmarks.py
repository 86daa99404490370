"""Recipe `landmarks`: five points by a stacked hourglass, on MTFL, MTCNN's lists or CelebA."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.checkpoint import make_network
from engines.errors import MienError
from engines.geometry import (
    LANDMARK_SIZE,
    Floats,
    Image,
    landmark_matrix,
    points_to_heatmaps,
    transform_points,
    warp,
)
from engines.spec import ModelSpec
from trainers.batched_changes import jitter_matrices, mirrored, moved
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.foreign_weights import own_start
from trainers.held import Draw
from trainers.label_checks import FIVE_POINTS, box_xyxy, checked_rows, pictures, word
from trainers.landmark_lists import is_landmark_folder, listed_faces
from trainers.transforms import (
    LANDMARK_SWAP,
    compose,
    jitter_matrix,
    occlude,
    photometric,
    replicate_black_border,
)
from trainers.zips import ImageZip, row_points

# A detector draws forehead to chin; the human boxes of MTFL are tighter. Medians over 500 images (YuNet).
BOX_SCALE, BOX_RISE = 1.43, 0.09
LABELS = (*FIVE_POINTS, box_xyxy("bx1", "by1", "bx2", "by2"), word("split", "train", "val", "test"))
HELD_ROOM = (
    64  # px around a crop that is held on the device: turned by 45 degrees it needs 1.4 times its side
)


@dataclass(frozen=True, slots=True)
class LandmarksConfig:
    data: str = "data"
    run: str = "runs/landmarks"
    start: str = ""  # a folder of landmark weights to start from; none: from scratch
    limit: int = 0  # images used; 0 is all
    stacks: int = 2
    channels: int = 48
    fit: FitOptions = field(default_factory=lambda: FitOptions(epochs=32, steps_per_epoch=100, batch_size=32))


def detector_like_box(row: dict[str, str]) -> Floats:
    """The box a detector would draw around a face of the set, xyxy."""
    x1, y1, x2, y2 = (float(row[f"b{k}"]) for k in ("x1", "y1", "x2", "y2"))
    side = max(x2 - x1, y2 - y1)
    cx, cy, half = (x1 + x2) / 2, (y1 + y2) / 2 - BOX_RISE * side, BOX_SCALE * side / 2
    return np.array([cx - half, cy - half, cx + half, cy + half], np.float32)


class LandmarkSamples(RandomSamples):
    """Random crops of random faces: image (128, 128, 3) uint8 BGR, heatmaps (5, 32, 32)."""

    def __init__(self, images: list[Image], boxes: Floats, points: Floats) -> None:
        super().__init__(len(images))
        self.images, self.boxes, self.points = images, boxes, points
        self.held: np.ndarray | None = None

    def sample(self, rng: np.random.Generator) -> tuple[Image, Floats]:
        i = int(rng.integers(len(self.images)))
        jitter = jitter_matrix(
            rng, LANDMARK_SIZE, degrees=45 if rng.random() < 0.5 else 15, scale=0.18, shift=0.07
        )
        matrix = compose(jitter, landmark_matrix(self.boxes[i]))
        crop = warp(self.images[i], matrix, (LANDMARK_SIZE, LANDMARK_SIZE))
        points = transform_points(self.points[i], matrix)
        if rng.random() < 0.5:
            crop = np.ascontiguousarray(crop[:, ::-1])
            points = (points * [-1, 1] + [LANDMARK_SIZE - 1, 0])[list(LANDMARK_SWAP)].astype(np.float32)
        crop = occlude(rng, photometric(rng, crop), chance=0.2)
        return crop, points_to_heatmaps(points, LANDMARK_SIZE // 4)

    def pictures(self) -> list[np.ndarray]:
        """The landmark crops with room around them, so that every jitter finds its pixels."""
        if self.held is None:
            room = np.float32([[0, 0, HELD_ROOM], [0, 0, HELD_ROOM]])
            size = (LANDMARK_SIZE + 2 * HELD_ROOM,) * 2
            matrices = [landmark_matrix(box) + room for box in self.boxes]
            self.held = np.stack([warp(i, m, size) for i, m in zip(self.images, matrices, strict=True)])
            self.held_points = np.stack(
                [transform_points(p, m) for p, m in zip(self.points, matrices, strict=True)]
            )
        return [self.held]

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        rows = rng.integers(len(self.images), size=count)
        degrees = np.where(rng.random(count) < 0.5, 45.0, 15.0)
        jitter = jitter_matrices(rng, count, LANDMARK_SIZE, degrees=degrees, scale=0.18, shift=0.07)
        turned = rng.random(count) < 0.5
        matrices = mirrored(moved(jitter, HELD_ROOM), turned, LANDMARK_SIZE)
        points = (
            np.einsum("bij,bkj->bki", matrices[:, :, :2], self.held_points[rows]) + matrices[:, None, :, 2]
        )
        points[turned] = points[turned][:, list(LANDMARK_SWAP)]
        heatmaps = points_to_heatmaps(points.astype(np.float32), LANDMARK_SIZE // 4)
        return Draw(rows, matrices, LANDMARK_SIZE, 1.0, 0.2, (heatmaps,))


class LandmarkRecipe(Recipe):
    """Mean squared error on every stack's heatmaps, the peaks weighted up: they fill 2 % of a map."""

    PEAK_WEIGHT = 15.0

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, target = batch
        heatmaps = self.network(image_batch(images)).float()  # (B, S, K, h, w)
        target = target[:, None]
        error = (heatmaps - target) ** 2 * (1 + self.PEAK_WEIGHT * target)
        return error.mean() * 100, {"last": error[:, -1].detach().mean() * 100}


def load_samples(config: LandmarksConfig, split: str = "train") -> LandmarkSamples:
    """From mtfl.zip, or from a folder in the layout of MTCNN's lists, MTFL or CelebA.

    Raises MienError naming what is wrong with the labels and the pictures.
    """
    if not (Path(config.data) / "mtfl.zip").is_file() and is_landmark_folder(Path(config.data)):
        return LandmarkSamples(*listed_faces(Path(config.data), split, config.limit))
    with ImageZip(config.data, "mtfl") as data:
        rows = [row for row in checked_rows(data, LABELS) if row["split"] == split]
        if not rows:
            raise MienError(f"{data.path}: no row of labels.csv has the split {split}; set it on some")
        rows = rows[: config.limit] if config.limit else rows
        points = np.stack([row_points(row) for row in rows])
        images = [replicate_black_border(i) for i in pictures(data, [row["file"] for row in rows], points)]
    return LandmarkSamples(images, np.stack([detector_like_box(row) for row in rows]), points)


def landmarks_spec(config: LandmarksConfig) -> ModelSpec:
    args = {"stacks": config.stacks, "channels": config.channels}
    return ModelSpec("landmarks", "landmarks", "StackedHourglass", args, (128, 128), ("heatmaps",))


def train(config: LandmarksConfig) -> nn.Module:
    torch.manual_seed(config.fit.seed)
    spec = landmarks_spec(config)
    network = own_start(config.start, spec) if config.start else make_network(spec)
    return fit(LandmarkRecipe(network, config.fit), load_samples(config), Path(config.run))
