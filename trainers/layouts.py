"""Readers of face sets as they are published: CelebA, MTFL and MTCNN lists, our zips, folders of persons.

`open_faces` looks at what lies at a path and yields one `FaceSource`. Points and boxes are in px of the image
they lie in. A row that cannot be used (no image, no person) is a problem with the file's name, not an error.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import Floats, Image
from trainers.face_rows import FaceRecord, read_records
from trainers.faces import box_from_landmarks
from trainers.zips import POINT_COLUMNS, ImageZip, row_points

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MTCNN_LISTS = {"train": "trainImageList.txt", "val": "testImageList.txt"}
MTFL_LISTS = {"train": "training.txt", "val": "testing.txt"}
CELEBA_LANDMARKS = {  # which list belongs to which folder of images
    "list_landmarks_celeba": ("img_celeba", "list_bbox_celeba"),
    "list_landmarks_align_celeba": ("img_align_celeba", ""),
}
KNOWN = (
    "a zip with labels.csv, CelebA (list_landmarks_celeba.txt + img_celeba), an MTFL or MTCNN list "
    "(training.txt, trainImageList.txt), cropped_landmarks.csv, or a folder for each person"
)


class UnreadableImage(MienError):  # noqa: N818 - as the other failures here, named for what happened
    """An image is missing or OpenCV cannot read it."""


class MissingImage(UnreadableImage):
    """It is not there."""


@dataclass(frozen=True, slots=True)
class FaceSource:
    """A face set: its records, what is wrong with it as (file, reason), and how a file is read."""

    records: tuple[FaceRecord, ...]
    problems: tuple[tuple[str, str], ...]
    read: Callable[[str], bytes]

    def image(self, file: str) -> Image:
        """HxWx3 uint8 BGR. Raises UnreadableImage, naming the file."""
        try:
            return decoded(self.read(file), file)
        except (FileNotFoundError, KeyError) as error:
            raise MissingImage(f"{file}: {error}") from None
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImage(f"{file}: {error}") from None


def decoded(content: bytes, file: str) -> Image:
    """HxWx3 uint8 BGR of an encoded image. Raises UnreadableImage."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise UnreadableImage(f"{file}: not an image that OpenCV can read")
    return image.astype(np.uint8, copy=False)


@contextmanager
def open_faces(path: str | Path) -> Iterator[FaceSource]:
    """The face set at a zip, a folder or a list file. Raises MienError when it is none that is known."""
    path = Path(path)
    if not path.exists():
        raise MienError(f"{path}: there is nothing there; give a face set: {KNOWN}")
    if path.suffix == ".zip":
        with ImageZip(path.parent, path.stem) as data:
            yield zip_faces(data)
        return
    yield list_faces([path]) if path.is_file() else folder_faces(path)


def folder_faces(root: Path) -> FaceSource:
    if found := celeba_list(root):
        return celeba_faces(root, found)
    for lists in (MTCNN_LISTS, MTFL_LISTS):
        if any((root / name).is_file() for name in lists.values()):
            return list_faces([root / name for name in lists.values() if (root / name).is_file()])
    if (root / "cropped_landmarks.csv").is_file():
        records = tuple(read_records(root / "cropped_landmarks.csv"))
        return FaceSource(records, (), lambda file: (root / file).read_bytes())
    records = tuple(
        FaceRecord(str(file.relative_to(root)), person=folder.name)
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    )
    if not records:
        raise MienError(f"{root}: no face set that is known; there should be {KNOWN}")
    return FaceSource(records, (), lambda file: (root / file).read_bytes())


def zip_faces(data: ImageZip) -> FaceSource:
    """celeba_faces.zip, mtfl.zip and their like: labels.csv, with landmarks, boxes and persons where it has them."""
    present, records, problems = set(data.names("")), [], []
    for number, row in enumerate(data.rows(), 2):
        if row.get("file", "") not in present:
            problems.append(
                (row.get("file") or f"line {number}", "the labels name it, there is no such image")
            )
            continue
        try:
            points = row_points(row) if any(row.get(name) for name in POINT_COLUMNS) else None
            box = box_from_landmarks(points) if points is not None else None
            box = row_box(row) if row.get("bx1") else box
        except KeyError as error:
            raise MienError(f"{data.path}: labels.csv has no column {error}") from None
        except ValueError as error:
            raise MienError(f"{data.path}: labels.csv line {number}: {error}") from None
        score, eyes = row.get("detector_score"), row.get("interocular_px")
        records.append(
            FaceRecord(
                row["file"],
                row.get("identity", ""),
                box,
                points,
                float(score) if score else None,
                float(eyes) if eyes else None,
                split=row.get("split", ""),
            )
        )
    return FaceSource(tuple(records), tuple(problems), data.bytes_of)


def row_box(row: dict[str, str]) -> Floats:
    return np.array([float(row[name]) for name in ("bx1", "by1", "bx2", "by2")], np.float32)


def table(path: Path, num_values: int | None) -> dict[str, list[float]]:
    """A list of `name value value ...`, by spaces or commas; a count and a heading above it are passed over.

    Raises MienError with the line's number where a line has another number of values, or no numbers.
    """
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, *words = re.split(r"[\s,]+", line.strip())
        if not words or (number <= 2 and not any(re.fullmatch(r"-?[\d.]+", word) for word in words)):
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise MienError(
                f"{path}: line {number}: {line.strip()[:60]!r} holds a word, not a number"
            ) from None
        if num_values is not None and len(values) != num_values:
            raise MienError(f"{path}: line {number}: {len(values)} values, there should be {num_values}")
        rows[name.replace("\\", "/")] = values
    if not rows:
        raise MienError(f"{path}: no rows; it should hold an image's name and its values on each line")
    return rows


def found_below(root: Path, stem: str) -> Path | None:
    """A list of CelebA: .txt as published or .csv as often passed on, beside the images or in Anno/."""
    places = [root / folder / f"{stem}{suffix}" for folder in (".", "Anno") for suffix in (".txt", ".csv")]
    return next((place for place in places if place.is_file()), None)


def celeba_list(root: Path) -> str | None:
    """Which landmark list of CelebA to read: the first whose folder of images is there too."""
    present = [stem for stem in CELEBA_LANDMARKS if found_below(root, stem)]
    return next((stem for stem in present if image_folder(root, stem)), present[0] if present else None)


def image_folder(root: Path, stem: str) -> Path | None:
    name = CELEBA_LANDMARKS[stem][0]
    return next((p for p in (root / name, root / "Img" / name) if p.is_dir()), None)


def celeba_faces(root: Path, stem: str) -> FaceSource:
    """CelebA (Liu et al. 2015): list_landmarks_*, list_bbox_celeba (x, y, width, height), identity_CelebA if there."""
    folder = image_folder(root, stem)
    if not folder:
        raise MienError(f"{root / CELEBA_LANDMARKS[stem][0]}: missing; {stem} describes the images in it")
    landmarks = table(found_below(root, stem), 10)
    people = needed(root, "identity_CelebA", 1) if found_below(root, "identity_CelebA") else None
    boxes = needed(root, CELEBA_LANDMARKS[stem][1], 4) if CELEBA_LANDMARKS[stem][1] else {}
    present = {entry.name for entry in folder.iterdir()}
    records, problems = [], []
    for file, values in landmarks.items():
        reason = celeba_problem(file, present, people, boxes)
        if reason:
            problems.append((file, reason))
            continue
        points = np.array(values, np.float32).reshape(5, 2)
        box = box_from_landmarks(points)
        if boxes:
            x, y, width, height = boxes[file]
            box = np.array([x, y, x + width, y + height], np.float32)
        records.append(FaceRecord(file, str(int(people[file][0])) if people else "", box, points))
    problems += [(file, f"an image without a row in {stem}") for file in sorted(present - set(landmarks))]
    return FaceSource(tuple(records), tuple(problems), lambda file: (folder / file).read_bytes())


def needed(root: Path, stem: str, num_values: int) -> dict[str, list[float]]:
    path = found_below(root, stem)
    if not path:
        raise MienError(f"{root / stem}.txt: missing; it is a part of CelebA's layout")
    return table(path, num_values)


def celeba_problem(file: str, present: set[str], people: dict | None, boxes: dict) -> str:
    if file not in present:
        return "a landmark row, there is no such image"
    if people is not None and file not in people:
        return "no row in identity_CelebA"
    if boxes and (file not in boxes or min(boxes[file][2:]) <= 0):
        return "no box in list_bbox_celeba"
    return ""


def list_faces(paths: Sequence[Path]) -> FaceSource:
    """MTCNN's lists (left right top bottom, then x y of each point) and MTFL's (five x, five y, four labels).

    Both have 14 values a row; MTFL's end in gender, smile, glasses (1 or 2) and pose (1 to 5). A list is MTFL's
    where most rows end so; its others, and boxes of MTCNN's that end before they begin, are problems.
    """
    root, records, problems = paths[0].parent, [], []
    for path in paths:
        split = "val" if path.name.startswith("test") else "train"
        rows = table(path, 14)
        mtfl = 2 * sum(map(is_mtfl, rows.values())) > len(rows)
        for file, values in rows.items():
            if not (root / file).is_file():
                problems.append((file, f"a row in {path.name}, there is no such image"))
            elif mtfl and is_mtfl(values):
                points = np.array(values[:10], np.float32).reshape(2, 5).T.copy()
                records.append(FaceRecord(file, "", box_from_landmarks(points), points, split=split))
            elif mtfl:
                labels = " ".join(f"{value:g}" for value in values[10:])
                problems.append((file, f"gender, smile, glasses, pose {labels} in {path.name}"))
            else:
                left, right, top, bottom = values[:4]
                if left >= right or top >= bottom:
                    problems.append((file, f"its box in {path.name} ends before it begins"))
                    continue
                points = np.array(values[4:], np.float32).reshape(5, 2)
                box = np.array([left, top, right, bottom], np.float32)
                records.append(FaceRecord(file, "", box, points, split=split))
    return FaceSource(tuple(records), tuple(problems), lambda file: (root / file).read_bytes())


def is_mtfl(values: Sequence[float]) -> bool:
    *two, pose = values[10:]
    return all(value in (1, 2) for value in two) and pose in (1, 2, 3, 4, 5)
