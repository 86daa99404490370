"""Verification on LFW: ten folds of 600 pairs, and TAR at a fixed false accept rate."""

import numpy as np

from engines.geometry import Floats
from trainers.zips import ImageZip


def read_pairs(data: ImageZip) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """File pairs, whether they are one person (P,), and the fold of each (P,). Huang et al. 2007, view 2."""
    lines = data.text("pairs.txt").splitlines()
    folds, per_fold = (int(v) for v in lines[0].split())
    pairs, same, fold = [], [], []
    for i, line in enumerate(lines[1:]):
        parts = line.split()
        if len(parts) == 3:
            parts = [parts[0], parts[1], parts[0], parts[2]]
        pairs.append((f"{parts[0]}_{int(parts[1]):04d}.webp", f"{parts[2]}_{int(parts[3]):04d}.webp"))
        same.append(parts[0] == parts[2])
        fold.append(i // (2 * per_fold))
    assert len(set(fold)) == folds
    return pairs, np.array(same), np.array(fold)


def ten_fold_accuracy(similarity: Floats, same: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over folds; each fold's threshold is the best of the other nine."""
    scores = []
    for k in np.unique(fold):
        rest = fold != k
        threshold = best_threshold(similarity[rest], same[rest])
        scores.append(((similarity[~rest] >= threshold) == same[~rest]).mean())
    return float(np.mean(scores)), float(np.std(scores) / np.sqrt(len(scores)))


def best_threshold(similarity: Floats, same: np.ndarray) -> float:
    """The threshold of highest accuracy."""
    order = np.argsort(-similarity, kind="stable")
    right = np.concatenate(([0], np.cumsum(np.where(same[order], 1, -1))))
    k = int(right.argmax())
    values = np.concatenate(([similarity[order[0]] + 1e-3], similarity[order]))
    return float((values[k] + values[min(k + 1, len(values) - 1)]) / 2)


def tar_at_far(similarity: Floats, same: np.ndarray, far: float) -> tuple[float, float]:
    """True accept rate, and the threshold, at which the share of impostor pairs accepted is at most `far`."""
    impostors = np.sort(similarity[~same])[::-1]
    threshold = float(impostors[min(int(far * len(impostors)), len(impostors) - 1)])
    return float((similarity[same] > threshold).mean()), threshold
