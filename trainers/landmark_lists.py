"""Faces for the landmark recipe from published lists: MTCNN's, MTFL's, CelebA's."""

import hashlib
from pathlib import Path

import numpy as np

from engines.errors import MienError
from engines.geometry import Floats, Image
from trainers.crops import crop_face
from trainers.face_rows import FaceRecord
from trainers.faces import box_from_landmarks
from trainers.label_checks import far_outside
from trainers.layouts import MTCNN_LISTS, MTFL_LISTS, UnreadableImage, celeba_list, open_faces

ROOM_MARGIN, ROOM_SIDE = 1.8, 160  # of a detector's box: a crop of 1.25 has room to turn and shift
HELD_OUT = 10  # CelebA's lists name no split: a tenth by the hash of the name is held out
NAMED = 5


def is_landmark_folder(root: Path) -> bool:
    lists = (*MTCNN_LISTS.values(), *MTFL_LISTS.values())
    return root.is_dir() and bool(celeba_list(root) or any((root / name).is_file() for name in lists))


def listed_faces(root: Path, split: str, limit: int = 0) -> tuple[list[Image], Floats, Floats]:
    """Pictures around each face, boxes (M, 4) as a detector draws them, points (M, 5, 2), in px of the picture.

    A row without an image, an image that cannot be read and landmarks far outside it are left out and named.
    Raises MienError when nothing is left.
    """
    images, cropped, bad = [], [], []
    with open_faces(root) as source:
        bad += source.problems
        records = [record for record in source.records if split_of(record) == split]
        for record in records[: limit or None]:
            whole = FaceRecord(record.file, box_xyxy=box_from_landmarks(record.points), points=record.points)
            try:
                image = source.image(record.file)
            except UnreadableImage:
                bad.append((record.file, "unreadable"))
                continue
            if far_outside(record.points, image):
                bad.append((record.file, "landmarks far outside the picture"))
                continue
            picture, moved = crop_face(image, whole, ROOM_MARGIN, ROOM_SIDE)
            images.append(picture)
            cropped.append(moved)
    names = ", ".join(f"{file} ({reason})" for file, reason in bad[:NAMED])
    if not images:
        raise MienError(f"{root}: no image for {split} can be used{': ' if bad else ''}{names}")
    if bad:
        print(f"{root}: {len(bad)} faces are left out: {names}", flush=True)
    boxes = np.stack([box_from_landmarks(record.points) for record in cropped])
    return images, boxes, np.stack([record.points for record in cropped])


def split_of(record: FaceRecord) -> str:
    """Its own, or one that does not hang on which other pictures are there."""
    number = int(hashlib.sha256(record.file.encode()).hexdigest(), 16)
    return record.split or ("val" if number % HELD_OUT == 0 else "train")
