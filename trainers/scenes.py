"""The detector's data: full scenes, labels of several origins merged, random crops that show faces of every size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import FINE_STRIDES, GREY, Floats, Image, iou_matrix, location_centres
from trainers.detection_metrics import Truth
from trainers.fit import RandomSamples
from trainers.label_checks import box_xyxy, checked_rows, number, pictures, word
from trainers.portraits import Paster
from trainers.teacher import TeacherDetector
from trainers.transforms import photometric
from trainers.zips import ImageZip

HELD_OUT_EVERY = 7
# Longer sides in px that each stride is answerable for; they overlap, and a face there teaches both.
SIDE_RANGES = ((0, 64), (40, 160), (110, 10_000))
CENTRE_RADIUS = (
    1.5  # strides around a face's centre that count as the face (Tian et al. 2019, centre sampling)
)
MOSAIC = 0.35  # share of samples
SMALLEST_FACE = 8  # px: smaller ones are neither taught nor punished
PASTED = 0.35  # share of crops with a pasted portrait
SPOILT = 0.15  # share of samples made dark and blurred, and labelled anew by the teacher
JUDGED_SIDE = 24  # px: a spoilt face at least so large that the teacher does not see is none
PART_OF_FACE = 0.2  # less of a face than this is a part of one (an ear, hair), and no face
CORNERS = ("x1", "y1", "x2", "y2")
BOX = box_xyxy(*CORNERS)


def _drawn(row: Mapping[str, str]) -> str:
    return "" if row.get("origin") == "none" else BOX(row)


SCENE = (word("origin", "human", "scrfd", "yunet", "none"), number("score", 0, 1, empty=True), _drawn)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture with the boxes to find (N, 4) and the boxes of which nobody is sure (M, 4)."""

    name: str
    image: Image
    faces: Floats
    doubtful: Floats


def _boxes(rows: list[dict[str, str]], origin: str, low: float, high: float = 2.0) -> Floats:
    chosen = [r for r in rows if r["origin"] == origin and low <= float(r["score"] or 1) < high]
    return np.array([[float(r[k]) for k in CORNERS] for r in chosen], np.float32).reshape(-1, 4)


def _unmatched(boxes: Floats, others: Floats, max_iou: float = 0.4) -> np.ndarray:
    if not len(others) or not len(boxes):
        return np.ones(len(boxes), bool)
    return iou_matrix(boxes, others).max(1) < max_iou


def merge_labels(rows: list[dict[str, str]]) -> tuple[Floats, Floats]:
    """Faces and doubtful boxes of one scene.

    Sure: SCRFD's of score >= 0.5, human ones, and what SCRFD (>= 0.3) and YuNet (>= 0.6) both see.
    Doubtful: what only one teacher sees, or sees faintly.
    """
    human = _boxes(rows, "human", 0)
    strong, faint = _boxes(rows, "scrfd", 0.5), _boxes(rows, "scrfd", 0.0, 0.5)
    yunet, faint_yunet = _boxes(rows, "yunet", 0.6), _boxes(rows, "yunet", 0.0, 0.6)
    agreed = faint[~_unmatched(faint, yunet)] if len(yunet) else faint[:0]
    faces = np.concatenate((strong, agreed))
    faces = np.concatenate((faces, human[_unmatched(human, faces)]))
    doubtful = np.concatenate((faint, yunet, faint_yunet))
    return faces, doubtful[_unmatched(doubtful, faces)]


def has_scenes(folder: str) -> bool:
    return (Path(folder) / "scenes.zip").is_file()


def is_held_out(names: list[str]) -> dict[str, bool]:
    return {name: i % HELD_OUT_EVERY == 0 for i, name in enumerate(sorted(names))}


def fingerprint(image: Image) -> np.ndarray:
    """Difference hash, 256 bits: near-duplicates differ in few."""
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
    return (small[:, 1:] > small[:, :-1]).reshape(-1)


def rows_by_file(data: ImageZip) -> dict[str, list[dict[str, str]]]:
    """The label rows of every picture, in the order of the names; none for a picture without labels.

    Raises MienError naming the rows that are wrong.
    """
    by_file: dict[str, list[dict[str, str]]] = {name: [] for name in data.names()}
    for row in checked_rows(data, SCENE, suffix=".webp"):
        by_file[row["file"]].append(row)
    return by_file


def load_scenes(folder: str, limit: int = 0) -> list[Scene]:
    """The training scenes: held-out ones and their near-duplicates left out.

    Raises MienError naming the labels and pictures that are wrong.
    """
    with ImageZip(folder, "scenes") as data:
        by_file = rows_by_file(data)
        names = list(by_file)
        held_out = is_held_out(names)
        kept = [n for n in names if not held_out[n]]
        kept = kept[:: max(1, len(kept) // limit)][:limit] if limit else kept
        if not kept:
            raise MienError(f"{data.path}: {len(names)} scenes, of which none is for training; add scenes")
        labels = [merge_labels(by_file[n]) for n in kept]
        corners = [np.concatenate(both).reshape(-1, 2) for both in labels]
        images = pictures(data, kept, corners)
        scenes = [Scene(n, i, *both) for i, n, both in zip(images, kept, labels, strict=True)]
        others = pictures(data, [n for n in names if held_out[n]])
        apart = np.stack([fingerprint(image) for image in others]).astype(np.int32)
    prints = np.stack([fingerprint(s.image) for s in scenes]).astype(np.int32)
    same = prints @ apart.T + (1 - prints) @ (1 - apart).T  # bits in common
    scenes = [scene for scene, common in zip(scenes, same.max(1), strict=True) if common < 256 - 24]
    if not scenes:
        raise MienError(
            f"{data.path}: all {len(kept)} training scenes nearly repeat held-out ones; add others"
        )
    return scenes


def held_out_truths(folder: str, limit: int = 0) -> Iterator[tuple[Image, Truth]]:
    """The held-out scenes with SCRFD's boxes: to be found from a score of 0.5, not judged below."""
    with ImageZip(folder, "scenes") as data:
        by_file = rows_by_file(data)
        held_out = is_held_out(list(by_file))
        for name in [n for n in by_file if held_out[n]][: limit or None]:
            strong = _boxes(by_file[name], "scrfd", 0.5)
            yield data.image(name), Truth(strong, _boxes(by_file[name], "scrfd", 0.0, 0.5))


def assign(faces: Floats, doubtful: Floats, centres: Floats, strides: Floats) -> tuple[Floats, Floats]:
    """What each of A locations is to say: target (A,) 1 face, 0 none, -1 not judged; its box (A, 4) xyxy."""
    target = np.zeros(len(centres), np.float32)
    boxes = np.zeros((len(centres), 4), np.float32)
    for x1, y1, x2, y2 in doubtful:
        inside = (centres[:, 0] > x1) & (centres[:, 0] < x2) & (centres[:, 1] > y1) & (centres[:, 1] < y2)
        target[inside] = -1
    order = np.argsort(-(faces[:, 2:] - faces[:, :2]).max(1)) if len(faces) else []
    for i in order:  # large first, so that a small face in front keeps its locations
        x1, y1, x2, y2 = faces[i]
        side = max(x2 - x1, y2 - y1)
        away = np.abs(centres - [(x1 + x2) / 2, (y1 + y2) / 2]).max(1) / strides
        central = away < CENTRE_RADIUS
        central &= np.abs(centres - [(x1 + x2) / 2, (y1 + y2) / 2]).max(1) < max(side * 0.4, 6)
        for stride, (low, high) in zip(FINE_STRIDES, SIDE_RANGES, strict=True):
            level = central & (strides == stride)
            if low <= side < high:
                target[level], boxes[level] = 1, faces[i]
            elif low / 1.5 <= side < high * 1.5:
                target[level] = -1
    return target, boxes


class SceneSamples(RandomSamples):
    """Square crops with dense targets: image (S, S, 3), target (A,), boxes (A, 4).

    With a paster and a teacher, portraits are pasted in, and some samples spoilt and labelled anew.
    """

    def __init__(
        self,
        scenes: list[Scene],
        size: int,
        paster: Paster | None = None,
        teacher: TeacherDetector | None = None,
    ) -> None:
        super().__init__(len(scenes))
        self.scenes = scenes
        self.size = size
        self.paster, self.teacher = paster, teacher
        self.with_faces = [s for s in scenes if len(s.faces)]
        self.centres, self.strides = location_centres((size, size), FINE_STRIDES)

    def sample(self, rng: np.random.Generator) -> tuple[Image, Floats, Floats]:
        image, faces, doubtful = self.mosaic(rng) if rng.random() < MOSAIC else self.crop(rng, self.size)
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            faces, doubtful = (mirror(b, self.size) for b in (faces, doubtful))
        if self.teacher and rng.random() < SPOILT:
            image = spoil(rng, image)
            faces, doubtful = still_seen(self.teacher, image, faces, doubtful)
        target, boxes = assign(faces, doubtful, self.centres, self.strides)
        # Little blur: a face blurred beyond recognition is labelled by no teacher, and should not be found.
        return photometric(rng, image, 0.6, degrade=0.2), target, boxes

    def mosaic(self, rng: np.random.Generator) -> tuple[Image, Floats, Floats]:
        """Four crops of half the size in one picture: more small faces, less padding."""
        half = self.size // 2
        pictures, faces, doubtful = zip(*(self.crop(rng, half) for _ in range(4)), strict=True)
        image = np.vstack((np.hstack(pictures[:2]), np.hstack(pictures[2:])))
        corners = np.array([[0, 0], [half, 0], [0, half], [half, half]], np.float32)
        shifts = np.tile(corners, 2)  # (4, 4)
        return image, *(
            np.concatenate([b + s for b, s in zip(boxes, shifts, strict=True)]) for boxes in (faces, doubtful)
        )

    def crop(self, rng: np.random.Generator, size: int) -> tuple[Image, Floats, Floats]:
        """A piece of a scene, at times with a portrait pasted in."""
        image, faces, doubtful = self.piece(rng, size)
        if self.paster is None or rng.random() >= PASTED:
            return image, faces, doubtful
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        return self.paster(rng, image, faces, doubtful, paint_over(rng, scene).image)

    def piece(self, rng: np.random.Generator, size: int) -> tuple[Image, Floats, Floats]:
        """Around a face of a drawn size; a whole picture; anywhere; or where every face is painted over."""
        kind = rng.random()
        if kind < 0.45:
            scene = self.with_faces[int(rng.integers(len(self.with_faces)))]
            face = scene.faces[int(rng.integers(len(scene.faces)))]
            side = float(max(face[2] - face[0], face[3] - face[1], 2))
            smallest = 9 if rng.random() < 0.7 else 0.35 * size
            largest = size * (0.85 if rng.random() < 0.85 else 1.6)  # at times only parts of it fit
            drawn = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
            scale = float(np.clip(drawn / side, 0.15, 3.5))
            return cut(
                scene, scale, (face[:2] + face[2:]) / 2 * scale - rng.uniform(0.1, 0.9, 2) * size, size
            )
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        height, width = scene.image.shape[:2]
        if kind < 0.68:
            scale = size * rng.uniform(0.5, 1.15) / max(height, width)
        else:
            scale = float(np.exp(rng.uniform(np.log(0.4), np.log(1.8))))
        room = np.array([width, height]) * scale - size
        origin = rng.uniform(np.minimum(room, 0), np.maximum(room, 0) + 1e-3)
        if kind > 0.9:
            scene = paint_over(rng, scene)
        return cut(scene, scale, origin, size)


def mirror(boxes: Floats, width: int) -> Floats:
    return np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)


def cut(scene: Scene, scale: float, origin: np.ndarray, size: int) -> tuple[Image, Floats, Floats]:
    """Scale a scene and cut the square at `origin` (px of the scaled scene); boxes follow.

    A face of which less than 45 % is left, or that is very small, becomes doubtful.
    """
    height, width = scene.image.shape[:2]
    x1, y1 = np.floor(np.clip(origin / scale, 0, [width - 1, height - 1])).astype(int)
    x2, y2 = np.ceil(np.clip((origin + size) / scale, [x1 + 1, y1 + 1], [width, height])).astype(int)
    part = cv2.resize(
        scene.image[y1:y2, x1:x2],
        (max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    left, top = np.round(np.array([x1, y1]) * scale - origin).astype(int).clip(0)
    part = part[: size - top, : size - left]
    canvas = np.full((size, size, 3), GREY, np.uint8)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    offset = np.array([left - x1 * scale, top - y1 * scale] * 2, np.float32)
    whole, doubtful = scene.faces * scale + offset, scene.doubtful * scale + offset
    clipped = whole.clip(0, size)
    left_over = (clipped[:, 2:] - clipped[:, :2]).prod(1) / np.maximum(
        (whole[:, 2:] - whole[:, :2]).prod(1), 1e-6
    )
    sides = (clipped[:, 2:] - clipped[:, :2]).max(1) if len(clipped) else np.zeros(0)
    sure = (left_over >= 0.45) & (sides >= SMALLEST_FACE)
    unsure = ~sure & (left_over >= PART_OF_FACE)
    doubtful = doubtful.clip(0, size)
    doubtful = doubtful[(doubtful[:, 2:] > doubtful[:, :2]).all(1)]
    return canvas, clipped[sure], np.concatenate((doubtful, clipped[unsure])).astype(np.float32)


def spoil(rng: np.random.Generator, image: Image) -> Image:
    """The picture darker and out of focus or moved, as a background or a hall behind a lit stage is."""
    gain = float(np.exp(rng.uniform(np.log(0.07), np.log(0.7)))) if rng.random() < 0.8 else 1.0
    dark = np.clip(np.arange(256) * gain + rng.uniform(0, 12), 0, 255).astype(np.uint8)
    image = cv2.LUT(image, dark)
    sigma = float(np.exp(rng.uniform(np.log(0.7), np.log(6))))
    wide, high = (sigma, sigma) if rng.random() < 0.8 else (sigma * 2, 0.5)
    return cv2.GaussianBlur(image, (0, 0), sigmaX=wide, sigmaY=high).astype(np.uint8)


def still_seen(
    teacher: TeacherDetector, image: Image, faces: Floats, doubtful: Floats
) -> tuple[Floats, Floats]:
    """Which faces of a spoilt picture the teacher is sure of; what it sees faintly, or what is small, is doubtful."""
    boxes, scores = teacher(image)
    sure = ~_unmatched(faces, boxes[scores >= teacher.SURE])
    faint = ~_unmatched(faces, boxes) | (
        (faces[:, 2:] - faces[:, :2]).max(1) < JUDGED_SIDE if len(faces) else False
    )
    return faces[sure], np.concatenate((doubtful, faces[~sure & faint]))


def spoilt(rng: np.random.Generator, scene: Scene, teacher: TeacherDetector) -> Scene:
    """The scene dark and blurred, labelled anew by the teacher."""
    image = spoil(rng, scene.image)
    return Scene(scene.name, image, *still_seen(teacher, image, scene.faces, scene.doubtful))


def paint_over(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with every labelled box replaced: by a flat colour, by noise, or by a piece of the scene."""
    image = scene.image.copy()
    height, width = image.shape[:2]
    for box in np.concatenate((scene.faces, scene.doubtful)):
        x1, y1, x2, y2 = (
            int(v) for v in (*np.maximum(box[:2] - 1, 0), *np.minimum(box[2:] + 1, [width, height]))
        )
        if x2 <= x1 or y2 <= y1:
            continue
        how = rng.random()
        if how < 0.4:
            image[y1:y2, x1:x2] = image[y1:y2, x1:x2].reshape(-1, 3).mean(0)
        elif how < 0.6:
            image[y1:y2, x1:x2] = rng.integers(0, 256, (y2 - y1, x2 - x1, 3))
        else:
            y, x = (int(rng.integers(0, limit)) for limit in (height - (y2 - y1) + 1, width - (x2 - x1) + 1))
            image[y1:y2, x1:x2] = scene.image[y : y + y2 - y1, x : x + x2 - x1][::-1]
    return Scene(scene.name, image, scene.faces[:0], scene.doubtful[:0])
