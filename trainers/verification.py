"""Verification on pairs, and open-set identification among enrolled and unknown persons.

P pairs, M pictures, D embedding size; similarities are cosines.
"""

from dataclasses import dataclass

import numpy as np

from engines.errors import MienError
from engines.geometry import Floats
from trainers.zips import SEED, ImageZip

PAIRS_FILE = "pairs.txt"
GALLERY_PICTURES = 3  # of each enrolled person


def read_pairs(data: ImageZip) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """File pairs, whether they are one person (P,), and the fold of each (P,). Huang et al. 2007, view 2.

    Raises MienError naming the first line that is none, or how many pairs are missing.
    """
    lines = data.text(PAIRS_FILE).splitlines()
    try:
        folds, per_fold = (int(value) for value in lines[0].split())
    except (ValueError, IndexError):
        raise MienError(f"{data.path}: {PAIRS_FILE}: begins with how many folds and pairs: 10 300") from None
    pairs, same, fold = [], [], []
    for i, line in enumerate(lines[1:]):
        parts = line.split()
        if len(parts) == 3:
            parts = [parts[0], parts[1], parts[0], parts[2]]
        if len(parts) != 4 or not (parts[1] + parts[3]).isdecimal():
            raise MienError(
                f"{data.path}: {PAIRS_FILE}, line {i + 2}: {line!r} is no NAME N N or NAME N NAME N"
            )
        pairs.append((f"{parts[0]}_{int(parts[1]):04d}.webp", f"{parts[2]}_{int(parts[3]):04d}.webp"))
        same.append(parts[0] == parts[2])
        fold.append(i // (2 * per_fold))
    if len(pairs) != folds * 2 * per_fold:
        raise MienError(
            f"{data.path}: {PAIRS_FILE}: {len(pairs)} of {folds * 2 * per_fold} pairs; it is cut off"
        )
    return pairs, np.array(same), np.array(fold)


def ten_fold_right(similarity: Floats, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Whether each pair is told rightly (P,); each fold's threshold is the best of the other nine."""
    right = np.zeros(len(same), bool)
    for k in np.unique(fold):
        rest = fold != k
        threshold = best_threshold(similarity[rest], same[rest])
        right[~rest] = (similarity[~rest] >= threshold) == same[~rest]
    return right


def ten_fold_accuracy(similarity: Floats, same: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over folds."""
    right = ten_fold_right(similarity, same, fold)
    scores = [right[fold == k].mean() for k in np.unique(fold)]
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
    if not len(impostors) or len(impostors) == len(same):
        return float("nan"), float("nan")
    threshold = float(impostors[min(int(far * len(impostors)), len(impostors) - 1)])
    return float((similarity[same] > threshold).mean()), threshold


def pairs_of(
    embeddings: Floats, identity: np.ndarray, seconds: Floats | None = None
) -> tuple[Floats, np.ndarray, np.ndarray]:
    """All pairs of M pictures: similarity (P,), one person or two (P,), and the rows of each pair (P, 2).

    `seconds` (M, D) are the embeddings of the second picture of each pair, where they are others.
    """
    i, j = np.triu_indices(len(identity), 1)
    similarity = (embeddings @ (embeddings if seconds is None else seconds).T)[i, j]
    return similarity, identity[i] == identity[j], np.stack((i, j), 1)


@dataclass(frozen=True, slots=True)
class OpenSet:
    """Probes against a gallery: person (Q,), enrolled or not (Q,), best similarity (Q,), best is right (Q,)."""

    person: np.ndarray
    enrolled: np.ndarray
    best: Floats
    right: np.ndarray

    def detection_and_identification(self, false_alarms: float, weight: np.ndarray | None = None) -> float:
        """DIR: share of enrolled persons' probes found rightly, above the threshold that `false_alarms` of the
        unknown persons' probes pass. `weight` (Q,) is how often each probe counts.
        """
        weight = np.ones(len(self.best)) if weight is None else weight
        unknown, known = ~self.enrolled & (weight > 0), self.enrolled & (weight > 0)
        order = np.argsort(-self.best[unknown], kind="stable")
        passed = np.cumsum(weight[unknown][order]) / weight[unknown].sum()
        over = np.flatnonzero(passed > false_alarms)
        threshold = self.best[unknown][order][over[0]] if len(over) else -1.0
        found = self.right & (self.best > threshold)
        return float((found * weight)[known].sum() / weight[known].sum())


def open_set(
    embeddings: Floats, identity: np.ndarray, enrolled: Floats | None = None
) -> tuple[OpenSet, OpenSet]:
    """Half of the persons enrolled, the others unknown; and the halves changed over. Grother et al., NIST IR 8271.

    Persons with more than three pictures are dealt into two halves (seed 281). An enrolled person's
    gallery entry is the mean of the first three embeddings (in file order); the rest are probes. All
    pictures of the other half are probes of nobody enrolled. What is measured is the mean of both deals.
    `enrolled` (M, D) are the embeddings that gallery entries are made of, where they are others.
    """
    people, counts = np.unique(identity, return_counts=True)
    people = np.random.default_rng(SEED).permutation(people[counts > GALLERY_PICTURES])
    halves = people[::2], people[1::2]
    enrolled = embeddings if enrolled is None else enrolled
    return tuple(  # type: ignore[return-value]
        _probe(embeddings, enrolled, identity, known, unknown) for known, unknown in (halves, halves[::-1])
    )


def _probe(
    embeddings: Floats, enrolled: Floats, identity: np.ndarray, known: np.ndarray, unknown: np.ndarray
) -> OpenSet:
    rows = {person: np.flatnonzero(identity == person) for person in (*known, *unknown)}
    gallery = np.stack([enrolled[rows[person][:GALLERY_PICTURES]].mean(0) for person in known])
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    probes = np.concatenate(
        [rows[person][GALLERY_PICTURES:] for person in known] + [rows[p] for p in unknown]
    )
    similarity = embeddings[probes] @ gallery.T
    nearest = similarity.argmax(1)
    person = identity[probes]
    return OpenSet(person, np.isin(person, known), similarity.max(1), known[nearest] == person)
