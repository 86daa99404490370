"""Recall, precision and average precision of a detector, with boxes that count neither way."""

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
    """All detections of a set that count, best first: score (D,) and right (D,); and how many faces there are."""

    scores: np.ndarray
    right: np.ndarray
    num_faces: int
    num_images: int

    def precision_recall(self, threshold: float) -> tuple[float, float]:
        chosen = self.scores >= threshold
        hits = int(self.right[chosen].sum())
        return hits / max(1, int(chosen.sum())), hits / max(1, self.num_faces)

    def average_precision(self) -> float:
        """Area under the precision envelope over recall (PASCAL VOC 2010 and later)."""
        hits = np.cumsum(self.right)
        recall = hits / max(1, self.num_faces)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        return float((np.diff(recall, prepend=0.0) * precision).sum())

    def threshold_at_recall(self, recall: float) -> float | None:
        """The highest score at which so much is found, or None."""
        enough = np.flatnonzero(np.cumsum(self.right) >= recall * self.num_faces)
        return float(self.scores[enough[0]]) if len(enough) else None


def judge(found: list[Detections], truths: list[Truth], min_side: float) -> Judged:
    """Match each image's detections, best first, to faces whose longer side is at least `min_side` px.

    Smaller faces are ignored, and so are unmatched detections that are smaller themselves.
    """
    scores, right, num_faces = [], [], 0
    for detections, truth in zip(found, truths, strict=True):
        large = _sides(truth.faces) >= min_side
        faces = truth.faces[large]
        ignored = np.concatenate((truth.faces[~large], truth.ignored))
        num_faces += len(faces)
        hit, counts = _match(detections.boxes_xyxy, faces, ignored, min_side)
        scores.append(detections.scores[counts])
        right.append(hit[counts])
    flat_scores, flat_right = np.concatenate(scores), np.concatenate(right)
    order = np.argsort(-flat_scores, kind="stable")
    return Judged(flat_scores[order], flat_right[order], num_faces, len(found))


def _sides(boxes: Floats) -> np.ndarray:
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
    return hit, hit | ~(beside | (_sides(boxes) < min_side))
