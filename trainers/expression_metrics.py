"""`mien evaluate expression`: accuracy, balanced accuracy, F1 and recalls on pictures whose labels people confirmed."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from engines.geometry import Floats
from engines.largest_face import face_crop, largest_face
from engines.runtime import Engine
from engines.spec import EXPRESSIONS
from engines.stages import express_both_sides
from trainers import plots
from trainers.bootstrap import Figure, bootstrap, share, wilson
from trainers.expression_crops import aligned, inner
from trainers.expression_data import DataOptions, Picture, labelled_pictures
from trainers.faces import batched
from trainers.measuring import EvaluationConfig, Figures, engine
from trainers.zips import ImageZip

CLASSES = len(EXPRESSIONS)
CONFIRMED = {"headline, FER test of >= 3 votes": 3, "FER test of >= 6 votes": 6}
THROUGH_DETECTOR = 800  # pictures that go through `mien classify`'s own way, detector first


def expression_figures(config: EvaluationConfig) -> Figures:
    """The FER-derived test pictures by confirmed votes, the union's test part, and how noisy its labels are.

    Each is judged together with its mirror image, as `mien classify` does it.
    """
    kind = "zips" if any(Path(config.data).glob("*.zip")) else "folders"
    pictures, parts = labelled_pictures(DataOptions(config.data, kind, config.limit))
    test = [picture for picture, part in zip(pictures, parts, strict=True) if part == "test"]
    classifier = engine(config, "expression")
    with tempfile.TemporaryDirectory() as scratch:
        crops = aligned(config.data, test, Path(config.run or scratch))
        found = np.concatenate(
            [express_both_sides(classifier, inner(crops[rows])) for rows in batched(range(len(test)), 32)]
        )
    labels = np.array([picture.label for picture in test])
    votes = np.array([picture.votes for picture in test])
    once = np.array([not picture.recurs for picture in test])
    figures: Figures = {}
    for name, least in CONFIRMED.items():
        if (votes >= least).any():
            figures |= class_rows(name, found[votes >= least], labels[votes >= least])
            rows = once & (votes >= least)
            if (
                0 < rows.sum() < (votes >= least).sum()
            ):  # the rest are like pictures left out of training and validation
                figures |= class_rows(
                    f"{name}, of which there is no near-duplicate", found[rows], labels[rows]
                )
            draw(config, f"expression-{least}-votes.png", found[votes >= least], labels[votes >= least], name)
    figures |= class_rows("union test", found, labels)
    draw(config, "expression-union.png", found, labels, "union test")
    figures |= noise_rows(test, found, labels)
    if kind == "zips":
        figures |= detected_rows(config, classifier, [p for p in test if p.votes >= 3])
    return figures


def class_rows(name: str, probabilities: Floats, labels: np.ndarray) -> Figures:
    """Accuracy, class-balanced accuracy and weighted F1 (bootstrap), and each class's recall (Wilson)."""
    found = probabilities.argmax(1)
    right = found == labels
    rows: Figures = {
        f"{name}: accuracy, {len(labels)} pictures": share(right),
        f"{name}: class-balanced accuracy": _drawn(balanced_accuracy, found, labels),
        f"{name}: weighted F1": _drawn(weighted_f1, found, labels),
    }
    for k, label in enumerate(EXPRESSIONS):
        mine = labels == k
        if mine.any():
            rows[f"{name}: recall of {label}, {mine.sum()} pictures"] = wilson(
                int(right[mine].sum()), int(mine.sum())
            )
    return rows


def _drawn(
    measure: Callable[[np.ndarray, np.ndarray], float], found: np.ndarray, labels: np.ndarray
) -> Figure:
    return bootstrap(
        lambda rows: measure(found[rows], labels[rows]), len(labels), unit="%", digits=2, rounds=300
    )


def balanced_accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the recalls of the classes that occur."""
    return float(np.mean([(found[labels == k] == k).mean() for k in np.unique(labels)]))


def weighted_f1(found: np.ndarray, labels: np.ndarray) -> float:
    scored = multiclass_f1_score(torch.from_numpy(found), torch.from_numpy(labels), CLASSES, "weighted")
    return float(scored)


def noise_rows(pictures: Sequence[Picture], probabilities: Floats, labels: np.ndarray) -> Figures:
    """How many labels are likely wrong, set by set: what accuracy on the union can at most tell."""
    sources = np.array([picture.source for picture in pictures])
    doubted = confidently_other(probabilities, labels)
    return {
        f"label noise by confident learning, {source}, {(sources == source).sum()} pictures": share(
            doubted[sources == source]
        )
        for source in sorted(set(sources))
    }


def confidently_other(probabilities: Floats, labels: np.ndarray) -> np.ndarray:
    """Whether each picture is as surely another class as that class's own pictures are on average.

    Northcutt et al. 2021, "Confident learning", sec. 3.1: the off-diagonal of the confident joint.
    """
    own = np.array(
        [
            probabilities[labels == k, k].mean() if (labels == k).any() else 1.1
            for k in range(probabilities.shape[1])
        ]
    )
    sure = np.where(probabilities >= own, probabilities, 0.0)
    return (sure.max(1) > 0) & (sure.argmax(1) != labels)


def detected_rows(config: EvaluationConfig, classifier: Engine, pictures: Sequence[Picture]) -> Figures:
    """The headline once more as `mien classify` sees the files: our detector finds the face, or the whole is taken."""
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, THROUGH_DETECTOR).astype(int))]
    detector, landmarks = engine(config, "detector", (640, 640)), engine(config, "landmarks")
    crops, missed = [], 0
    with ImageZip(config.data, "ferplus") as data:
        for picture in chosen:
            image = data.image(picture.name)
            points = largest_face(detector, landmarks, image)
            missed += points is None
            crops.append(face_crop(image, points))
    found = express_both_sides(classifier, np.stack(crops)).argmax(1)
    labels = np.array([picture.label for picture in chosen])
    return {
        f"headline through `mien classify`: accuracy, {len(chosen)} pictures": share(found == labels),
        "headline through `mien classify`: class-balanced accuracy": _drawn(balanced_accuracy, found, labels),
        "headline through `mien classify`: no face found, whole picture taken": f"{missed} of {len(chosen)}",
    }


def draw(config: EvaluationConfig, name: str, probabilities: Floats, labels: np.ndarray, title: str) -> None:
    """The confusion matrix, where pictures are asked for."""
    if config.plots:
        found = torch.from_numpy(probabilities.argmax(1))
        table = multiclass_confusion_matrix(found, torch.from_numpy(labels), CLASSES).numpy()
        plots.confusion(Path(config.plots) / name, table, EXPRESSIONS, f"Expression: {title}")
