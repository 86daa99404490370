"""Recall, precision, average precision and false alarms of a detector, with boxes that count neither way."""

from dataclasses import dataclass

import numpy as np

from engines.geometry import Floats, iou_matrix
from engines.stages import Detections

MATCH_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Truth:
    """Boxes to be found (N, 4), and boxes that may be found or not (M, 4)."""

    faces: Floats
    ignored: Floats


@dataclass(frozen=True, slots=True)
class Judged:
    """All detections of a set that count, best first: score (D,), right (D,) and image (D,); faces of each image (I,).

    Where a method takes `weight` (I,), an image counts so often: how the bootstrap draws images again.
    """

    scores: np.ndarray
    right: np.ndarray
    image: np.ndarray
    faces: np.ndarray

    @property
    def num_faces(self) -> int:
        return int(self.faces.sum())

    @property
    def num_images(self) -> int:
        return len(self.faces)

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Images drawn (any number) -> how often each was (I,)."""
        return np.bincount(rows, minlength=self.num_images)

    def precision_recall(self, threshold: float, weight: np.ndarray | None = None) -> tuple[float, float]:
        weight = np.ones(self.num_images) if weight is None else weight
        counted = weight[self.image] * (self.scores >= threshold)
        hits = float((counted * self.right).sum())
        return hits / max(1.0, float(counted.sum())), hits / max(1.0, float((self.faces * weight).sum()))

    def curve(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Precision envelope and recall (D,), at each detection, best first."""
        weight = np.ones(self.num_images) if weight is None else weight
        counted = weight[self.image]
        hits, total = np.cumsum(counted * self.right), np.cumsum(counted)
        precision = hits / np.maximum(total, 1)
        recall = hits / max(1.0, float((self.faces * weight).sum()))
        return np.maximum.accumulate(precision[::-1])[::-1], recall

    def average_precision(self, weight: np.ndarray | None = None) -> float:
        """Area under the precision envelope over recall (PASCAL VOC 2010 and later)."""
        precision, recall = self.curve(weight)
        return float((np.diff(recall, prepend=0.0) * precision).sum())

    def threshold_at_recall(self, recall: float) -> float | None:
        """The highest score at which so much is found, or None."""
        enough = np.flatnonzero(np.cumsum(self.right) >= recall * self.num_faces)
        return float(self.scores[enough[0]]) if len(enough) else None

    def false_alarms(self, threshold: float) -> np.ndarray:
        """How many detections of each image (I,) reach the threshold and are wrong."""
        wrong = ~self.right & (self.scores >= threshold)
        return np.bincount(self.image[wrong], minlength=self.num_images)


def judge(found: list[Detections], truths: list[Truth], min_side: float) -> Judged:
    """Match each image's detections, best first, to faces whose longer side is at least `min_side` px.

    Smaller faces are ignored, and so are unmatched detections that are smaller themselves.
    """
    scores, right, image, num_faces = [], [], [], []
    for i, (detections, truth) in enumerate(zip(found, truths, strict=True)):
        large = sides(truth.faces) >= min_side
        faces = truth.faces[large]
        ignored = np.concatenate((truth.faces[~large], truth.ignored))
        num_faces.append(len(faces))
        hit, counts = _match(detections.boxes_xyxy, faces, ignored, min_side)
        scores.append(detections.scores[counts])
        right.append(hit[counts])
        image.append(np.full(int(counts.sum()), i))
    flat_scores, flat_right, flat_image = (np.concatenate(part) for part in (scores, right, image))
    order = np.argsort(-flat_scores, kind="stable")
    return Judged(flat_scores[order], flat_right[order], flat_image[order], np.array(num_faces))


def sides(boxes: Floats) -> np.ndarray:
    """The longer side of each box (N, 4) -> (N,)."""
    return (boxes[:, 2:] - boxes[:, :2]).max(1) if len(boxes) else np.zeros(0)


def _match(boxes: Floats, faces: Floats, ignored: Floats, min_side: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each box (best first): whether it finds a face, and whether it counts at all."""
    hit = np.zeros(len(boxes), bool)
    free = np.ones(len(faces), bool)
    overlap = iou_matrix(boxes, faces) if len(faces) else np.zeros((len(boxes), 0))
    for i in range(len(boxes)):
        open_overlap = np.where(free, overlap[i], 0)
        if len(faces) and open_overlap.max() >= MATCH_IOU:
            free[int(open_overlap.argmax())] = False
            hit[i] = True
    beside = (
        iou_matrix(boxes, ignored).max(1) >= MATCH_IOU
        if len(ignored) and len(boxes)
        else np.zeros(len(boxes), bool)
    )
    return hit, hit | ~(beside | (sides(boxes) < min_side))
