"""What can be wrong with a labelled set, found and named together: rows, values, pictures, classes."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from engines.errors import MienError
from engines.geometry import Floats, Image
from trainers.expression_data import refuse
from trainers.zips import POINT_COLUMNS, ImageZip

LARGEST = 16_383  # px, the longest side that a WebP picture can have
OUTSIDE = 0.5  # of the longer side: boxes of real scenes reach up to 0.19 of it beyond the picture
Check = Callable[[Mapping[str, str]], str]  # a row -> what is wrong with it, empty where nothing is


class Pictures(Protocol):
    """A zip or a folder of pictures."""

    path: Path

    def image(self, name: str) -> Image: ...


def number(
    column: str,
    low: float = -LARGEST,
    high: float = LARGEST,
    kind: type[int] | type[float] = float,
    empty: bool = False,
) -> Check:
    """From `low` to `high`; a whole one where `kind` is int. Where `empty`, it may be left out."""

    def wrong(row: Mapping[str, str]) -> str:
        text = row.get(column) or ""
        if empty and not text:
            return ""
        try:
            value = kind(text)
        except ValueError:
            return f"{column} {text!r} is not a {'whole ' if kind is int else ''}number"
        return "" if low <= value <= high else f"{column} {text} is not from {low:g} to {high:g}"

    return wrong


def word(column: str, *known: str) -> Check:
    def wrong(row: Mapping[str, str]) -> str:
        text = row.get(column) or ""
        return "" if text in known else f"{column} {text!r} is none of {', '.join(filter(None, known))}"

    return wrong


def box_xyxy(*columns: str) -> Check:
    """Four columns x1, y1, x2, y2 of a box that has an area."""
    numbers = [number(column) for column in columns]

    def wrong(row: Mapping[str, str]) -> str:
        if reason := first_wrong(row, numbers):
            return reason
        x1, y1, x2, y2 = (float(row[column]) for column in columns)
        return "" if x1 < x2 and y1 < y2 else f"the box {x1:g} {y1:g} {x2:g} {y2:g} ends before it begins"

    return wrong


def first_wrong(row: Mapping[str, str], checks: Iterable[Check]) -> str:
    return next(filter(None, (check(row) for check in checks)), "")


FIVE_POINTS = tuple(number(column) for column in POINT_COLUMNS)


def checked_rows(
    data: ImageZip, checks: Sequence[Check], key: str = "file", suffix: str = ""
) -> list[dict[str, str]]:
    """All rows of labels.csv, in order; `key` is the column of the picture's name, which ends in `suffix`.

    Raises MienError naming every row whose picture is missing or a value of which cannot be (the first by name).
    """
    rows, present = data.rows(), set(data.names(suffix))
    if not rows or key not in rows[0]:
        found = f"no column {key!r} among {', '.join(rows[0])}" if rows else "no rows"
        raise MienError(f"{data.path}, labels.csv: {found}; write a row for each picture")
    problems = []
    for line, row in enumerate(rows, 2):
        missing = [] if row[key] in present else [f"line {line}: {row[key]} is missing in the zip"]
        problems += missing or [f"line {line} ({row[key]}): {w}" for c in checks if (w := c(row))]
    refuse(f"{data.path}, labels.csv", problems)
    return rows


def refuse_absent(where: object, what: str, wanted: Iterable[str], found: Collection[str]) -> None:
    """Raises MienError naming every class without a training row."""
    refuse(str(where), [f"no training row with {what} {name}" for name in wanted if name not in found])


def pictures(data: Pictures, names: Iterable[str], points: Iterable[Floats] | None = None) -> Iterator[Image]:
    """HxWx3 uint8 BGR of each name in order; `points` (N, 2) px are the labels that lie in each.

    Raises MienError after the last, naming every picture that cannot be read, or far outside which its labels lie;
    from the first of these on no more are yielded.
    """
    problems: list[str] = []
    for name, inside in zip(names, repeat(None) if points is None else points, strict=False):
        try:
            image = data.image(name)
        except MienError as error:
            problems.append(str(error).removeprefix(f"{data.path}: "))
            continue
        if inside is not None and far_outside(inside, image):
            problems.append(f"{name}: labels far outside its {image.shape[1]}x{image.shape[0]} px")
        if not problems:
            yield image
    refuse(str(data.path), problems)


def far_outside(points: Floats, image: Image) -> bool:
    """Whether one of the points (N, 2) lies farther outside than half the picture's longer side."""
    size = np.array(image.shape[1::-1], np.float32)
    room = OUTSIDE * size.max()
    return bool((points < -room).any() or (points > size + room).any())
