"""Selected faces as files: crops with cropped_landmarks.csv, and crops aligned into folders of persons.

A bad image never stops the job: it is left out and stands in report.csv beside the images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError, UsageError
from engines.geometry import (
    ALIGNMENTS,
    FACE_SIZE,
    TEMPLATE,
    Floats,
    Image,
    alignment_matrix,
    transform_points,
    warp,
)
from trainers.face_rows import FaceRecord, read_records, write_csv, write_records
from trainers.faces import ROOM, box_from_landmarks
from trainers.layouts import FaceSource, UnreadableImage, open_faces

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
Progress = Callable[[Sequence[FaceRecord]], Sequence[FaceRecord]]  # such as rich's track


@dataclass(frozen=True, slots=True)
class Written:
    """How many images a job wrote, and those it could not, as (file, reason)."""

    count: int
    failed: tuple[tuple[str, str], ...]


def crop_matrix(box_xyxy: Floats, margin: float, max_side: int) -> tuple[Floats, int]:
    """2x3 map onto the square of `margin` x the box's longer side, shrunk to max_side; and its side in px."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    side = max(x2 - x1, y2 - y1, 1.0) * margin
    out = max(8, min(max_side, round(side)))
    scale = out / side
    cx, cy = (x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2
    middle = (out - 1) / 2
    return np.array([[scale, 0, middle - scale * cx], [0, scale, middle - scale * cy]], np.float32), out


def crop_face(image: Image, record: FaceRecord, margin: float, max_side: int) -> tuple[Image, FaceRecord]:
    """The crop, and the record with box and points in its px."""
    box = box_from_landmarks(record.points) if record.box_xyxy is None else record.box_xyxy
    matrix, side = crop_matrix(box, margin, max_side)
    corners = transform_points(box.reshape(2, 2), matrix).reshape(4)
    moved = dataclasses.replace(record, box_xyxy=corners, points=transform_points(record.points, matrix))
    return warp(image, matrix, (side, side)), moved


def crop_selected(
    data: Path, folder: Path, margin: float = 1.6, max_side: int = 256, progress: Progress = list
) -> Written:
    """Crops of selected.csv as folder/crops/PERSON/FILE.jpg, with cropped_landmarks.csv and report.csv."""
    if margin < 1 or max_side < 32:
        raise UsageError(f"margin {margin}, max-side {max_side}: at least 1 and 32 are needed")
    wanted, out = read_records(folder / "selected.csv"), folder / "crops"
    cropped: list[FaceRecord] = []
    failed: list[tuple[str, str]] = []
    with open_faces(data) as source:
        check_present(source, wanted, data, folder)
        for record in progress(wanted):
            try:
                crop, moved = crop_face(source.image(record.file), record, margin, max_side)
            except UnreadableImage as error:
                failed.append((record.file, str(error)))
                continue
            moved = dataclasses.replace(moved, file=f"{record.person}/{flat_name(record.file)}.jpg")
            write_image(out / moved.file, crop)
            cropped.append(moved)
    return finished(out, "cropped_landmarks.csv", cropped, failed)


def check_present(source: FaceSource, wanted: Sequence[FaceRecord], data: Path, folder: Path) -> None:
    """Raises MienError when none of the selected files is in the set: it is another set."""
    known = {record.file for record in source.records} | {file for file, _ in source.problems}
    missing = [record.file for record in wanted if record.file not in known]
    if len(missing) == len(wanted):
        raise MienError(
            f"{data}: holds none of the {len(wanted)} files of {folder / 'selected.csv'}, such as {missing[0]}; "
            "give the set it was selected from"
        )


def align_crops(
    folder: Path, methods: Sequence[str], room: int = ROOM, progress: Progress = list
) -> dict[str, Written]:
    """folder/crops aligned as folder/aligned/METHOD/PERSON/FILE.jpg, for each method.

    `eyes` lays the two eyes onto the template, `eyes_nose` eyes and nose, `similarity` fits all five points.
    The image is 112 px with `room` px around it, so that training can turn and shift it.
    """
    for method in methods:
        if method not in ALIGNMENTS:
            raise UsageError(f"alignment {method!r} is none of {', '.join(ALIGNMENTS)}")
    wanted = read_records(folder / "crops" / "cropped_landmarks.csv")
    with open_faces(folder / "crops") as source:
        return {method: align_by(source, wanted, folder, method, room, progress) for method in methods}


def align_by(
    source: FaceSource,
    wanted: Sequence[FaceRecord],
    folder: Path,
    method: str,
    room: int,
    progress: Progress,
) -> Written:
    out, side = folder / "aligned" / method, FACE_SIZE + 2 * room
    aligned: list[FaceRecord] = []
    failed: list[tuple[str, str]] = []
    for record in progress(wanted):
        matrix = alignment_matrix(record.points, TEMPLATE, method)
        matrix = matrix + np.array([[0, 0, room], [0, 0, room]], np.float32)
        try:
            if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-6:
                raise UnreadableImage(f"{record.file}: its landmarks lie on one line or in one point")
            image = warp(source.image(record.file), matrix, (side, side))
        except UnreadableImage as error:
            failed.append((record.file, str(error)))
            continue
        write_image(out / record.file, image)
        points = transform_points(record.points, matrix)
        aligned.append(dataclasses.replace(record, points=points, box_xyxy=box_from_landmarks(points)))
    return finished(out, "aligned_landmarks.csv", aligned, failed)


def finished(
    out: Path, name: str, records: Sequence[FaceRecord], failed: Sequence[tuple[str, str]]
) -> Written:
    """Write the landmarks and report.csv. Raises MienError when not one image could be written."""
    rows = [{"file": file, "reason": reason} for file, reason in failed]
    write_csv(out / "report.csv", ("file", "reason"), rows)
    if not records:
        raise MienError(f"{out}: not one image could be written; the reasons are in {out / 'report.csv'}")
    write_records(out / name, records)
    return Written(len(records), tuple(failed))


def flat_name(file: str) -> str:
    """A file's name without .jpg, in which its folders and another suffix stay: they tell two files apart."""
    return file.removesuffix(".jpg").replace("/", "_").replace(".", "_")


def write_image(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, JPEG):
        raise MienError(f"{path}: could not be written; is the disk full?")
