"""Writes engines/faces/faces.npz: the two shipped portraits, cut to 224x224 with their landmarks and boxes.

Every engine is checked on them after it is built, and int8 ranges are measured on them.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from engines.geometry import transform_points, warp
from engines.runtime import load_engine
from engines.stages import detect, find_landmarks

SIDE, FACE = 224, 96  # px of the picture, and of the longer side of the face's box in it
PORTRAITS = ("eileen_collins.jpg", "grace_hopper.jpg")


def main(argv: list[str]) -> None:
    root = Path(__file__).parents[1]
    detector, landmarks = (load_engine(each, backend="eager") for each in ("detector", "landmarks"))
    pictures, points, boxes = [], [], []
    for name in PORTRAITS:
        image = cv2.imread(str(root / "samples" / name))
        box = detect(detector, [image])[0].boxes_xyxy[:1]
        found, _ = find_landmarks(landmarks, [image], box)
        scale = FACE / float((box[0, 2:] - box[0, :2]).max())
        shift = (SIDE - 1) / 2 - scale * (box[0, :2] + box[0, 2:]) / 2
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
        pictures.append(warp(image, matrix, (SIDE, SIDE)))
        points.append(transform_points(found[0], matrix))
        boxes.append(transform_points(box.reshape(2, 2), matrix).ravel())
    target = Path(argv[0]) if argv else root / "engines" / "faces" / "faces.npz"
    np.savez_compressed(
        target, pictures=np.stack(pictures), landmarks=np.stack(points), boxes_xyxy=np.stack(boxes)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
