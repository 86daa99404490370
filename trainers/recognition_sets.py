"""What the embedder learns from: faces of CelebA with identities, others without; and whom it may not learn from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from engines.errors import MienError
from engines.geometry import Image
from trainers.faces import FaceFinder, batched, box_from_interocular, stored_crop
from trainers.label_checks import FIVE_POINTS, checked_rows, first_wrong, number, pictures, word
from trainers.scenes import SCENE, is_held_out
from trainers.transforms import replicate_black_border
from trainers.verification import read_pairs
from trainers.zips import ImageZip, row_points

if TYPE_CHECKING:
    from trainers.recognition import RecognitionConfig

LFW_BOX = box_from_interocular(128, 33.0, 0.42)  # the pictures are centred on the face
SMALLEST_SCENE_FACE = 48  # px, longer side of the box
IDENTITY = number("identity", 0, math.inf, int)


def utkface_part(name: str) -> str:
    """train, val or test: 80/10/10 by the hash of the file name."""
    return {8: "val", 9: "test"}.get(int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10, "train")


def is_validation(identity: int) -> bool:
    return identity % 10 == 7


def check_labels(config: RecognitionConfig) -> None:
    """Raises MienError for a zip that is not there and for wrong labels, before any picture is looked at."""
    if config.labelled:
        with ImageZip(config.data, "celeba_faces") as data:
            celeba_rows(data)
    if not config.teacher:
        return
    for name, read in (("mtfl", mtfl_rows), ("scenes", scene_rows)):
        with ImageZip(config.data, name) as data:
            read(data)
    if config.labelled:
        with ImageZip(config.data, "lfw") as data:
            read_pairs(data)
    for name in ("utkface", "expw", "emotion_masked"):
        with ImageZip(config.data, name):
            pass


def validation_rows(data: ImageZip) -> list[dict[str, str]]:
    """The rows of the identities that are held out."""
    return [row for row in checked_rows(data, [IDENTITY]) if is_validation(int(row["identity"]))]


def celeba_rows(data: ImageZip) -> list[dict[str, str]]:
    """The rows of the training identities."""
    checked = checked_rows(data, (IDENTITY, *FIVE_POINTS))
    rows = [row for row in checked if not is_validation(int(row["identity"]))]
    if (people := len({row["identity"] for row in rows})) < 2:
        raise MienError(
            f"{data.path}: {people} identities to train on, those that end in 7 being held out; it needs two or more"
        )
    return rows


def celeba_faces(config: RecognitionConfig) -> tuple[list[Image], list[int]]:
    """Aligned crops and identities of the training identities."""
    with ImageZip(config.data, "celeba_faces") as data:
        rows = celeba_rows(data)[: config.limit or None]
        crops = aligned_crops(data, rows)
    return crops, [int(row["identity"]) for row in rows]


def aligned_crops(data: ImageZip, rows: list[dict[str, str]], filled: bool = False) -> list[Image]:
    """Each picture, its black border `filled`, aligned by its row's landmarks.

    Raises MienError naming every picture that cannot be used.
    """
    points = [row_points(row) for row in rows]
    images = pictures(data, [row["file"] for row in rows], points)
    return [
        stored_crop(replicate_black_border(i) if filled else i, p)
        for i, p in zip(images, points, strict=True)
    ]


def mtfl_rows(data: ImageZip) -> list[dict[str, str]]:
    """The training rows without LFW's people."""
    rows = checked_rows(data, (*FIVE_POINTS, word("split", "train", "val", "test")))
    return [r for r in rows if r["split"] == "train" and not r["file"].startswith("lfw_5590")]


def unlabelled_faces(config: RecognitionConfig, finder: FaceFinder) -> list[Image]:
    """Aligned crops of MTFL (without LFW's people), UTKFace's training part, ExpW, AffectNet's and the scenes'."""
    with ImageZip(config.data, "mtfl") as data:
        rows = mtfl_rows(data)[: config.limit or None]
        crops = aligned_crops(data, rows, filled=True)
    for name, interocular, height in (
        ("utkface", 43.0, 0.36),
        ("expw", 32.0, 0.4),
        ("emotion_masked", 43.0, 0.36),
    ):
        with ImageZip(config.data, name) as data:
            names = [n for n in data.names() if name != "utkface" or utkface_part(n) == "train"]
            for images in batched(pictures(data, names[: config.limit or None])):
                guess = box_from_interocular(images[0].shape[0], interocular, height)
                points, sure = finder.refine(images, np.tile(guess, (len(images), 1)))
                crops += [stored_crop(i, p) for i, p, c in zip(images, points, sure, strict=True) if c > 0.6]
    return crops + scene_faces(config)


def scene_faces(config: RecognitionConfig) -> list[Image]:
    """Aligned crops of the larger faces in the detector's training scenes; its portraits are CelebA's people."""
    with ImageZip(config.data, "scenes") as data:
        return aligned_crops(data, scene_rows(data)[: config.limit or None])


def scene_rows(data: ImageZip) -> list[dict[str, str]]:
    """SCRFD's sure and large faces in the training scenes, portraits left out."""

    def landmarks(row: Mapping[str, str]) -> str:
        return first_wrong(row, FIVE_POINTS) if row.get("origin") == "scrfd" else ""

    held_out = is_held_out(data.names())
    rows = [
        row
        for row in checked_rows(data, (*SCENE, landmarks), suffix=".webp")
        if row["origin"] == "scrfd" and not held_out[row["file"]] and not row["file"].startswith("portrait")
    ]
    return [
        row for row in rows if float(row["score"] or 1) >= 0.5 and longer_side(row) >= SMALLEST_SCENE_FACE
    ]


def longer_side(row: Mapping[str, str]) -> float:
    return max(float(row["x2"]) - float(row["x1"]), float(row["y2"]) - float(row["y1"]))


def lfw_faces(config: RecognitionConfig, finder: FaceFinder) -> dict[str, Image]:
    """Aligned crops of all images in LFW's pairs, by file name: to know whom not to train on, whatever the limit."""
    with ImageZip(config.data, "lfw") as data:
        pairs, _, _ = read_pairs(data)
        names = sorted({name for pair in pairs for name in pair})
        crops: list[Image] = []
        for images in batched(pictures(data, names)):
            points, _ = finder.refine(images, np.tile(LFW_BOX, (len(images), 1)))
            crops += [stored_crop(i, p) for i, p in zip(images, points, strict=True)]
    return dict(zip(names, crops, strict=True))
