"""What a detector is judged by: the held-out scenes and WIDER FACE with their truths, and two detectors to compare."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.backends.eager import EagerEngine
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError
from engines.geometry import Floats, Image, iou_matrix
from engines.stages import Detections, detect
from trainers.detection_metrics import MATCH_IOU, Truth
from trainers.scenes import Scene, is_held_out, paint_over, rows_by_file
from trainers.zips import SEED, ImageZip

LOW_SCORE = 0.05
SURE, FAINT = 0.5, 0.3  # SCRFD's scores: a face from the first, ignored from the second
YUNET_SURE = 0.6  # of the stored labels
Find = Callable[[Image], Detections]


@dataclass(frozen=True, slots=True)
class JudgedScene:
    """A picture, what is to be found in it, every box that any origin drew (M, 4), and those only YuNet drew (K, 4)."""

    image: Image
    truth: Truth
    labelled: Floats
    yunet_only: Floats

    def lenient(self) -> Truth:
        """The truth with what only YuNet's labels have ignored: nearly all of it are faces that SCRFD missed."""
        return Truth(self.truth.faces, np.concatenate((self.truth.ignored, self.yunet_only)))


def held_out_scenes(folder: str, limit: int = 0) -> Iterator[JudgedScene]:
    """The held-out part of `scenes`: human boxes where there are any, elsewhere SCRFD's of a score >= 0.5.

    SCRFD's of 0.3 to 0.5 are ignored, and so are its surer ones where a human drew boxes but not there.
    """
    with ImageZip(folder, "scenes") as data:
        by_file = rows_by_file(data)
        held_out = is_held_out(list(by_file))
        chosen = [name for name in by_file if held_out[name]]
        chosen = chosen[:: max(1, len(chosen) // limit)][:limit] if limit else chosen
        for name in chosen:
            yield judged_scene(data.image(name), by_file[name])


def judged_scene(image: Image, rows: list[dict[str, str]]) -> JudgedScene:
    human, strong = row_boxes(rows, "human"), row_boxes(rows, "scrfd", SURE)
    faint = row_boxes(rows, "scrfd", FAINT, SURE)
    faces = human if len(human) else strong
    ignored = np.concatenate((faint, strong)) if len(human) else faint
    if len(faces) and len(ignored):
        ignored = ignored[iou_matrix(ignored, faces).max(1) < MATCH_IOU]
    labelled = np.concatenate([row_boxes(rows, origin) for origin in ("human", "scrfd", "yunet")])
    yunet, known = row_boxes(rows, "yunet", YUNET_SURE), np.concatenate((faces, ignored))
    if len(yunet) and len(known):
        yunet = yunet[iou_matrix(yunet, known).max(1) < MATCH_IOU]
    truth = Truth(inside(faces, image), inside(ignored, image))
    return JudgedScene(image, truth, labelled, inside(yunet, image))


def row_boxes(rows: list[dict[str, str]], origin: str, low: float = 0.0, high: float = 2.0) -> Floats:
    chosen = [r for r in rows if r["origin"] == origin and low <= float(r["score"] or 1) < high]
    boxes = [[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in chosen]
    return np.array(boxes, np.float32).reshape(-1, 4)


def inside(boxes: Floats, image: Image) -> Floats:
    """Boxes cut at the picture's edge, so that nobody is judged by what cannot be seen."""
    height, width = image.shape[:2]
    return np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)


def painted(scene: JudgedScene, number: int) -> Image:
    """The scene with every labelled box painted over, the same way each time."""
    rng = np.random.default_rng((SEED, number))
    return paint_over(rng, Scene("", scene.image, scene.labelled, scene.labelled[:0])).image


class OursAtOwnSize:
    """Our detector at each image's own size, rounded up to whole strides: nothing is shrunk or enlarged.

    It runs in eager torch, whose numbers the engines are held to: held-out scenes have 46 sizes, and an
    engine would have to be built for each.
    """

    def __init__(self, checkpoint: Path) -> None:
        network, self.spec = load_checkpoint(checkpoint)
        self._module = Deployed(network, self.spec)

    def __call__(self, image: Image) -> Detections:
        width, height = (-(-side // 32) * 32 for side in image.shape[1::-1])
        engine = EagerEngine(self._module, self.spec, (width, height))
        return detect(engine, [image], min_score=LOW_SCORE)[0]


class YuNet:
    """YuNet-n through OpenCV, at each image's own size."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise MienError(
                f"{path}: YuNet is missing; set yunet=FILE, or leave it out to measure ours alone"
            )
        self._model = cv2.FaceDetectorYN.create(path, "", (320, 320), LOW_SCORE)

    def rows(self, image: Image) -> Floats:
        """(N, 15): x, y, width, height, five landmarks, score; best first."""
        self._model.setInputSize(image.shape[1::-1])
        _, rows = self._model.detect(image)
        rows = np.zeros((0, 15), np.float32) if rows is None else rows
        return rows[np.argsort(-rows[:, 14], kind="stable")]

    def __call__(self, image: Image) -> Detections:
        rows = self.rows(image)
        boxes = np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), 1)
        return Detections(inside(boxes, image), rows[:, 14].copy())
