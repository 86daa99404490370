"""Held-out figures of every model, through the engines as the daemon uses them; and the default thresholds."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engines.geometry import recognition_crop
from engines.runtime import load_engine
from engines.stages import detect, embed
from trainers.bootstrap import Figure
from trainers.detection_metrics import Truth, judge
from trainers.label_checks import pictures
from trainers.measuring import STILL_BOX, EvaluationConfig, Figures, faces_through_chain, holder_of
from trainers.options import override
from trainers.recipes import MODEL_OF
from trainers.recognition_sets import validation_rows
from trainers.scenes import has_scenes, load_scenes, spoilt
from trainers.teacher import TeacherDetector
from trainers.verification import pairs_of, tar_at_far
from trainers.wider import load_wider
from trainers.zips import SEED, ImageZip

MIN_FACE = 32.0  # px of the longer side
SCENE_SIZE = (512, 512)  # every scene fits, unshrunk
LOW_SCORE = 0.05
WANTED_PRECISION = 0.98


def evaluate_recipe(recipe: str, settings: Sequence[str]) -> Figures:
    """Figure names and values, as they go into the model's card. Raises UsageError for weights without its model."""
    config = override(EvaluationConfig(), settings)
    if config.weights:
        config = dataclasses.replace(config, weights=holder_of(config.weights, MODEL_OF[recipe]))
    return measure_of(recipe)(config)


def figures_json(figures: Figures) -> str:
    """Every figure with its value, its interval where it has one, and as it is written."""
    rows = {
        name: {"text": str(value)} | (dataclasses.asdict(value) if isinstance(value, Figure) else {})
        for name, value in figures.items()
    }
    return json.dumps(rows, indent=1)


def measure_of(recipe: str) -> Callable[[EvaluationConfig], Figures]:
    if recipe == "detector":
        from trainers.evaluate_detector import detector_figures

        return detector_figures
    if recipe == "landmarks":
        from trainers.evaluate_landmarks import landmark_figures

        return landmark_figures
    if recipe == "recognition":
        from trainers.evaluate_embedder import recognition_figures

        return recognition_figures
    if recipe == "expression":
        from trainers.expression_metrics import expression_figures

        return expression_figures
    from trainers.evaluate_attributes import attribute_figures, ffhq_figures

    return ffhq_figures if recipe == "ffhq" else attribute_figures


def choose_threshold(recipe: str, config: object, weights: Path) -> float:
    """Detector: the lowest that is right in 98 % of the faces >= 32 px it finds in 400 training scenes, and in dark,
    blurred copies of them where the teacher is there to label those; a false alarm is worse than a miss, which the
    next frame mends. Embedder: a false-match rate of 1e-3 on the validation identities.
    """
    limit = getattr(config, "limit", 0)
    settings = EvaluationConfig(data=config.data, backend="eager", limit=limit)  # type: ignore[attr-defined]
    if recipe == "recognition":
        return _embedder_threshold(settings, weights)
    finder = load_engine("detector", backend="eager", size=SCENE_SIZE, weights=weights)
    wider = getattr(config, "wider", "")
    alone = wider and not has_scenes(settings.data)
    scenes = load_wider(wider, limit=limit or 400) if alone else load_scenes(settings.data, limit or 400)
    if yunet := getattr(config, "yunet", ""):
        teacher = TeacherDetector(yunet)
        scenes += [spoilt(np.random.default_rng((SEED, i)), scene, teacher) for i, scene in enumerate(scenes)]
    found = [detect(finder, [scene.image], min_score=LOW_SCORE)[0] for scene in scenes]
    judged = judge(found, [Truth(scene.faces, scene.doubtful) for scene in scenes], MIN_FACE)
    steps = np.arange(LOW_SCORE, 0.95, 0.01)
    both = np.array([judged.precision_recall(step) for step in steps])
    right = np.flatnonzero(both[:, 0] >= WANTED_PRECISION)
    return round(float(steps[right[0] if len(right) else both.prod(1).argmax()]), 3)


def _embedder_threshold(config: EvaluationConfig, weights: Path) -> float:
    """The shipped detector and landmarks find the faces; the new embedder judges them."""
    if not (Path(config.data) / "celeba_faces.zip").is_file():  # it was trained without identities
        return 0.5
    with ImageZip(config.data, "celeba_faces") as data:
        rows = validation_rows(data)[: config.limit or None]
        images = list(pictures(data, [row["file"] for row in rows]))
    if not images:
        return 0.5
    points, _ = faces_through_chain(config, images, (128, 128), STILL_BOX)
    crops = np.stack([recognition_crop(i, p) for i, p in zip(images, points, strict=True)])
    embeddings = embed(load_engine("embedder", backend="eager", weights=weights), crops)
    similarity, same, _ = pairs_of(embeddings, np.array([int(row["identity"]) for row in rows]))
    if not (~same).any() or not same.any():
        return 0.5
    return round(tar_at_far(similarity, same, 1e-3)[1], 3)
