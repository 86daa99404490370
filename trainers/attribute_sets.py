"""The sets that teach age, gender and emotion: read, aligned by our own landmarks, each with what it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import ATTRIBUTE_TEMPLATE, Floats, Image, alignment_matrix
from engines.spec import EMOTIONS
from trainers.faces import ROOM, STORED_SIZE, FaceFinder, batched, box_from_interocular, stored_crop
from trainers.ffhq_layout import open_ffhq
from trainers.recognition import utkface_part
from trainers.transforms import replicate_black_border
from trainers.zips import ImageZip, row_points

Row = TypeVar("Row")

UNKNOWN = -1.0
HARD_LABELS = {
    "angry": "anger",
    "contempt": "contempt",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
    "surprise": "surprise",
}
# Interocular px and eye height (0..1) as each set is stored: the first guess for the landmarks.
STORED = {
    "utkface": (43.0, 0.30),
    "ferplus": (42.0, 0.38),
    "emotion_masked": (43.0, 0.32),
    "expw": (32.0, 0.45),
    "ffhq": (64.0, 0.46),
}
CERTAINTY = {"emotion_masked": 0.86, "expw": 0.8}  # of a single label; the rest goes to the other seven


class AttributeData(Protocol):
    """What the readers need of a config."""

    data: str
    run: str
    limit: int


@dataclass(frozen=True, slots=True)
class LabelledFaces:
    """Aligned crops (M, 144, 144, 3); age in years (M,), female 0/1 (M,), emotion (M, 8); UNKNOWN where unlabelled.

    `share` is how often the set is drawn, `weight` what its labels count. Where `masked`, a black
    pixel is background to be filled. `names` are the files, in order.
    """

    crops: np.ndarray
    age: Floats
    female: Floats
    emotion: Floats
    names: tuple[str, ...] = ()
    share: float = 1.0
    weight: float = 1.0
    masked: bool = False

    def __len__(self) -> int:
        return len(self.crops)


def evenly(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows, from all over the list, which is often sorted by age or class; 0 is all."""
    if not 0 < limit < len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def align_set(data: ImageZip, name: str, files: list[str], finder: FaceFinder, run: str = "") -> np.ndarray:
    """Stored attribute crops of every file, by our own landmarks; grey 48 px pictures are enlarged first.

    The landmarks are kept in the folder `run`: they take minutes, and a resumed run needs them again.
    """
    kept = Path(run) / f"points_{name}_{len(files)}_{finder.landmarks.spec.weights_sha256[:12]}.npy"
    known = np.load(kept) if run and kept.is_file() else None
    crops = np.empty((len(files), STORED_SIZE, STORED_SIZE, 3), np.uint8)
    found = np.empty((len(files), 5, 2), np.float32)
    for number, batch in enumerate(batched(files)):
        rows = slice(number * 256, number * 256 + len(batch))
        images = [stored_picture(data, name, file) for file in batch]
        guess = box_from_interocular(images[0].shape[0], *STORED[name])
        boxes = np.tile(guess, (len(images), 1))
        found[rows] = known[rows] if known is not None else finder.refine(images, boxes)[0]
        cut = black_background_crop if name == "emotion_masked" else attribute_stored_crop
        crops[rows] = [cut(image, points) for image, points in zip(images, found[rows], strict=True)]
    if run and known is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, found)
    return crops


def stored_picture(data: ImageZip, name: str, file: str) -> Image:
    image = data.image(file)
    if name == "ferplus":
        image = cv2.resize(image, (112, 112), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    return image


def attribute_stored_crop(image: Image, points: Floats) -> Image:
    return stored_crop(image, points, ATTRIBUTE_TEMPLATE)


def black_background_crop(image: Image, points: Floats) -> Image:
    """A stored crop whose blacked-out background, and what lies outside the picture, is exactly 0."""
    matrix = alignment_matrix(points, ATTRIBUTE_TEMPLATE) + np.array([[0, 0, ROOM]] * 2, np.float32)
    face = (~blacked_out(image)).astype(np.uint8) * 255
    face = cv2.erode(face, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=255)
    shown, picture = (cv2.warpAffine(layer, matrix, (STORED_SIZE, STORED_SIZE)) for layer in (face, image))
    picture = np.where(shown[..., None] > 127, np.maximum(picture, 1), 0)
    return picture.astype(np.uint8, copy=False)


def blacked_out(image: Image) -> np.ndarray:
    """(H, W) bool: near black and connected with the picture's edge."""
    _, parts = cv2.connectedComponents((image.max(2) < 16).astype(np.uint8))
    edge = np.unique(np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1])))
    return np.isin(parts, edge[edge > 0])


def fill_black(rng: np.random.Generator, crop: Image) -> Image:
    """Put a random texture, from flat to busy, where the background was blacked out."""
    cells = int(rng.choice([1, 3, 6, 12, 24]))
    coarse = np.clip(rng.normal(rng.uniform(30, 225, 3), rng.uniform(5, 60), (cells, cells, 3)), 0, 255)
    texture = cv2.resize(coarse.astype(np.uint8), crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.where(crop.any(2, keepdims=True), crop, texture)


def utkface(config: AttributeData, part: str, finder: FaceFinder, run: str = "") -> LabelledFaces:
    with ImageZip(config.data, "utkface") as data:
        rows = [row for row in data.rows() if utkface_part(row["file"]) == part]
        rows = evenly(rows, config.limit)
        names = tuple(row["file"] for row in rows)
        crops = align_set(data, "utkface", list(names), finder, run)
    age = np.array([float(row["age_years"]) for row in rows], np.float32)
    female = np.array([float(row["gender"]) for row in rows], np.float32)
    return LabelledFaces(crops, age, female, np.full((len(rows), len(EMOTIONS)), UNKNOWN, np.float32), names)


def mtfl(config: AttributeData, cut: Callable[[Image, Floats], Image] | None = None) -> LabelledFaces:
    """MTFL's training part: gender alone, by people's labels and landmarks, as faces look outdoors.

    `cut` makes a crop of a picture and its landmarks (5, 2); None: the stored crop.
    """
    cut = cut or attribute_stored_crop
    with ImageZip(config.data, "mtfl") as data:
        rows = [row for row in data.rows() if row["split"] == "train" and row["gender"] in ("1", "2")]
        rows = evenly(rows, config.limit)
        images = (replicate_black_border(data.image(row["file"])) for row in rows)
        crops = [cut(image, row_points(row)) for image, row in zip(images, rows, strict=True)]
    if not rows:
        raise MienError(f"{data.path}: no training row with gender 1 (male) or 2 (female)")
    female = np.array([row["gender"] == "2" for row in rows], np.float32)
    age = np.full(len(rows), UNKNOWN, np.float32)
    emotion = np.full((len(rows), len(EMOTIONS)), UNKNOWN, np.float32)
    return LabelledFaces(np.stack(crops), age, female, emotion, tuple(row["file"] for row in rows))


def ferplus_rows(data: ImageZip, part: str) -> list[dict[str, str]]:
    """FER+ rows of a part: first row of each path, with votes; training rows that recur in another part left out.

    `test` keeps the PrivateTest pictures whose single highest vote is an emotion.
    """
    first: dict[str, dict[str, str]] = {}
    for row in data.rows():
        first.setdefault(row["path"], row)
    usage = {"train": ("Training",), "val": ("PublicTest",), "test": ("PrivateTest",)}[part]
    rows = [row for row in first.values() if row["usage"] in usage and votes(row).sum() > 0]
    if not rows:
        raise MienError(f"{data.path}: no voted row with the usage {usage[0]}, which {part} needs")
    if part == "test":
        return [row for row in rows if clear_winner(row)]
    return [
        row for row in rows if row["dup_of"] not in first or first[row["dup_of"]]["usage"] == row["usage"]
    ]


def votes(row: dict[str, str]) -> Floats:
    return np.array([float(row[f"v_{name}"]) for name in EMOTIONS], np.float32)


def clear_winner(row: dict[str, str]) -> bool:
    counts = votes(row)
    return bool((counts == counts.max()).sum() == 1 and counts.max() > float(row["unknown"] or 0))


def ferplus(config: AttributeData, part: str, finder: FaceFinder, run: str = "") -> LabelledFaces:
    with ImageZip(config.data, "ferplus") as data:
        rows = evenly(ferplus_rows(data, part), config.limit)
        names = [row["path"] for row in rows]
        crops = align_set(data, "ferplus", names, finder, run)
    emotion = np.stack([votes(row) / votes(row).sum() for row in rows])
    return _emotion_only(crops, emotion, names)


def hard_labelled(
    config: AttributeData,
    name: str,
    finder: FaceFinder,
    run: str = "",
) -> LabelledFaces:
    """A colour set with one emotion a picture, smoothed by how far such a label can be trusted."""
    with ImageZip(config.data, name) as data:
        rows = evenly(data.rows(), config.limit)
        names = [row["file"] for row in rows]
        crops = align_set(data, name, names, finder, run)
    sure = CERTAINTY[name]
    emotion = np.full((len(rows), len(EMOTIONS)), (1 - sure) / (len(EMOTIONS) - 1), np.float32)
    for i, row in enumerate(rows):
        emotion[i, EMOTIONS.index(HARD_LABELS[row["emotion"]])] = sure
    return _emotion_only(crops, emotion, names, masked=name == "emotion_masked")


def ffhq(config: AttributeData, part: str, finder: FaceFinder, run: str = "") -> LabelledFaces:
    """FFHQ's part: every label was made by a machine."""
    with open_ffhq(config.data) as data:
        rows = evenly(data.faces(part), config.limit)
        names = tuple(row.image for row in rows)
        crops = align_set(data.images, "ffhq", list(names), finder, run)
    age = np.array([row.age for row in rows], np.float32)
    female = np.array([row.female for row in rows], np.float32)
    return LabelledFaces(crops, age, female, np.stack([r.emotion for r in rows]), names)


def _emotion_only(
    crops: np.ndarray, emotion: Floats, names: list[str], masked: bool = False
) -> LabelledFaces:
    unknown = np.full(len(crops), UNKNOWN, np.float32)
    return LabelledFaces(crops, unknown, unknown, emotion, tuple(names), masked=masked)
