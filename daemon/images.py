"""Still images in: any file a person may have, as 8-bit BGR and upright."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.paths import is_folder
from engines.errors import MienError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
)
MIN_SIDE_PX = 8
"""No face fits into less, and an image that small is a tracking pixel or a mistake."""

PAPER = 255.0
"""What shines through a transparent image: white, as where people look at such images."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """A still as (H, W, 3) uint8 BGR, turned upright by its EXIF orientation.

    Grey becomes three equal channels, 16 bit becomes 8 by its upper byte, CMYK is converted, and what is
    transparent is laid on white. Raises MienError, naming the file and the remedy, where that cannot be done.
    """
    content = _content(path)
    colour = _decoded(content, cv2.IMREAD_COLOR)
    if colour is None:
        raise MienError(
            f"{path}: not an image that can be read; give a JPEG, PNG, WebP, TIFF, BMP or GIF file"
        )
    height, width = colour.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        least = f"{MIN_SIDE_PX}x{MIN_SIDE_PX} px"
        raise MienError(f"{path}: {width}x{height} px is too small to show a face; give {least} or more")
    return _on_paper(content, colour)


def _content(path: Path) -> NDArray[np.uint8]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MienError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise MienError(f"{path}: is a folder; name an image file") from None
    except OSError as error:
        raise MienError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not content:
        raise MienError(f"{path}: is empty; copy or export the image again")
    return np.frombuffer(content, np.uint8)


def _decoded(content: NDArray[np.uint8], flags: int) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(content, flags)
    except cv2.error:  # a damaged header asks for absurd sizes
        return None
    # The stubs promise an array; what is no image gives None.
    return None if image is None or image.size == 0 else image.astype(np.uint8, copy=False)


def _on_paper(content: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lays a transparent image on white; any other is given back as it is."""
    if not _may_be_transparent(content):
        return colour
    whole = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    # Unlike `colour` this one is not turned by EXIF: where the shapes tell, the alpha is dropped.
    if whole is None or whole.ndim != 3 or whole.shape[2] != 4 or whole.shape[:2] != colour.shape[:2]:
        return colour
    full = {"uint8": 255.0, "uint16": 65535.0}.get(whole.dtype.name, 1.0)
    alpha = whole[:, :, 3:].astype(np.float32) / full
    on_paper: NDArray[np.uint8] = np.rint(colour * alpha + PAPER * (1 - alpha)).astype(np.uint8)
    return on_paper


def _may_be_transparent(content: NDArray[np.uint8]) -> bool:
    """False for JPEG, the one common kind without alpha, so that it is not decoded twice."""
    return bytes(content[:2]) != b"\xff\xd8"


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder and the folders in it, by name; hidden ones are left out.

    Raises MienError where the folder is missing or may not be read.
    """
    try:
        next(folder.iterdir(), None)  # rglob finds nothing where it may not look, and does not say so
        return sorted(path for path in folder.rglob("*") if _is_image_name(path.relative_to(folder)))
    except (FileNotFoundError, NotADirectoryError):
        raise MienError(f"{folder}: no such folder; check the path") from None
    except OSError as error:
        raise MienError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None


def _is_image_name(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def expand_images(paths: list[Path]) -> Iterator[Path]:
    """Files as they are named, folders as the images in them; what is not there is kept, to be reported.

    Raises MienError for a folder without images.
    """
    for path in paths:
        if not is_folder(path):
            yield path
            continue
        images = list_images(path)
        if not images:
            raise MienError(f"{path}: no images in this folder; name one with .jpg or .png files")
        yield from images
