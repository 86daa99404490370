"""Face sets in their published layouts, tiny: CelebA, and the MTFL and MTCNN landmark lists."""

from pathlib import Path

import cv2
import numpy as np

from tests.face_sets import face
from trainers.faces import box_from_landmarks

PERSONS, IMAGES = 3, 6
SIZE = 160


def write_celeba(root: Path, aligned: bool = False) -> Path:
    """A tiny CelebA in its public layout: persons 1 to 3, six photographs each."""
    rng = np.random.default_rng(281)
    stem, folder = ("_align", "img_align_celeba") if aligned else ("", "img_celeba")
    (root / folder).mkdir(parents=True)
    identity, boxes, landmarks = [], [], []
    for i in range(PERSONS * IMAGES):
        name = f"{i + 1:06d}.jpg"
        picture, points = face(rng, SIZE, 30, 0.42)
        cv2.imwrite(str(root / folder / name), picture)
        x1, y1, x2, y2 = box_from_landmarks(points).round().astype(int)
        identity.append(f"{name} {i % PERSONS + 1}")
        boxes.append(f"{name} {x1:6d} {y1:6d} {x2 - x1:6d} {y2 - y1:6d}")
        landmarks.append(f"{name} " + " ".join(f"{v:4d}" for v in points.round().astype(int).reshape(-1)))
    names = [f"{p}_{a}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for a in "xy"]
    write_list(root / "identity_CelebA.txt", identity)
    write_list(root / "list_bbox_celeba.txt", [len(boxes), "image_id x_1 y_1 width height", *boxes])
    write_list(root / f"list_landmarks{stem}_celeba.txt", [len(landmarks), " ".join(names), *landmarks])
    return root


def write_list(path: Path, lines: list) -> None:
    path.write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")


def write_landmark_lists(root: Path, kind: str) -> list[np.ndarray]:
    """Eight faces as MTCNN's or MTFL's lists name them, with their backslashes; returns the points."""
    rng, all_points = np.random.default_rng(7), []
    (root / "net_7876").mkdir(parents=True)
    lines = []
    for i in range(8):
        picture, points = face(rng, SIZE, 30, 0.42)
        cv2.imwrite(str(root / "net_7876" / f"{i}.jpg"), picture)
        x1, y1, x2, y2 = box_from_landmarks(points).astype(int)
        numbers = {
            "mtcnn": [x1, x2, y1, y2, *points.reshape(-1)],
            "mtfl": [*points.T.reshape(-1), 1, 2, 2, 3],
        }[kind]
        lines.append(rf" net_7876\{i}.jpg " + " ".join(f"{v:g}" for v in numbers))
        all_points.append(points)
    train, val = {"mtcnn": ("trainImageList", "testImageList"), "mtfl": ("training", "testing")}[kind]
    write_list(root / f"{train}.txt", lines[:6])
    write_list(root / f"{val}.txt", lines[6:])
    return all_points
