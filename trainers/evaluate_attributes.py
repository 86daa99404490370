"""`mien evaluate attributes` and `mien evaluate ffhq`: age, gender and emotion, by group, and how sure is how right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.geometry import Floats
from engines.runtime import Engine
from engines.spec import EMOTIONS, ModelSpec
from engines.stages import AttributeScores, classify, classify_both_sides
from trainers import plots
from trainers.attribute_sets import LabelledFaces, View, ferplus, ffhq, recurring, utkface
from trainers.bootstrap import Figure, bootstrap, mean_figure, share, wilson
from trainers.calibration import (
    best_temperature,
    expected_calibration_error,
    load_temperatures,
    single_highest,
    tempered,
    two_classes,
)
from trainers.expression_metrics import balanced_accuracy
from trainers.faces import FaceFinder, shown
from trainers.ffhq import FfhqConfig, thumbnails
from trainers.label_checks import checked_rows, word
from trainers.measuring import EvaluationConfig, Figures, checkpoint_of, engine
from trainers.zips import ImageZip

RACES = ("White", "Black", "Asian", "Indian", "other")
RACE = word("race", *map(str, range(len(RACES))), "")
GROUP_SIZE = 20  # fewer faces are no group


@dataclass(frozen=True, slots=True)
class Measured:
    """Faces with their labels, and what the engine says of them."""

    faces: LabelledFaces
    scores: AttributeScores


def measured(classifier: Engine, faces: LabelledFaces) -> Measured:
    """As seen once, like each of a track's looks."""
    return Measured(faces, classify(classifier, as_fed(classifier, faces)))


def measured_from_both_sides(classifier: Engine, faces: LabelledFaces) -> Measured:
    """As stills are, and in the mean a track."""
    return Measured(faces, classify_both_sides(classifier, as_fed(classifier, faces)))


def as_fed(classifier: Engine, faces: LabelledFaces) -> np.ndarray:
    """The faces' crops as the engine is fed them: of stored ones their middle."""
    return shown(faces.crops, classifier.input_size[0]) if view_of(classifier) is None else faces.crops


def view_of(classifier: Engine) -> View | None:
    """What an engine that sees more than the attribute crop is to be shown; None: stored crops hold it."""
    room = classifier.spec.room
    return View(classifier.input_size[0], room) if room else None


def attribute_figures(config: EvaluationConfig) -> Figures:
    """UTKFace test: age and gender, by group. FER+ PrivateTest: emotion. FFHQ test: agreement with a machine.

    Raises MienError where the network was not trained on crops of faces.
    """
    finder, classifier = FaceFinder(engine(config, "landmarks")), engine(config, "attributes")
    classifier.spec.check_aligned()
    race = races_of(config.data)
    view = view_of(classifier)
    aged = measured(classifier, utkface(config, "test", finder, config.run, view))
    judged = measured(classifier, ferplus(config, "test", finder, config.run, view))
    figures = age_gender_rows("UTKFace test", aged)
    figures |= group_rows(race, aged)
    figures |= emotion_rows(judged)
    figures |= calibration_rows(config, classifier, finder, aged, judged)
    both = [measured_from_both_sides(classifier, each.faces) for each in (aged, judged)]
    figures |= rows_from_both_sides(*both)
    figures |= rows_without_recurring(config, judged, both[1])
    if (Path(config.data) / "ffhq.zip").is_file():
        figures |= agreement_rows(measured(classifier, ffhq(config, "test", finder, config.run, view)))
    if config.plots:
        draw(Path(config.plots), aged, judged)
    return figures


def ffhq_figures(config: EvaluationConfig) -> Figures:
    """The FFHQ recipe's network on FFHQ's test part, cropped as it was trained."""
    classifier = engine(config, "attributes")
    crop = load_ffhq_crop(config, classifier.spec)
    settings = FfhqConfig(
        data=config.data, limit=config.limit, crop=crop, input_size=classifier.input_size[0]
    )
    faces = thumbnails(settings, "test")
    found = Measured(faces, classify(classifier, faces.crops))
    both = Measured(faces, classify_both_sides(classifier, faces.crops))
    figures = agreement_rows(found) | agreement_rows(both, ", from both sides")
    if config.plots:
        folder = Path(config.plots)
        plots.ages(folder / "ffhq_age.png", faces.age, found.scores.age_years, faces.female)
        table = confusion_table(faces.emotion.argmax(1), found.scores.emotion.argmax(1))
        title = f"Emotion, {len(faces)} of FFHQ test, by machine-made labels"
        plots.confusion(folder / "ffhq_emotions.png", table, EMOTIONS, title)
    return figures


def load_ffhq_crop(config: EvaluationConfig, spec: ModelSpec) -> str:
    """How the checkpoint's training cropped: by its spec, by its metadata where the spec is older than the question."""
    import json

    if spec.room or not spec.aligned:
        return "wide" if spec.aligned else "thumbnail"
    path = checkpoint_of(config, "attributes") / "metadata.json"
    return json.loads(path.read_text(encoding="utf-8"))["crop"] if path.is_file() else "attribute"


def age_gender_rows(name: str, found: Measured) -> Figures:
    faces, scores = found.faces, found.scores
    years = np.abs(scores.age_years - faces.age)
    return {
        f"age MAE, {len(years)} of {name}": mean_figure(years, unit="years", digits=2),
        f"age within 5 years, {name}": share(years <= 5),
        f"gender accuracy, {name}": share(right_gender(found)),
    }


def rows_from_both_sides(aged: Measured, judged: Measured) -> Figures:
    label, found = judged.faces.emotion.argmax(1), judged.scores.emotion
    return age_gender_rows("UTKFace test, from both sides", aged) | {
        "emotion accuracy (8), from both sides": share(found.argmax(1) == label),
        "emotion KL(votes, found), from both sides": mean_figure(divergence(judged.faces.emotion, found)),
        "emotion ECE, from both sides": calibration_figure(found, label),
    }


def rows_without_recurring(config: EvaluationConfig, once: Measured, both: Measured) -> Figures:
    """Emotion on the pictures of which FER+'s other parts have no near-duplicate: training may have seen those."""
    with ImageZip(config.data, "ferplus") as data:
        again = recurring(data)
    alone = np.array([name not in again for name in once.faces.names])
    if alone.all() or not alone.any():
        return {}
    label = once.faces.emotion.argmax(1)
    name = f"emotion accuracy (8), the {alone.sum()} without a near-duplicate in other parts"
    return {
        f"{name}{how}": share((found.scores.emotion.argmax(1) == label)[alone])
        for how, found in (("", once), (", from both sides", both))
    }


def right_gender(found: Measured) -> np.ndarray:
    return (found.scores.female > 0.5) == (found.faces.female > 0.5)


def races_of(folder: str) -> dict[str, int]:
    """UTKFace's race of each picture of which it is told. Raises MienError for one that is none."""
    with ImageZip(folder, "utkface") as data:
        return {row["file"]: int(row["race"]) for row in checked_rows(data, [RACE]) if row.get("race")}


def group_rows(race: Mapping[str, int], found: Measured) -> Figures:
    """Age error and gender accuracy of every race and gender group of UTKFace, and the gap from best to worst."""
    races = np.array([race.get(name, -1) for name in found.faces.names])
    years, right = np.abs(found.scores.age_years - found.faces.age), right_gender(found)
    groups = {
        f"{name}, {gender}": (races == number) & (found.faces.female == value)
        for number, name in enumerate(RACES)
        for value, gender in ((1.0, "female"), (0.0, "male"))
    }
    groups = {name: rows for name, rows in groups.items() if rows.sum() >= GROUP_SIZE}
    figures: Figures = {}
    for name, rows in groups.items():
        age, told = mean_figure(years[rows], unit="years", digits=2), share(right[rows], digits=1)
        figures[f"UTKFace test, {name} ({rows.sum()})"] = f"age MAE {age}, gender {told}"
    if groups:
        members = list(groups.values())
        figures["spread over these groups, age MAE"] = spread(years, members, unit="years", digits=2)
        figures["spread over these groups, gender accuracy"] = spread(right, members, unit="%", digits=1)
    return figures


def spread(values: np.ndarray, groups: Sequence[np.ndarray], *, unit: str, digits: int) -> str:
    """From the lowest to the highest mean of the groups, masks (N,) of the values (N,), and how far apart they are.

    The interval is of that distance, faces drawn; chance alone drives groups apart, so it leans to the large side.
    """
    inside = np.any(groups, axis=0)
    value, group = values[inside].astype(float), np.argmax(groups, axis=0)[inside]

    def ends(rows: np.ndarray) -> tuple[float, float]:
        counts = np.bincount(group[rows], minlength=len(groups))
        means = np.bincount(group[rows], value[rows], len(groups))[counts > 0] / counts[counts > 0]
        return float(means.min()), float(means.max())

    apart = bootstrap(lambda rows: float(np.ptp(ends(rows))), len(value), unit=unit, digits=digits)
    low, high = (Figure(end, unit=unit, digits=digits) for end in ends(np.arange(len(value))))
    return f"{low} to {high}, {apart} apart"


def emotion_rows(found: Measured) -> Figures:
    """Against the voters: accuracy on the majority, KL from the votes, each class's recall (Wilson) and their mean."""
    votes, emotion = found.faces.emotion, found.scores.emotion
    label, told = votes.argmax(1), emotion.argmax(1)
    figures: Figures = {
        f"emotion accuracy (8), {len(label)} of FER+ PrivateTest": share(told == label),
        "emotion KL(votes, found)": mean_figure(divergence(votes, emotion)),
    }
    for number, name in enumerate(EMOTIONS):
        rows = label == number
        if not rows.any():
            continue
        figures[f"recall of {name} ({rows.sum()})"] = wilson(
            int((told[rows] == number).sum()), int(rows.sum()), digits=1
        )
    figures["mean recall over the classes"] = bootstrap(
        lambda rows: balanced_accuracy(told[rows], label[rows]), len(label), unit="%", digits=1
    )
    return figures


def divergence(votes: Floats, found: Floats) -> Floats:
    """Kullback-Leibler, in nats, of each face (N,)."""
    ratio = np.log(np.maximum(votes, 1e-9) / np.maximum(found, 1e-9))
    total: Floats = (votes * ratio).sum(1)
    return total


def calibration_rows(
    config: EvaluationConfig, classifier: Engine, finder: FaceFinder, aged: Measured, judged: Measured
) -> Figures:
    """ECE as the engine speaks, and as it was before the temperature (or would be with it, where it has none)."""
    folded = load_temperatures(checkpoint_of(config, "attributes"))
    label, found = judged.faces.emotion.argmax(1), judged.scores.emotion
    if folded:
        before, after, temperature = tempered(found, 1 / folded["emotion"]), found, folded["emotion"]
        said = "folded into the network"
    else:
        held = measured(classifier, ferplus(config, "val", finder, config.run, view_of(classifier)))
        clear = single_highest(held.faces.emotion)
        temperature = best_temperature(held.scores.emotion[clear], held.faces.emotion[clear].argmax(1))
        before, after = found, tempered(found, temperature)
        said = "not in the network yet"
    gender, female = two_classes(aged.scores.female), (aged.faces.female > 0.5).astype(int)
    return {
        "emotion temperature, from FER+ PublicTest": f"{temperature:.3f}, {said}",
        "emotion ECE before": calibration_figure(before, label),
        "emotion ECE after": calibration_figure(after, label),
        "emotion KL(votes, found) before": mean_figure(divergence(judged.faces.emotion, before)),
        "gender ECE, UTKFace test": calibration_figure(gender, female),
    }


def calibration_figure(probabilities: Floats, label: np.ndarray) -> Figure:
    """ECE; its interval leans to the large side, since chance alone makes a gap in every bin."""
    return bootstrap(lambda rows: expected_calibration_error(probabilities[rows], label[rows]), len(label))


def agreement_rows(found: Measured, how: str = "") -> Figures:
    """FFHQ's labels were made by a machine: agreement with it is not accuracy."""
    faces, scores = found.faces, found.scores
    years = np.abs(scores.age_years - faces.age)
    same = scores.emotion.argmax(1) == faces.emotion.argmax(1)
    name = f"{len(faces)} of FFHQ test, machine-made labels{how}"
    return {
        f"age, mean difference, {name}": mean_figure(years, unit="years", digits=2),
        f"gender agreement, {name}": share(right_gender(found)),
        f"emotion agreement, {name}": share(same),
    }


def confusion_table(label: np.ndarray, told: np.ndarray, classes: int = len(EMOTIONS)) -> np.ndarray:
    """Counts (C, C): true by found."""
    return np.bincount(label * classes + told, minlength=classes**2).reshape(classes, classes)


def draw(folder: Path, aged: Measured, judged: Measured) -> None:
    label, found = judged.faces.emotion.argmax(1), judged.scores.emotion
    plots.ages(folder / "age.png", aged.faces.age, aged.scores.age_years, aged.faces.female)
    title = f"Emotion, {len(label)} of FER+ PrivateTest, {(found.argmax(1) == label).mean():.1%} right"
    plots.confusion(folder / "emotions.png", confusion_table(label, found.argmax(1)), EMOTIONS, title)
    female = (aged.faces.female > 0.5).astype(int)
    sets = {"emotion, FER+": (found, label), "gender, UTKFace": (two_classes(aged.scores.female), female)}
    plots.reliability(folder / "reliability.png", sets, "How sure, and how often right")
