"""Reading the curated zips: images stored as WebP, labels in CSV."""

import csv
import io
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import Image

SEED = 281
POINT_COLUMNS = tuple(f"{point}{axis}" for point in ("le", "re", "n", "lm", "rm") for axis in "xy")


class ImageZip:
    """One data set: a zip of images with its label rows. Raises MienError when it is not there."""

    def __init__(self, folder: str | Path, name: str) -> None:
        self.path = Path(folder) / f"{name}.zip"
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (FileNotFoundError, zipfile.BadZipFile) as error:
            raise MienError(f"{self.path}: {error}; set data=FOLDER to where the data zips are") from None

    def __enter__(self) -> "ImageZip":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def names(self, suffix: str = ".webp") -> list[str]:
        return sorted(name for name in self._zip.namelist() if name.endswith(suffix))

    def text(self, name: str) -> str:
        """Raises MienError where the zip has no such file, or it is not UTF-8."""
        try:
            return self._zip.read(name).decode("utf-8-sig")  # spreadsheets put a mark before the first column
        except KeyError:
            raise MienError(f"{self.path}: there is no {name} in it") from None
        except UnicodeDecodeError as error:
            raise MienError(f"{self.path}: {name}: {error}; save it as UTF-8") from None

    def bytes_of(self, name: str) -> bytes:
        return self._zip.read(name)

    def stamp(self, name: str) -> list[int]:
        """Another one when the file is another: its checksum; empty where there is none."""
        known = name in self._zip.NameToInfo
        return [self._zip.getinfo(name).CRC] if known else []

    def rows(self, name: str = "labels.csv") -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.text(name))))

    def image(self, name: str) -> Image:
        """HxWx3 uint8 BGR. Raises MienError, naming what is missing or cannot be read."""
        try:
            content = self._zip.read(name)
        except KeyError:
            raise MienError(f"{self.path}: {name} is missing") from None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise MienError(f"{self.path}: {name} cannot be read ({error})") from None
        image = decoded(content)
        if image is None:
            raise MienError(f"{self.path}: {name} is not an image that OpenCV can read")
        return image


def decoded(content: bytes) -> Image | None:
    """HxWx3 uint8 BGR of a file's content; None where that is no image."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if image is None else image.astype(np.uint8, copy=False)


def file_stamp(path: Path) -> list[int]:
    """Another one when the file is another: its size and when it was written; empty where there is none."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def row_points(row: dict[str, str]) -> np.ndarray:
    """The five landmarks (5, 2) float32 of a label row."""
    return np.array([float(row[column]) for column in POINT_COLUMNS], np.float32).reshape(5, 2)
