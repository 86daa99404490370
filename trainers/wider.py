"""WIDER FACE's public layout: a list of boxes and a folder of pictures by event. Yang et al. 2016.

    ROOT/wider_face_split/wider_face_val_bbx_gt.txt (or the list in ROOT itself)
    ROOT/WIDER_val/images/0--Parade/0_Parade_marchingband_1_465.jpg

The list has, for each picture, its path, the number of faces, and a line a face: x1 y1 w h blur expression
illumination invalid occlusion pose. A picture without faces has a line of zeros, which some tools leave out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import Floats
from trainers.expression_data import refuse
from trainers.ffhq_layout import ImageFolder
from trainers.label_checks import pictures
from trainers.scenes import Scene

INVALID = 7  # the column that marks a box nobody can be sure of


@dataclass(frozen=True, slots=True)
class WiderEntry:
    """One picture of the list: faces to find (N, 4) xyxy, and boxes that are invalid or have no area (M, 4)."""

    path: str
    faces: Floats
    ignored: Floats


def find_list(root: Path, split: str) -> Path:
    name = f"wider_face_{split}_bbx_gt.txt"
    for place in (root / "wider_face_split" / name, root / name):
        if place.is_file():
            return place
    raise MienError(f"{root}: no {name}, nor wider_face_split/{name}; unpack WIDER FACE's annotations there")


def find_images(root: Path, split: str) -> Path:
    for place in (root / f"WIDER_{split}" / "images", root / "images"):
        if place.is_dir():
            return place
    raise MienError(f"{root}: no WIDER_{split}/images nor images; unpack WIDER FACE's pictures there")


def read_list(path: Path) -> list[WiderEntry]:
    """Raises MienError naming the line that does not fit."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    entries, at = [], 0
    while at < len(lines):
        try:
            count = int(lines[at + 1])
            num_lines = count or int(_is_of_zeros(lines[at + 2 : at + 3]))
            rows = [[int(float(v)) for v in line.split()] for line in lines[at + 2 : at + 2 + num_lines]]
            if len(rows) != num_lines or any(len(row) < 4 for row in rows):
                raise ValueError(f"{count} faces are announced")
        except (ValueError, IndexError) as error:
            raise MienError(
                f"{path}: the entry {lines[at]!r} does not fit ({error}); copy it again"
            ) from None
        entries.append(WiderEntry(lines[at], *split_boxes(rows[:count])))
        at += 2 + num_lines
    return entries


def _is_of_zeros(lines: list[str]) -> bool:
    return any(len(line.split()) >= 4 and not line.strip("0. \t") for line in lines)


def split_boxes(rows: list[list[int]]) -> tuple[Floats, Floats]:
    """Faces and ignored boxes, xyxy; a box without area can be neither found nor hidden, and is dropped."""
    faces, ignored = [], []
    for row in rows:
        x, y, w, h = row[:4]
        if w <= 0 or h <= 0:
            continue
        invalid = len(row) > INVALID and row[INVALID] == 1
        (ignored if invalid else faces).append([x, y, x + w, y + h])
    return tuple(np.array(part, np.float32).reshape(-1, 4) for part in (faces, ignored))  # type: ignore[return-value]


def wider_scenes(root: str | Path, split: str = "val", max_side: int = 0, limit: int = 0) -> Iterator[Scene]:
    """Pictures one by one as scenes, invalid boxes as doubtful; `max_side` shrinks larger ones (0: as they are).

    Raises MienError for a list that is missing or does not fit; for pictures that are missing, before the first,
    and for those that cannot be read, after the last, naming them.
    """
    base = Path(root)
    images = find_images(base, split)
    entries = read_list(find_list(base, split))
    entries = entries[:: max(1, len(entries) // limit)][:limit] if limit else entries
    refuse(str(images), [f"{e.path} is missing" for e in entries if not (images / e.path).is_file()])
    for image, entry in zip(pictures(ImageFolder(images), [e.path for e in entries]), entries, strict=True):
        scale = min(1.0, max_side / max(image.shape[:2])) if max_side else 1.0
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield Scene(
            entry.path, image.astype(np.uint8, copy=False), entry.faces * scale, entry.ignored * scale
        )


def load_wider(root: str | Path, split: str = "train", max_side: int = 512, limit: int = 0) -> list[Scene]:
    """All of them, for training: at 512 px the train split takes about 6 GB."""
    return list(wider_scenes(root, split, max_side, limit))
