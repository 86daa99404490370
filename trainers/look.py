"""Pictures to look at: random faces with boxes, landmarks and heatmaps, labelled and as our network finds them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import (
    LANDMARK_SIZE,
    Floats,
    Image,
    heatmaps_to_points,
    landmark_crop,
    points_to_heatmaps,
    transform_points,
)
from engines.runtime import Engine, load_engine
from trainers.face_rows import FaceRecord
from trainers.faces import box_from_landmarks
from trainers.layouts import UnreadableImage, open_faces
from trainers.zips import SEED

TILE = 192  # px of one picture
BAR = 22  # px of the line of words below it
GAP = 6
GROUND = (28, 28, 28)
INK = (225, 225, 225)
BOX_COLOUR = (255, 190, 60)
# One colour for each point: eyes, nose, mouth corners (BGR).
COLOURS = ((80, 220, 80), (80, 220, 220), (90, 120, 255), (255, 150, 90), (240, 110, 230))
HEAT_STRIDE = 4


def look(
    data: Path,
    out: Path,
    count: int = 12,
    predict: bool = False,
    seed: int = SEED,
    weights: Path | None = None,
    backend: str = "auto",
) -> tuple[int, list[str]]:
    """Write a contact sheet of `count` random faces; returns how many it shows, and the unreadable files.

    Each face is two pictures: box and landmarks, and the heatmaps of its landmark crop; with `predict` a third
    and fourth: what the landmark network (ours, or that of a folder of checkpoints, `weights`) finds, beside
    the label's points as rings, and its five heatmaps.
    """
    network = load_engine("landmarks", backend=backend, weights=weights) if predict else None
    rows: list[Image] = []
    bad: list[str] = []
    with open_faces(data) as source:
        records = [record for record in source.records if record.points is not None]
        if not records:
            raise MienError(f"{data}: no landmarks to look at; make them: mien faces select {data} FOLDER")
        for i in np.random.default_rng(seed).permutation(len(records)):
            if len(rows) == count:
                break
            try:
                rows.append(face_row(source.image(records[i].file), records[i], network))
            except UnreadableImage as error:
                bad.append(str(error))
    if not rows:
        raise MienError(f"{data}: not one image can be read, such as {bad[0]}")
    write_picture(out, sheet(rows, columns=1 if predict else 2 if count > 3 else 1))
    return len(rows), bad


def write_picture(path: Path, picture: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), picture)
    except cv2.error:
        written = False
    if not written:
        raise MienError(f"{path}: could not be written; give a name that ends in .png or .jpg")


def face_row(image: Image, record: FaceRecord, network: Engine | None) -> Image:
    """The pictures of one face side by side, (TILE + BAR) high."""
    box = box_from_landmarks(record.points) if record.box_xyxy is None else record.box_xyxy
    crop, matrix = landmark_crop(image, box)
    points = transform_points(record.points, matrix)
    heat = points_to_heatmaps(points, LANDMARK_SIZE // HEAT_STRIDE)
    score = "" if record.score is None else f"  {record.score:.2f}"
    words = f"{record.person}  {Path(record.file).name}{score}".strip()
    tiles = [
        titled(surroundings(image, record.points, box), words),
        titled(heated(crop, heat), measures(record)),
    ]
    if network is not None:
        tiles += predicted(network, crop, points)
    return np.hstack(tiles)


def predicted(network: Engine, crop: Image, points: Floats) -> list[Image]:
    """What the network finds in a landmark crop: points beside the labelled ones, and its heatmaps (5, h, w)."""
    heatmaps = network(crop[None])["heatmaps"]
    found = heatmaps_to_points(heatmaps)[0][0]
    eyes = max(float(np.hypot(*(points[1] - points[0]))), 1.0)
    error = float(np.hypot(*(found - points).T).mean()) / eyes
    scale = TILE / LANDMARK_SIZE
    picture = cv2.resize(crop, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    for colour, label, point in zip(COLOURS, points, found, strict=True):
        cv2.circle(picture, place(label, scale), 5, colour, 1, cv2.LINE_AA)
        cv2.circle(picture, place(point, scale), 2, colour, -1, cv2.LINE_AA)
    return [
        titled(picture, f"found (ring: label)  error {error:.1%}"),
        titled(heated(crop, heatmaps[0]), "found"),
    ]


def surroundings(image: Image, points: Floats, box: Floats) -> Image:
    """TILE x TILE around the face, as much again on each side, with box and landmarks."""
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(x2 - x1, y2 - y1, 8.0) * 1.8
    scale = TILE / side
    shift = np.array([(x1 + x2 - side) / 2, (y1 + y2 - side) / 2])
    matrix = np.array([[scale, 0, -shift[0] * scale], [0, scale, -shift[1] * scale]], np.float32)
    picture = cv2.warpAffine(image, matrix, (TILE, TILE), flags=cv2.INTER_AREA, borderValue=GROUND)
    corners = [place(corner, 1) for corner in transform_points(box.reshape(2, 2), matrix)]
    cv2.rectangle(picture, corners[0], corners[1], BOX_COLOUR, 1, cv2.LINE_AA)
    for colour, point in zip(COLOURS, transform_points(points, matrix), strict=True):
        cv2.circle(picture, place(point, 1), 3, colour, -1, cv2.LINE_AA)
    return picture


def heated(crop: Image, heatmaps: Floats) -> Image:
    """A greyed crop under its heatmaps (5, h, w), each in its point's colour; TILE x TILE."""
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.float32) * 0.55
    picture = cv2.resize(grey, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    for colour, heat in zip(COLOURS, heatmaps, strict=True):
        weight = cv2.resize(np.clip(heat, 0, 1), (TILE, TILE), interpolation=cv2.INTER_LINEAR)[..., None]
        picture = picture * (1 - weight) + np.array(colour, np.float32) * weight
    return np.clip(picture, 0, 255).astype(np.uint8)


def measures(record: FaceRecord) -> str:
    named = (
        ("eyes", record.interocular_px, ".0f"),
        ("sharp", record.sharpness, ".2f"),
        ("yaw", record.yaw, ".2f"),
    )
    return "  ".join(f"{name} {value:{form}}" for name, value, form in named if value is not None) or "label"


def place(point: Floats, scale: float) -> tuple[int, int]:
    return round(float(point[0]) * scale), round(float(point[1]) * scale)


def titled(picture: Image, words: str) -> Image:
    """A picture with a line of words below it."""
    bar = np.full((BAR, TILE, 3), GROUND, np.uint8)
    while words and cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.36, 1)[0][0] > TILE - 8:
        words = words[:-1]
    cv2.putText(bar, words, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.36, INK, 1, cv2.LINE_AA)
    return np.vstack((picture, bar))


def sheet(rows: Sequence[Image], columns: int) -> Image:
    """Pictures of one size in a grid, with a gap around each."""
    height, width = rows[0].shape[:2]
    lines = -(-len(rows) // columns)
    canvas = np.full((lines * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), GROUND, np.uint8)
    for i, row in enumerate(rows):
        y, x = (i // columns) * (height + GAP) + GAP, (i % columns) * (width + GAP) + GAP
        canvas[y : y + height, x : x + width] = row
    return canvas
