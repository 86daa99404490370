"""`mien evaluate recognition`: LFW's pairs, and open-set identification of persons nobody trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.geometry import Floats
from trainers import plots
from trainers.bootstrap import Figure, bootstrap, share
from trainers.measuring import Embedded, EvaluationConfig, Figures, embed_chain, engine
from trainers.recognition_sets import validation_rows
from trainers.verification import (
    OpenSet,
    open_set,
    pairs_of,
    read_pairs,
    tar_at_far,
    ten_fold_accuracy,
    ten_fold_right,
)
from trainers.zips import ImageZip

FALSE_ALARMS = 0.01
PERSON_ROUNDS = 300  # draws of persons: each looks at all their pairs again


def recognition_figures(config: EvaluationConfig) -> Figures:
    """Everything through our own detector, landmarks and alignment; each picture as seen once, and from both sides.

    The latter is how faces are enrolled and compared; a track's looks are from alternating sides.
    """
    for name, read in (("lfw", read_pairs), ("celeba_faces", validation_rows)):
        with ImageZip(config.data, name) as data:
            read(data)  # what is wrong with it is told before either is measured
    default = engine(config, "embedder").spec.threshold or 0.5
    figures, lfw = lfw_figures(config, default)
    seen, identity = validation_embeddings(config)
    similarity, same, _ = pairs_of(seen.once, identity)
    figures |= identification_rows(seen, identity)
    figures |= threshold_rows(seen, identity, default)
    if config.plots:
        sets = {"LFW pairs": lfw, "validation identities": (similarity, same)}
        plots.verification(Path(config.plots) / "verification.png", sets, default)
    return figures


@dataclass(frozen=True, slots=True)
class LfwPairs:
    """P pairs as the chain sees them: cosine (P,) as seen once, and from both sides, whether one person (P,),
    fold (P,); names, and faces missed.
    """

    similarity: Floats
    from_both_sides: Floats
    same: np.ndarray
    fold: np.ndarray
    names: list[str]
    missed: int


def lfw_pairs(config: EvaluationConfig) -> LfwPairs:
    """`limit` takes pairs evenly."""
    with ImageZip(config.data, "lfw") as data:
        pairs, same, fold = read_pairs(data)
        if config.limit:
            chosen = np.arange(0, len(pairs), max(1, len(pairs) // config.limit))
            pairs, same, fold = [pairs[i] for i in chosen], same[chosen], fold[chosen]
        names = sorted({name for pair in pairs for name in pair})
        seen = embed_chain(config, [data.image(name) for name in names])
    row = {name: i for i, name in enumerate(names)}
    left, right = ([row[pair[k]] for pair in pairs] for k in (0, 1))
    once, both = ((each[left] * each[right]).sum(1) for each in (seen.once, seen.both))
    return LfwPairs(once, both, same, fold, names, seen.missed)


def lfw_figures(config: EvaluationConfig, default: float) -> tuple[Figures, tuple[Floats, np.ndarray]]:
    """The intervals are over pairs."""
    lfw = lfw_pairs(config)
    similarity, same, fold = lfw.similarity, lfw.same, lfw.fold
    _, error = ten_fold_accuracy(similarity, same, fold)
    figures: Figures = {
        f"LFW 10-fold accuracy, {len(same)} pairs": accuracy_figure(similarity, same, fold),
        "LFW standard error over folds": f"{error:.2%}",
        "LFW TAR@FAR=1e-2": tar_figure(similarity, same, 1e-2),
        "LFW TAR@FAR=1e-3": tar_figure(similarity, same, 1e-3),
        "LFW from both sides: 10-fold accuracy": accuracy_figure(lfw.from_both_sides, same, fold),
        "LFW from both sides: TAR@FAR=1e-3": tar_figure(lfw.from_both_sides, same, 1e-3),
        "LFW faces missed by the detector": f"{lfw.missed} of {len(lfw.names)}",
        "default threshold (cosine)": f"{default:.3f}",
        "LFW at the default threshold: false matches": share(similarity[~same] >= default),
        "LFW at the default threshold: true matches": share(similarity[same] >= default),
    }
    return figures, (similarity, same)


def accuracy_figure(similarity: Floats, same: np.ndarray, fold: np.ndarray) -> Figure:
    told = share(ten_fold_right(similarity, same, fold))
    return Figure(ten_fold_accuracy(similarity, same, fold)[0], told.low, told.high, "%", 2)


def tar_figure(similarity: Floats, same: np.ndarray, far: float) -> Figure:
    return bootstrap(lambda rows: tar_at_far(similarity[rows], same[rows], far)[0], len(same))


def validation_embeddings(config: EvaluationConfig) -> tuple[Embedded, np.ndarray]:
    """All M pictures of the CelebA identities whose number ends in 7, and whose each is (M,)."""
    with ImageZip(config.data, "celeba_faces") as data:
        rows = sorted(validation_rows(data), key=lambda row: row["file"])[: config.limit or None]
        seen = embed_chain(config, [data.image(row["file"]) for row in rows])
    return seen, np.array([int(row["identity"]) for row in rows])


def identification_rows(seen: Embedded, identity: np.ndarray) -> Figures:
    """DIR@FAR=1 %, persons drawn for the interval; see trainers.verification.open_set for the protocol.

    Probes are seen once, like a track's first look.
    """
    people, counts = np.unique(identity, return_counts=True)
    label = f"open set, {len(people)} validation identities: DIR@FAR=1 %"
    if (counts > 3).sum() < 4:
        return {label: "too few identities with more than three pictures"}
    deals = open_set(seen.once, identity)

    def drawn(rate: Callable[[OpenSet, np.ndarray], float], deals: tuple[OpenSet, ...] = deals) -> Figure:
        def measure(rows: np.ndarray) -> float:
            times = np.bincount(rows, minlength=len(people)).astype(float)
            return float(np.mean([rate(deal, times[np.searchsorted(people, deal.person)]) for deal in deals]))

        return bootstrap(measure, len(people), unit="%", digits=1, rounds=PERSON_ROUNDS)

    def found(deal: OpenSet, weight: np.ndarray) -> float:
        return deal.detection_and_identification(FALSE_ALARMS, weight)

    return {
        label: drawn(found),
        "the same, enrolled from both sides": drawn(found, open_set(seen.once, identity, seen.both)),
        "the same, nearest enrolled person right (no threshold)": drawn(nearest_right),
    }


def nearest_right(deal: OpenSet, weight: np.ndarray) -> float:
    """The share of enrolled persons' probes whose nearest is that person; `weight` (Q,) is how often each counts."""
    known = weight * deal.enrolled
    return float((known * deal.right).sum() / known.sum()) if known.any() else float("nan")


def threshold_rows(seen: Embedded, identity: np.ndarray, default: float) -> Figures:
    """False and true matches at the default threshold over all pairs of the validation pictures; persons drawn.

    It was chosen on these pairs, as seen once: the false ones are as many as were wanted.
    """
    name = "validation identities at the default threshold (chosen on them)"
    once = pairs_of(seen.once, identity)
    enrolled = pairs_of(seen.both, identity, seen.once)
    return _matches(f"{name}, {len(once[0])} pairs", once, identity, default) | _matches(
        f"{name}, one picture of each pair from both sides", enrolled, identity, default
    )


def _matches(
    name: str, pairs: tuple[Floats, np.ndarray, np.ndarray], identity: np.ndarray, default: float
) -> Figures:
    people = np.unique(identity)
    similar, same, pair = pairs
    column = np.searchsorted(people, identity)
    table = np.zeros((2, 2, len(people), len(people)))  # matched?, one person?: how many pairs of two persons
    a, b = column[pair[:, 0]], column[pair[:, 1]]
    np.add.at(table, ((similar >= default).astype(int), same.astype(int), a, b), 1)

    def rate(one_person: int) -> Figure:
        matched, missed = table[1, one_person], table[0, one_person]

        def measure(rows: np.ndarray) -> float:
            drawn = np.bincount(rows, minlength=len(people)).astype(float)
            # A pair of two persons is drawn as often as both are; a person's own pairs as often as the person.
            weight = np.diag(drawn) if one_person else np.outer(drawn, drawn)
            hits, total = (matched * weight).sum(), ((matched + missed) * weight).sum()
            return float(hits / total) if total else float("nan")

        return bootstrap(measure, len(people), unit="%", digits=3 - 2 * one_person, rounds=PERSON_ROUNDS)

    if not (~same).any() or not same.any():
        return {}
    return {f"{name}: false matches": rate(0), f"{name}: true matches": rate(1)}
