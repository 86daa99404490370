"""FFHQ's public layout: thumbnails/NNNNN.* and json/NNNNN.json with `faceAttributes`, in a folder or a zip."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from engines.errors import MienError
from engines.geometry import Floats, Image
from engines.spec import EMOTIONS
from trainers.zips import ImageZip, decoded, file_stamp

IMAGES, LABELS = "thumbnails", "json"
PICTURES = (".webp", ".png", ".jpg", ".jpeg")
MAX_AGE = 120.0


@dataclass(frozen=True, slots=True)
class FfhqFace:
    """One thumbnail with its machine-made labels: age in years, female 0 or 1, emotion (8,) that adds to 1."""

    image: str  # thumbnails/NNNNN.webp
    age: float
    female: float
    emotion: Floats


class ImageFolder:
    """What ImageZip is to a zip, for a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def __enter__(self) -> "ImageFolder":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def names(self, suffix: str) -> list[str]:
        found = (path.relative_to(self.path) for path in self.path.rglob(f"*{suffix}"))
        return sorted(path.as_posix() for path in found)

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def stamp(self, name: str) -> list[int]:
        return file_stamp(self.path / name)

    def image(self, name: str) -> Image:
        """HxWx3 uint8 BGR."""
        try:
            image = decoded((self.path / name).read_bytes())
        except OSError as error:
            raise MienError(f"{self.path / name}: {error.strerror}; mend or remove it") from None
        if image is None:
            raise MienError(f"{self.path / name}: not an image that OpenCV can read; remove or replace it")
        return image


def ffhq_part(name: str) -> str:
    """train, val or test of NNNNN: 70/10/20 by the hash of NNNNN.webp, whatever the picture's own format."""
    digest = hashlib.sha256(f"{PurePosixPath(name).stem}.webp".encode()).hexdigest()
    return {7: "val", 8: "test", 9: "test"}.get(int(digest, 16) % 10, "train")


class FfhqData:
    """The faces of one FFHQ tree; faults are collected and told together."""

    def __init__(self, images: ImageZip | ImageFolder) -> None:
        self.images = images

    def __enter__(self) -> "FfhqData":
        self.images.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.images.__exit__(*error)

    def faces(self, part: str) -> list[FfhqFace]:
        """The part's faces by number. Raises MienError naming labels that are missing or do not fit.

        Pictures in which the labelling machine saw no face, or several, are left out.
        """
        labels = {PurePosixPath(name).stem: name for name in self.images.names(".json")}
        pictures = [n for suffix in PICTURES for n in self.images.names(suffix) if IMAGES in n.split("/")]
        chosen = sorted(name for name in pictures if ffhq_part(name) == part)
        faults, faces = [], []
        for name in chosen:
            stem = PurePosixPath(name).stem
            if stem not in labels:
                faults.append(f"{name} has no {LABELS}/{stem}.json")
                continue
            try:
                face = parse_face(name, json.loads(self.images.text(labels[stem])))
            except (ValueError, KeyError, TypeError) as error:
                faults.append(f"{labels[stem]}: {type(error).__name__} {error}")
                continue
            if face is not None:
                faces.append(face)
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise MienError(
                f"{self.images.path}: {'; '.join(faults[:5])}{more}; mend or remove these pictures"
            )
        if not faces:
            raise MienError(
                f"{self.images.path}: no labelled face in the {part} part; it needs {IMAGES}/ and {LABELS}/"
            )
        return faces


def parse_face(image: str, document: Any) -> FfhqFace | None:
    """One published JSON (a list of faces) -> labels; None where it holds no face or several."""
    if not isinstance(document, list):
        raise ValueError("is not a list of faces")
    if len(document) != 1:
        return None
    attributes = document[0]["faceAttributes"]
    age, gender = float(attributes["age"]), attributes["gender"]
    if not 0 <= age <= MAX_AGE:
        raise ValueError(f"age {age} is out of range")
    if gender not in ("female", "male"):
        raise ValueError(f"gender {gender!r} is neither female nor male")
    emotion = np.array([float(attributes["emotion"][name]) for name in EMOTIONS], np.float32)
    if not (emotion >= 0).all() or emotion.sum() <= 0:
        raise ValueError("the emotion distribution is empty or negative")
    return FfhqFace(image, age, float(gender == "female"), emotion / emotion.sum())


def open_ffhq(data: str | Path) -> FfhqData:
    """`data` holds ffhq.zip, or thumbnails/ and json/, or an ffhq folder with them; or is the zip itself."""
    place = Path(data)
    for folder in (place, place / "ffhq"):
        if (folder / IMAGES).is_dir():
            return FfhqData(ImageFolder(folder))
    if place.suffix == ".zip":
        return FfhqData(ImageZip(place.parent, place.stem))
    return FfhqData(ImageZip(place, "ffhq"))
