"""What the closed-set recipe reads: train.csv, val.csv and the aligned images, all checked before the first epoch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import FACE_SIZE, Image
from trainers.crops import flat_name
from trainers.face_rows import FaceRecord, read_records
from trainers.faces import ROOM, STORED_SIZE
from trainers.layouts import UnreadableImage, decoded

MOST_LEFT_OUT = 0.1  # of the images; more is another folder, not a few bad files
NAMED = 5


@dataclass(frozen=True, slots=True)
class Faces:
    """Encoded aligned images, and the class of each (M,)."""

    records: tuple[FaceRecord, ...]
    encoded: tuple[bytes, ...]
    label: np.ndarray

    def stored(self, i: int) -> Image:
        """144x144x3: the aligned crop with room around it; an image without room gets its border replicated."""
        image = decoded(self.encoded[i], self.records[i].file)
        if image.shape[:2] == (FACE_SIZE, FACE_SIZE):
            image = cv2.copyMakeBorder(image, *[ROOM] * 4, cv2.BORDER_REPLICATE).astype(np.uint8)
        if image.shape[:2] != (STORED_SIZE, STORED_SIZE):
            raise MienError(
                f"{self.records[i].file}: {image.shape[1]}x{image.shape[0]} px; align with --room {ROOM} or 0"
            )
        return image


@dataclass(frozen=True, slots=True)
class ClosedSet:
    persons: tuple[str, ...]
    train: Faces
    val: Faces

    def fingerprint(self) -> str:
        """Of who is trained and judged on which images."""
        digest = hashlib.sha256()
        for faces in (self.train, self.val):
            digest.update(faces.label.tobytes())
            for record, encoded in zip(faces.records, faces.encoded, strict=True):
                digest.update(record.file.encode())
                digest.update(encoded)
        return digest.hexdigest()[:12]


def load_closed_set(folder: Path, alignment: str, limit: int = 0) -> ClosedSet:
    """All images of one alignment, read and checked. Raises MienError with the names of what is wrong.

    `limit` is the number of persons; 0 is all.
    """
    images = folder / "aligned" / alignment
    if not images.is_dir():
        raise MienError(f"{images}: missing; make it: mien faces align {folder} --by {alignment}")
    lists = [read_records(folder / f"{split}.csv") for split in ("train", "val")]
    persons = tuple(dict.fromkeys(record.person for record in lists[0]))[: limit or None]
    bad: list[tuple[str, str]] = []
    train, val = (read_faces(images, records, persons, bad) for records in lists)
    check_images(images, bad, len(train.records) + len(val.records))
    for split, faces in (("train", train), ("val", val)):
        empty = [p for p, count in zip(persons, np.bincount(faces.label, minlength=len(persons)), strict=True)
                 if not count]  # fmt: skip
        if empty:
            raise MienError(
                f"{folder / split}.csv: {len(empty)} persons without an image: {', '.join(empty[:NAMED])}; "
                "select them again"
            )
    return ClosedSet(persons, train, val)


def read_faces(
    images: Path, records: Sequence[FaceRecord], persons: Sequence[str], bad: list[tuple[str, str]]
) -> Faces:
    number = {person: i for i, person in enumerate(persons)}
    kept, encoded = [], []
    for record in records:
        if record.person not in number:
            continue
        path = images / record.person / f"{flat_name(record.file)}.jpg"
        try:
            content = path.read_bytes()
            decoded(content, record.file)
        except (OSError, UnreadableImage) as error:
            bad.append((record.file, "missing" if isinstance(error, OSError) else "unreadable"))
            continue
        kept.append(record)
        encoded.append(content)
    return Faces(tuple(kept), tuple(encoded), np.array([number[r.person] for r in kept], np.int64))


def check_images(images: Path, bad: Sequence[tuple[str, str]], num_good: int) -> None:
    if not bad:
        return
    names = ", ".join(f"{file} ({reason})" for file, reason in bad[:NAMED])
    if len(bad) > MOST_LEFT_OUT * (len(bad) + num_good):
        raise MienError(f"{images}: {len(bad)} of {len(bad) + num_good} images: {names}; align them again")
    print(f"{images}: {len(bad)} of {len(bad) + num_good} images are left out: {names}", flush=True)
