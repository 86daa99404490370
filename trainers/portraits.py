"""Faces of portrait sets, pasted into scenes: sizes, poses and places that the scenes alone do not show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.geometry import Floats, Image
from trainers.ffhq_layout import ffhq_part
from trainers.label_checks import checked_rows, pictures, word
from trainers.teacher import TeacherDetector
from trainers.transforms import replicate_black_border
from trainers.zips import ImageZip

PROFILES = ("1", "5")  # MTFL's poses: turned fully to the left, to the right
LABELS = (word("split", "train", "val", "test"), word("pose", "1", "2", "3", "4", "5", ""))
PROFILE_SHARE = 0.3  # of what is pasted; a fiftieth of MTFL is
DECOY_SHARE = 0.25  # pasted pieces that show no face, so that the seam does not give a face away
SIZES = (10.0, 300.0)  # px, longer side of a pasted face
LARGE = (120.0, 420.0)  # px, of every second one: scenes show few faces as large as these


@dataclass(frozen=True, slots=True)
class Portrait:
    """A picture of one face, its box (4,) xyxy, and whether it is a profile."""

    image: Image
    box: Floats
    profile: bool


def has_portraits(folder: str) -> bool:
    return all((Path(folder) / f"{name}.zip").is_file() for name in ("mtfl", "ffhq"))


def load_portraits(folder: str, teacher: TeacherDetector, limit: int = 0) -> list[Portrait]:
    """MTFL's training part and FFHQ's training part, boxed by the teacher; what it does not find is left out.

    Raises MienError naming the labels and pictures that are wrong.
    """
    found = ((image, profile, teacher.central(image)) for image, profile in _pictures(folder, limit))
    return [Portrait(image, box, profile) for image, profile, box in found if box is not None]


def _pictures(folder: str, limit: int) -> Iterator[tuple[Image, bool]]:
    with ImageZip(folder, "mtfl") as data:
        rows = [row for row in checked_rows(data, LABELS) if row["split"] == "train"][: limit or None]
        for image, row in zip(pictures(data, [row["file"] for row in rows]), rows, strict=True):
            yield replicate_black_border(image), row.get("pose") in PROFILES
    with ImageZip(folder, "ffhq") as data:
        names = [name for name in data.names() if ffhq_part(name) == "train"][: limit or None]
        for image in pictures(data, names):
            yield image, False


class Paster:
    """Puts one portrait, or a decoy of the same outline, into a picture."""

    def __init__(self, portraits: list[Portrait]) -> None:
        self.portraits = portraits
        self.profiles = [p for p in portraits if p.profile] or portraits

    def __call__(
        self, rng: np.random.Generator, image: Image, faces: Floats, doubtful: Floats, decoy: Image
    ) -> tuple[Image, Floats, Floats]:
        """The picture with a piece pasted; faces it hides become doubtful, or go when hardly anything is left.

        `decoy` is a picture without faces. The pasted face's box joins `faces`, unless it is the decoy.
        """
        chosen = self.profiles if rng.random() < PROFILE_SHARE else self.portraits
        portrait = chosen[int(rng.integers(len(chosen)))]
        sizes = LARGE if rng.random() < 0.5 else SIZES
        piece, box = _sized(rng, portrait, float(np.exp(rng.uniform(*np.log(sizes)))))
        height, width = image.shape[:2]
        middle = (box[:2] + box[2:]) / 2
        offset = np.round(rng.uniform(0.05, 0.95, 2) * [width, height] - middle).astype(int)
        placed = box + np.tile(offset, 2).astype(np.float32)
        is_face = rng.random() >= DECOY_SHARE
        if not is_face:
            piece = cv2.resize(decoy, piece.shape[1::-1], interpolation=cv2.INTER_AREA)
        pasted = _blend(image, piece, _outline(piece.shape[:2], box), offset)
        faces, doubtful = _hidden(faces, doubtful, placed)
        inside = np.clip(placed, 0, [width, height, width, height]).astype(np.float32)
        whole = float((placed[2:] - placed[:2]).prod())
        visible = float((inside[2:] - inside[:2]).prod()) / whole
        if is_face and visible >= 0.45:
            faces = np.concatenate((faces, inside[None]))
        elif is_face:
            doubtful = np.concatenate((doubtful, inside[None]))
        return pasted, faces, doubtful


def _sized(rng: np.random.Generator, portrait: Portrait, side: float) -> tuple[Image, Floats]:
    """The portrait scaled so that its face's longer side is `side` px, at times mirrored."""
    scale = side / float((portrait.box[2:] - portrait.box[:2]).max())
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    piece = cv2.resize(portrait.image, None, fx=scale, fy=scale, interpolation=how).astype(np.uint8)
    box = portrait.box * scale
    if rng.random() < 0.5:
        piece = np.ascontiguousarray(piece[:, ::-1])
        box = np.array([piece.shape[1] - box[2], box[1], piece.shape[1] - box[0], box[3]], np.float32)
    return piece, box


def _outline(shape: tuple[int, ...], box: Floats) -> Floats:
    """Soft mask (H, W) of 0..1: an ellipse a little larger than the head."""
    mask = np.zeros(shape, np.float32)
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    axes = np.maximum(size * [0.72, 0.70], 1)
    cv2.ellipse(mask, (centre.tolist(), (2 * axes).tolist(), 0), 1.0, -1)
    softness = max(0.6, float(size.max()) * 0.035)
    return cv2.GaussianBlur(mask, (0, 0), softness).astype(np.float32)


def _blend(image: Image, piece: Image, mask: Floats, offset: np.ndarray) -> Image:
    height, width = image.shape[:2]
    (x, y), (h, w) = offset, piece.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x1 >= x2 or y1 >= y2:
        return image
    part = mask[y1 - y : y2 - y, x1 - x : x2 - x, None]
    out = image.copy()
    mixed = image[y1:y2, x1:x2] * (1 - part) + piece[y1 - y : y2 - y, x1 - x : x2 - x] * part
    out[y1:y2, x1:x2] = np.round(mixed)
    return out


def _hidden(faces: Floats, doubtful: Floats, placed: Floats) -> tuple[Floats, Floats]:
    """Faces under the pasted piece: doubtful from a quarter hidden, gone from four fifths."""
    share = _covered(faces, placed)
    half = faces[(share >= 0.25) & (share < 0.8)]
    return faces[share < 0.25], np.concatenate((doubtful[_covered(doubtful, placed) < 0.8], half))


def _covered(boxes: Floats, cover: Floats) -> np.ndarray:
    overlap = (np.minimum(boxes[:, 2:], cover[2:]) - np.maximum(boxes[:, :2], cover[:2])).clip(min=0).prod(1)
    return overlap / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
