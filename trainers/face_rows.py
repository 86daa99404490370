"""FaceRecord: one labelled face of a set, and the CSV it is kept in: selected, train, val, cropped_landmarks."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import MienError
from engines.geometry import Floats

BOX = ("x1", "y1", "x2", "y2")
POINTS = tuple(f"{point}{axis}" for point in ("le", "re", "n", "lm", "rm") for axis in "xy")
MEASURES = ("score", "interocular_px", "sharpness", "yaw")
COLUMNS = ("file", "person", *BOX, *POINTS, *MEASURES, "split")


@dataclass(frozen=True, slots=True)
class FaceRecord:
    """One labelled face; what is not known is None or empty. Box and points in px of its image."""

    file: str
    person: str = ""
    box_xyxy: Floats | None = None  # (4,)
    points: Floats | None = None  # (5, 2): eyes, nose, mouth corners, the image's left first
    score: float | None = None  # the detector's
    interocular_px: float | None = None  # in the photograph that the image was cut from
    sharpness: float | None = None
    yaw: float | None = None
    split: str = ""  # train or val


def write_records(path: Path, records: Iterable[FaceRecord]) -> None:
    rows = []
    for record in records:
        row: dict[str, object] = {"file": record.file, "person": record.person, "split": record.split}
        for names, values in ((BOX, record.box_xyxy), (POINTS, record.points)):
            if values is not None:
                row |= dict(zip(names, (round(float(v), 2) for v in values.reshape(-1)), strict=True))
        measures = {name: getattr(record, name) for name in MEASURES}
        row |= {name: round(value, 4) for name, value in measures.items() if value is not None}
        rows.append(row)
    write_csv(path, COLUMNS, rows)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_records(path: Path) -> list[FaceRecord]:
    """Raises MienError, naming the file and line, when it is missing, has no rows or a value is no number."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MienError(f"{path}: missing; make it first, see mien faces --help") from None
    if not rows or not {"file", "person"} <= set(rows[0]):
        raise MienError(f"{path}: no faces in it; the columns are {', '.join(COLUMNS)}")
    return [_record(path, number, row) for number, row in enumerate(rows, 2)]


def _record(path: Path, line: int, row: dict[str, str]) -> FaceRecord:
    try:
        box, points = (_numbers(row, names) for names in (BOX, POINTS))
        measures = {name: float(row[name]) for name in MEASURES if row.get(name)}
    except ValueError as error:
        raise MienError(f"{path}: line {line} ({row['file']}): {error}") from None
    points = None if points is None else points.reshape(5, 2)
    return FaceRecord(row["file"], row["person"], box, points, split=row.get("split") or "", **measures)


def _numbers(row: dict[str, str], names: Sequence[str]) -> Floats | None:
    if not all(row.get(name) for name in names):
        return None
    return np.array([float(row[name]) for name in names], np.float32)
