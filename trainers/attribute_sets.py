"""The sets that teach age, gender and emotion: read, aligned by our own landmarks, each with what it is worth."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import ATTRIBUTE_TEMPLATE, Floats, Image, alignment_matrix, attribute_crop
from engines.spec import EMOTIONS
from trainers.expression_data import first_copies
from trainers.faces import ROOM, STORED_SIZE, FaceFinder, batched, stored_box, stored_crop
from trainers.ffhq_layout import MAX_AGE, ImageFolder, open_ffhq
from trainers.label_checks import FIVE_POINTS, checked_rows, number, pictures, refuse_absent, word
from trainers.recognition_sets import utkface_part
from trainers.transforms import replicate_black_border
from trainers.whole_file import whole_file
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
SPLIT = word("split", "train", "val", "test")
UTKFACE = (number("age_years", 0, MAX_AGE), word("gender", "0", "1"))
MTFL = (*FIVE_POINTS, SPLIT, word("gender", "1", "2", ""))
FER_USAGE = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
FERPLUS = (
    word("usage", *FER_USAGE.values()),
    *(number(f"v_{name}", 0, 1000) for name in EMOTIONS),
    number("unknown", 0, 1000, empty=True),
)
ALWAYS_THERE = sorted({*HARD_LABELS.values()} - {"contempt"})  # the seven emotions of a colour set
CERTAINTY = {"emotion_masked": 0.86, "expw": 0.8}  # of a single label; the rest goes to the other seven


class AttributeData(Protocol):
    """What the readers need of a config."""

    data: str
    run: str
    limit: int


@dataclass(frozen=True, slots=True)
class LabelledFaces:
    """Aligned crops (M, 144, 144, 3), or what a View shows; age in years (M,), female 0/1 (M,), emotion (M, 8).

    UNKNOWN where unlabelled. `share` is how often the set is drawn, `weight` what its labels count. Where `masked`,
    a black pixel is background to be filled. `names` are the files, in order.
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


@dataclass(frozen=True, slots=True)
class View:
    """The attribute crop as an engine with more room around the face is fed it: side and room as attribute_crop has."""

    size: int
    room: int

    def cut(self, image: Image, points: Floats) -> Image:
        return attribute_crop(image, points, self.size, self.room)


def evenly(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows, from all over the list, which is often sorted by age or class; 0 is all."""
    if not 0 < limit < len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def align_set(
    data: ImageZip | ImageFolder,
    name: str,
    files: list[str],
    finder: FaceFinder,
    run: str = "",
    view: View | None = None,
) -> np.ndarray:
    """Stored attribute crops of every file, by our own landmarks; grey 48 px pictures are enlarged first.

    With a view they are what it shows instead.
    The landmarks are kept in the folder `run`, by the pictures: they take minutes, and a resumed run needs them again.
    Raises MienError naming every picture that cannot be read.
    """
    told = [finder.landmarks.spec.weights_sha256, files, [data.stamp(file) for file in files]]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    kept = Path(run) / f"points_{name}_{key[:12]}.npy"
    known = np.load(kept) if run and kept.is_file() else None
    side = view.size if view else STORED_SIZE
    crops = np.empty((len(files), side, side, 3), np.uint8)
    found = np.empty((len(files), 5, 2), np.float32)
    for k, batch in enumerate(batched(pictures(data, files))):
        rows = slice(k * 256, k * 256 + len(batch))
        images = [stored_picture(image, name) for image in batch]
        boxes = np.stack([stored_box(name, image.shape[0]) for image in images])
        found[rows] = known[rows] if known is not None else finder.refine(images, boxes)[0]
        cut = black_background_crop if name == "emotion_masked" else attribute_stored_crop
        cut = view.cut if view else cut
        crops[rows] = [cut(image, points) for image, points in zip(images, found[rows], strict=True)]
    if run and known is None:
        with whole_file(kept) as file:
            np.save(file, found)
    return crops


def stored_picture(image: Image, name: str) -> Image:
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


def check_labels(folder: str, names: Sequence[str]) -> None:
    """Raises MienError for what is wrong with the labels of the training parts, before any picture is looked at."""
    for name in names:
        if name == "ffhq":
            with open_ffhq(folder) as faces:
                faces.faces("train")
            continue
        with ImageZip(folder, name) as data:
            TRAINING_ROWS[name](data)


def utkface_rows(data: ImageZip, part: str) -> list[dict[str, str]]:
    rows = [row for row in checked_rows(data, UTKFACE) if utkface_part(row["file"]) == part]
    if part == "train":
        refuse_absent(data.path, "gender", ("0", "1"), {row["gender"] for row in rows})
    if not rows:
        raise MienError(
            f"{data.path}: no face in the {part} part, a tenth by the hash of its name; add faces"
        )
    return rows


def utkface(
    config: AttributeData, part: str, finder: FaceFinder, run: str = "", view: View | None = None
) -> LabelledFaces:
    with ImageZip(config.data, "utkface") as data:
        rows = evenly(utkface_rows(data, part), config.limit)
        names = tuple(row["file"] for row in rows)
        crops = align_set(data, "utkface", list(names), finder, run, view)
    age = np.array([float(row["age_years"]) for row in rows], np.float32)
    female = np.array([float(row["gender"]) for row in rows], np.float32)
    return LabelledFaces(crops, age, female, np.full((len(rows), len(EMOTIONS)), UNKNOWN, np.float32), names)


def mtfl_rows(data: ImageZip) -> list[dict[str, str]]:
    """The training rows with a gender."""
    rows = [row for row in checked_rows(data, MTFL) if row["split"] == "train" and row["gender"]]
    refuse_absent(data.path, "gender", ("1", "2"), {row["gender"] for row in rows})
    return rows


def mtfl(config: AttributeData, cut: Callable[[Image, Floats], Image] | None = None) -> LabelledFaces:
    """MTFL's training part: gender alone, by people's labels and landmarks, as faces look outdoors.

    `cut` makes a crop of a picture and its landmarks (5, 2); None: the stored crop.
    """
    cut = cut or attribute_stored_crop
    with ImageZip(config.data, "mtfl") as data:
        rows = evenly(mtfl_rows(data), config.limit)
        points = [row_points(row) for row in rows]
        images = pictures(data, [row["file"] for row in rows], points)
        crops = [cut(replicate_black_border(i), p) for i, p in zip(images, points, strict=True)]
    female = np.array([row["gender"] == "2" for row in rows], np.float32)
    age = np.full(len(rows), UNKNOWN, np.float32)
    emotion = np.full((len(rows), len(EMOTIONS)), UNKNOWN, np.float32)
    return LabelledFaces(np.stack(crops), age, female, emotion, tuple(row["file"] for row in rows))


def ferplus_rows(data: ImageZip, part: str) -> list[dict[str, str]]:
    """FER+ rows of a part: first row of each path, with votes; without those that nearly recur in a later part.

    `test` keeps the PrivateTest pictures whose single highest vote is an emotion.
    """
    first = first_copies(checked_rows(data, FERPLUS, key="path"))
    usage = FER_USAGE[part]
    rows = [row for row in first if row["usage"] == usage and votes(row).sum() > 0]
    if not rows:
        raise MienError(f"{data.path}: no voted row with the usage {usage}, which {part} needs")
    if part == "test":
        return [row for row in rows if clear_winner(row)]
    usages = usages_of(first)
    rows = [row for row in rows if usage == max(usages[row["like"]], key=list(FER_USAGE.values()).index)]
    if part == "train":
        voted = np.sum([votes(row) for row in rows], axis=0)
        refuse_absent(
            data.path, "a vote for", EMOTIONS, [n for n, v in zip(EMOTIONS, voted, strict=True) if v]
        )
    return rows


def usages_of(first: Sequence[Mapping[str, str]]) -> dict[str, set[str]]:
    """In which of FER's parts near-duplicates of a picture are, by the first of them."""
    usages = defaultdict(set)
    for row in first:
        if row["usage"] in FER_USAGE.values():
            usages[row["like"]].add(row["usage"])
    return usages


def recurring(data: ImageZip) -> frozenset[str]:
    """FER's pictures that nearly recur in another of its parts."""
    first = first_copies(checked_rows(data, FERPLUS, key="path"))
    usages = usages_of(first)
    return frozenset(row["path"] for row in first if len(usages[row["like"]]) > 1)


def votes(row: Mapping[str, str]) -> Floats:
    return np.array([float(row[f"v_{name}"]) for name in EMOTIONS], np.float32)


def clear_winner(row: dict[str, str]) -> bool:
    counts = votes(row)
    return bool((counts == counts.max()).sum() == 1 and counts.max() > float(row["unknown"] or 0))


def ferplus(
    config: AttributeData, part: str, finder: FaceFinder, run: str = "", view: View | None = None
) -> LabelledFaces:
    with ImageZip(config.data, "ferplus") as data:
        rows = evenly(ferplus_rows(data, part), config.limit)
        names = [row["path"] for row in rows]
        crops = align_set(data, "ferplus", names, finder, run, view)
    emotion = np.stack([votes(row) / votes(row).sum() for row in rows])
    return _emotion_only(crops, emotion, names)


def emotion_rows(data: ImageZip) -> list[dict[str, str]]:
    rows = checked_rows(data, [word("emotion", *HARD_LABELS)])
    refuse_absent(data.path, "emotion", ALWAYS_THERE, {HARD_LABELS[row["emotion"]] for row in rows})
    return rows


def hard_labelled(
    config: AttributeData,
    name: str,
    finder: FaceFinder,
    run: str = "",
) -> LabelledFaces:
    """A colour set with one emotion a picture, smoothed by how far such a label can be trusted."""
    with ImageZip(config.data, name) as data:
        rows = evenly(emotion_rows(data), config.limit)
        names = [row["file"] for row in rows]
        crops = align_set(data, name, names, finder, run)
    sure = CERTAINTY[name]
    emotion = np.full((len(rows), len(EMOTIONS)), (1 - sure) / (len(EMOTIONS) - 1), np.float32)
    for i, row in enumerate(rows):
        emotion[i, EMOTIONS.index(HARD_LABELS[row["emotion"]])] = sure
    return _emotion_only(crops, emotion, names, masked=name == "emotion_masked")


def ffhq(
    config: AttributeData, part: str, finder: FaceFinder, run: str = "", view: View | None = None
) -> LabelledFaces:
    """FFHQ's part: every label was made by a machine."""
    with open_ffhq(config.data) as data:
        rows = evenly(data.faces(part), config.limit)
        names = tuple(row.image for row in rows)
        crops = align_set(data.images, "ffhq", list(names), finder, run, view)
    age = np.array([row.age for row in rows], np.float32)
    female = np.array([row.female for row in rows], np.float32)
    return LabelledFaces(crops, age, female, np.stack([r.emotion for r in rows]), names)


TRAINING_ROWS: dict[str, Callable[[ImageZip], list[dict[str, str]]]] = {
    "utkface": lambda data: utkface_rows(data, "train"),
    "ferplus": lambda data: ferplus_rows(data, "train"),
    "mtfl": mtfl_rows,
    "emotion_masked": emotion_rows,
    "expw": emotion_rows,
}


def _emotion_only(
    crops: np.ndarray, emotion: Floats, names: list[str], masked: bool = False
) -> LabelledFaces:
    unknown = np.full(len(crops), UNKNOWN, np.float32)
    return LabelledFaces(crops, unknown, unknown, emotion, tuple(names), masked=masked)
