"""Painted people and engines that see them: faces are textured squares whose colour says who it is.

The engines keep the shapes of the real ones, so that everything between them is the real thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from daemon.records import Frame
from engines.geometry import (
    LANDMARK_SIZE,
    TEMPLATE,
    location_centres,
    points_to_heatmaps,
)
from engines.runtime import FaceEngines
from engines.spec import EMOTIONS, ModelSpec

GROUND = 100
STRIDES = (8, 16, 32)
DIMENSIONS = 16


@dataclass(frozen=True)
class Person:
    """Who a colour stands for; `looks` is the axis of the embedding."""

    colour: tuple[int, int, int]  # BGR
    looks: int
    age: float = 40.0
    female: float = 0.9
    emotion: str = "happiness"


ANN = Person((60, 60, 200), 0, 31.0, 0.95, "happiness")
BOB = Person((60, 200, 60), 1, 58.0, 0.10, "neutral")
CYD = Person((200, 60, 60), 2, 44.0, 0.70, "surprise")
PEOPLE = (ANN, BOB, CYD)
TEXTURE = np.random.default_rng(0).integers(-50, 50, (8, 8, 1))


def paint(image: NDArray[np.uint8], person: Person, x: float, y: float, side: int = 64) -> None:
    """Paints a face with its top left corner at x, y; what lies outside the image is cut off."""
    blocks = np.kron(TEXTURE, np.ones((side // 8, side // 8, 1), int))
    face = np.clip(np.array(person.colour) + blocks, 0, 255)
    x1, y1 = round(x), round(y)
    left, top = max(-x1, 0), max(-y1, 0)
    part = image[max(y1, 0) : y1 + face.shape[0], max(x1, 0) : x1 + face.shape[1]]
    part[:] = face[top : top + part.shape[0], left : left + part.shape[1]]


def scene(*placed: tuple[Person, float, float], size: tuple[int, int] = (320, 192), side: int = 64):
    """(H, W, 3) uint8 BGR with people at x, y, the later ones in front."""
    image = np.full((size[1], size[0], 3), GROUND, np.uint8)
    for person, x, y in placed:
        paint(image, person, x, y, side)
    return image


def frame(
    image: NDArray[np.uint8], index: int = 0, camera: str = "door", fps: float = 25.0, **fields
) -> Frame:
    """A frame of a file."""
    at_ns = round(index / fps * 1e9)
    return Frame(
        camera=camera,
        index=index,
        captured_at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1000),
        clock="pts",
        pts_s=round(at_ns / 1e9, 6),
        time_ns=at_ns,
        monotonic_ns=fields.pop("monotonic_ns", None),
        image=image,
        **fields,
    )


def shares(pixels: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """For each person, which pixels (H, W) are of their colour."""
    strongest, coloured = pixels.argmax(2), np.ptp(pixels, axis=2) > 60
    return [coloured & (strongest == int(np.argmax(person.colour))) for person in PEOPLE]


def most_seen(crop: NDArray[np.uint8]) -> Person:
    """The person with the most pixels in the middle of a crop."""
    counts = [int(mask.sum()) for mask in shares(crop[30:82, 30:82])]
    return PEOPLE[int(np.argmax(counts))]


def spec(task: str, size: tuple[int, int], outputs: tuple[str, ...], **fields) -> ModelSpec:
    return ModelSpec(
        name=f"fake-{task}",
        task=task,
        network="Fake",
        network_args={},
        input_size=size,
        outputs=outputs,
        weights_sha256="0123456789abcdef" * 4,
        **fields,
    )


@dataclass
class FakeDetector:
    """Finds what is painted; a person mostly hidden is not found."""

    input_size: tuple[int, int] = (320, 192)
    backend: str = "fake"
    calls: int = 0
    least_px: int = 300
    score: float = 0.9

    def __post_init__(self) -> None:
        self.spec = spec("detector", self.input_size, ("scores", "sides"), threshold=0.5)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.calls += 1
        centres, strides = location_centres(self.input_size, STRIDES)
        scores = np.zeros((len(batch), len(centres)), np.float32)
        sides = np.zeros((len(batch), len(centres), 4), np.float32)
        for image, row, reach in zip(batch, scores, sides, strict=True):
            for mask in shares(image):
                ys, xs = np.nonzero(mask)
                if len(xs) < self.least_px:
                    continue
                box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
                middle = (box[:2] + box[2:]) / 2
                at = int(np.abs(centres - middle).sum(1).argmin())
                row[at] = self.score
                reach[at] = np.concatenate((centres[at] - box[:2], box[2:] - centres[at])) / strides[at]
        return {"scores": scores, "sides": sides}


@dataclass
class FakeLandmarks:
    """Puts the template's points where an upright face has them."""

    backend: str = "fake"
    input_size: tuple[int, int] = (LANDMARK_SIZE, LANDMARK_SIZE)
    faces: int = 0
    shift_nose: float = 0.0

    def __post_init__(self) -> None:
        self.spec = spec("landmarks", self.input_size, ("heatmaps",))

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.faces += len(batch)
        points = (TEMPLATE - 56) * 0.9 + 64
        points[2, 0] += self.shift_nose
        return {"heatmaps": points_to_heatmaps(np.repeat(points[None], len(batch), 0), LANDMARK_SIZE // 4)}


@dataclass
class FakeEmbedder:
    """An axis for each person, and a little of a common one."""

    backend: str = "fake"
    input_size: tuple[int, int] = (112, 112)
    faces: int = 0
    seen: list[Person] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = spec("embedder", self.input_size, ("embedding",), threshold=0.4)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.faces += len(batch)
        people = [most_seen(crop) for crop in batch]
        self.seen += people
        rows = np.zeros((len(batch), DIMENSIONS), np.float32)
        rows[:, -1] = 0.3
        for row, person in zip(rows, people, strict=True):
            row[person.looks] = 1
        return {"embedding": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


@dataclass
class FakeAttributes:
    """What the person's record says."""

    backend: str = "fake"
    input_size: tuple[int, int] = (112, 112)
    faces: int = 0

    def __post_init__(self) -> None:
        outputs = ("age_years", "female", "emotion")
        self.spec = spec("attributes", self.input_size, outputs, labels=EMOTIONS)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.faces += len(batch)
        people = [most_seen(crop) for crop in batch]
        emotion = np.full((len(batch), len(EMOTIONS)), 0.02, np.float32)
        for row, person in zip(emotion, people, strict=True):
            row[EMOTIONS.index(person.emotion)] = 0.86
        return {
            "age_years": np.array([person.age for person in people], np.float32),
            "female": np.array([person.female for person in people], np.float32),
            "emotion": emotion,
        }


def fake_engines(**engines) -> FaceEngines:
    """All four, each of which may be replaced or switched off with None."""
    parts = {
        "detector": FakeDetector(),
        "landmarks": FakeLandmarks(),
        "embedder": FakeEmbedder(),
        "attributes": FakeAttributes(),
    }
    return FaceEngines(**(parts | engines))


def walk(*paths: Sequence[tuple[Person, float, float]], num: int, camera: str = "door") -> list[Frame]:
    """`num` frames in which each person goes straight from the first place of their path to the last."""
    frames = []
    for index in range(num):
        share = index / max(num - 1, 1)
        placed = [
            (who, x1 + share * (x2 - x1), y1 + share * (y2 - y1)) for (who, x1, y1), (_, x2, y2) in paths
        ]
        frames.append(frame(scene(*placed), index, camera))
    return frames
