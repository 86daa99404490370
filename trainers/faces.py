"""Landmarks for the face sets that have none, by our own detector and landmark network."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np

from engines.geometry import FACE_SIZE, TEMPLATE, Floats, Image, alignment_matrix, transform_points, warp
from engines.machine import why_no_gpu
from engines.runtime import Engine, load_engine
from engines.stages import detect, find_landmarks
from trainers.batched_changes import jitter_matrices, mirrored
from trainers.transforms import jitter_matrix, occlude, photometric

# Where a detector's box lies in the recognition crop: centre and side. Medians over 834 faces of MTFL (YuNet).
TEMPLATE_BOX = (56.1, 64.3, 107.0)
STORED_SIZE = 144  # aligned crops are kept with 16 px of room on each side, for jitter
ROOM = (STORED_SIZE - 112) // 2


def box_from_landmarks(points: Floats) -> Floats:
    """The box (4,) a detector would draw around five landmarks (5, 2), xyxy."""
    back = cv2.invertAffineTransform(alignment_matrix(points))
    cx, cy, side = TEMPLATE_BOX
    centre = transform_points(np.array([[cx, cy]], np.float32), back)[0]
    half = side / 2 * float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    return np.array([*(centre - half), *(centre + half)], np.float32)


# How far apart the eyes are and how high, as shares of a picture's height, as each set is stored: the first guess.
STORED = {
    "utkface": (43 / 112, 0.30),
    "ferplus": (42 / 112, 0.38),
    "emotion_masked": (43 / 112, 0.32),
    "expw": (28 / 112, 0.45),
    "ckplus": (41 / 112, 0.38),
    "ffhq": (64 / 256, 0.46),
}


def stored_box(name: str, size: int) -> Floats:
    """A first guess of the face in a size x size picture of a set."""
    apart, height = STORED[name]
    return box_from_interocular(size, apart * size, height)


def box_from_interocular(size: int, interocular_px: float, eye_height: float) -> Floats:
    """A first guess for a set of centred faces: eyes at `eye_height` (0..1) of a size x size picture."""
    scale = interocular_px / float(TEMPLATE[1, 0] - TEMPLATE[0, 0])
    _, cy, side = TEMPLATE_BOX
    centre = np.array([size / 2, size * eye_height + (cy - TEMPLATE[:2, 1].mean()) * scale])
    half = side / 2 * scale
    return np.array([*(centre - half), *(centre + half)], np.float32)


class FaceFinder:
    """Landmarks of the one face that each picture of a set shows."""

    def __init__(self, landmarks: Engine | None = None) -> None:
        # On a GPU eager torch: building an engine would take longer than it saves.
        self.landmarks = landmarks or load_engine("landmarks", backend="auto" if why_no_gpu() else "eager")

    def refine(self, images: Sequence[Image], boxes: Floats, rounds: int = 2) -> tuple[Floats, Floats]:
        """From guessed boxes (M, 4): points (M, 5, 2) and confidence (M,); each round boxes what it found."""
        for _ in range(rounds):
            points, confidence = find_landmarks(self.landmarks, images, boxes)
            boxes = np.stack([box_from_landmarks(p) for p in points])
        return points, confidence


def central_face(detector: Engine, image: Image, min_score: float | None = None) -> Floats | None:
    """The detected box (4,) nearest the picture's centre, or None."""
    found = detect(detector, [image], min_score=min_score)[0]
    if not len(found):
        return None
    middle = np.array(image.shape[1::-1]) / 2
    centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    return found.boxes_xyxy[int(np.linalg.norm(centres - middle, axis=1).argmin())]


def stored_crop(
    image: Image, points: Floats, template: Floats = TEMPLATE, method: str = "similarity"
) -> Image:
    """144x144x3 aligned crop: the 112x112 one with 16 px more around it."""
    matrix = alignment_matrix(points, template, method)
    matrix = matrix + np.array([[0, 0, ROOM], [0, 0, ROOM]], np.float32)
    return warp(image, matrix, (STORED_SIZE, STORED_SIZE))


def jittered(
    rng: np.random.Generator, stored: Image, degrees: float, scale: float, size: int = FACE_SIZE
) -> Image:
    """Training crop of a stored one, `size` px: turned, scaled and shifted a little, at times mirrored, degraded."""
    jitter = jitter_matrix(rng, STORED_SIZE, degrees=degrees, scale=scale, shift=0.02)
    return disturbed(rng, warp(stored, to_inner(jitter, size), (size, size)))


def to_inner(matrices: Floats, size: int = FACE_SIZE) -> Floats:
    """Maps (..., 2, 3) to stored crops made maps to their inner 112 px, shown at `size` px."""
    factor = size / FACE_SIZE
    inner = matrices.copy()
    inner[..., 2] -= ROOM
    inner *= factor
    inner[..., 2] += (factor - 1) / 2  # pixel centres lie at whole coordinates
    return inner


def disturbed(rng: np.random.Generator, crop: Image) -> Image:
    """The crop at times mirrored, then lit, degraded and covered at random."""
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return occlude(rng, photometric(rng, np.ascontiguousarray(crop), 0.8), chance=0.1)


def shown(stored: np.ndarray, size: int = FACE_SIZE) -> np.ndarray:
    """(M, 144, 144, 3) stored crops -> what an engine is fed: their inner 112 px at `size` px, (M, S, S, 3)."""
    if size == FACE_SIZE:
        return np.ascontiguousarray(stored[:, ROOM:-ROOM, ROOM:-ROOM])
    matrix = to_inner(np.eye(2, 3, dtype=np.float32), size)
    return np.stack([warp(crop, matrix, (size, size)) for crop in stored])


def jittered_maps(
    rng: np.random.Generator, count: int, degrees: float, scale: float, size: int = FACE_SIZE
) -> Floats:
    """The maps of `jittered` for a batch: (B, 2, 3), from stored crops to `size` px ones, half of them mirrored."""
    matrices = jitter_matrices(rng, count, STORED_SIZE, degrees=degrees, scale=scale, shift=0.02)
    return mirrored(to_inner(matrices, size), rng.random(count) < 0.5, size)


def batched(items: Iterable, size: int = 256) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
