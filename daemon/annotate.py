"""What the events say, drawn into the picture, readable from 360 to 2160 lines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import cv2
import numpy as np
from msgspec import UnsetType
from numpy.typing import NDArray

from daemon.records import Face

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

KNOWN: Colour = (96, 200, 72)
UNKNOWN: Colour = (40, 150, 245)
UNDECIDED: Colour = (200, 200, 200)
INK: Colour = (255, 255, 255)
SHADE = 0.35
"""How much of the picture is seen through a label's ground."""

REFERENCE_HEIGHT = 360
LINE_PX = 1.4
TEXT_PX = 12.0
FONT_WEIGHT = 500
REASONS = {
    "too_small": "too small",
    "blurred": "blurred",
    "averted": "averted",
    "bad_light": "bad light",
    "cut_off": "cut off",
    "low_score": "faint",
}


def annotate(image: Image, faces: Sequence[Face]) -> Image:
    """A copy of an (H, W, 3) uint8 BGR picture with boxes, landmarks and labels."""
    drawn = image.copy()
    unit = max(image.shape[0] / REFERENCE_HEIGHT, 0.7) ** 0.8
    for face in faces:
        _draw_face(drawn, face, unit)
    taken: list[tuple[int, int, int, int]] = []
    for face in faces:
        taken.append(_draw_label(drawn, face, unit, taken))
    return drawn


def label_of(face: Face) -> list[str]:
    """The lines beside a face: who, what, and why not."""
    return [line for line in (_who(face), _what(face), _why_not(face)) if line]


def _who(face: Face) -> str:
    identity = face.identity
    if isinstance(identity, UnsetType) or identity is None:
        return f"#{face.track}"
    if identity.name is not None:
        return f"#{face.track} {identity.name} {identity.similarity or 0:.2f}"
    return f"#{face.track} {'unknown' if identity.status == 'unknown' else '…'}"


def _what(face: Face) -> str:
    words: list[str] = []
    if not isinstance(face.gender, UnsetType) and face.gender is not None:
        words.append(face.gender)
    if not isinstance(face.age, UnsetType) and face.age is not None:
        words.append(f"{face.age:.0f}")
    if not isinstance(face.max_emotion, UnsetType) and face.max_emotion is not None:
        words.append(face.max_emotion)
    return " ".join(words)


def _why_not(face: Face) -> str:
    return ", ".join(REASONS[reason] for reason in face.quality.reasons)


def colour_of(face: Face) -> Colour:
    """BGR: green for a known person, orange for an unknown one, grey for one undecided."""
    identity = face.identity
    if isinstance(identity, UnsetType) or identity is None:
        return UNDECIDED
    return {"known": KNOWN, "unknown": UNKNOWN, "undecided": UNDECIDED}[identity.status]


def _draw_face(image: Image, face: Face, unit: float) -> None:
    colour, line = colour_of(face), max(1, round(LINE_PX * unit))
    x1, y1, x2, y2 = (round(value) for value in face.box_xyxy)
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour, line, cv2.LINE_AA)
    radius = max(1, round((x2 - x1) / 60))
    for x, y in face.landmarks:
        cv2.circle(image, (round(x), round(y)), radius, colour, -1, cv2.LINE_AA)


def _draw_label(
    image: Image, face: Face, unit: float, taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Draws the label and returns where, x1, y1, x2, y2; not over those already drawn where that can be."""
    lines, size = label_of(face), max(9, round(TEXT_PX * unit))
    widths = [_text_width(line, size) for line in lines]
    pad, step = round(size * 0.4), round(size * 1.35)
    width, height = max(widths) + 2 * pad, len(lines) * step + pad
    place = _free_place(image, face, width, height, taken)
    x1, y1, x2, y2 = place
    ground = image[y1:y2, x1:x2]
    ground[:] = (ground * SHADE).astype(np.uint8)
    cv2.rectangle(image, (x1, y1), (x1 + max(2, pad // 2), y2 - 1), colour_of(face), -1)
    for number, line in enumerate(lines):
        base = y1 + round(pad * 0.4) + (number + 1) * step - round(size * 0.25)
        cv2.putText(image, line, (x1 + pad + 2, base), INK, _font(), size, FONT_WEIGHT)
    return place


def _free_place(
    image: Image, face: Face, width: int, height: int, taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Above the box, below it, or in its upper edge: the first that is inside the picture and free."""
    rows, columns = image.shape[:2]
    left, top, _, bottom = (round(value) for value in face.box_xyxy)
    x1 = min(max(left, 0), max(columns - width, 0))
    places = [(x1, y, min(x1 + width, columns), min(y + height, rows)) for y in (top - height, bottom, top)]
    inside = [place for place in places if place[1] >= 0 and place[1] + height <= rows]
    free = [place for place in inside if not any(_overlap(place, other) for other in taken)]
    fallback = max(0, min(top, rows - height))
    return (free or inside or [(x1, fallback, min(x1 + width, columns), min(fallback + height, rows))])[0]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@cache
def _font() -> cv2.FontFace:
    # OpenCV's own typeface: names in any script, which the Hershey fonts cannot write.
    return cv2.FontFace("sans")


@lru_cache(maxsize=1024)
def _text_width(text: str, size: int) -> int:
    _, _, width, _ = cv2.getTextSize((10_000, 10_000), text, (0, 0), _font(), size, FONT_WEIGHT)
    return int(width) + 4
