"""Held-out figures of every model, through the engines as the daemon uses them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.geometry import Floats, Image, recognition_crop
from engines.runtime import Engine, load_engine
from engines.stages import Detections, classify, detect, embed, find_landmarks
from trainers import attributes, recognition
from trainers.detection_metrics import Truth, judge
from trainers.faces import FaceFinder, central_face
from trainers.landmarks import LandmarksConfig, load_samples
from trainers.options import override
from trainers.scenes import held_out_truths, load_scenes
from trainers.verification import read_pairs, tar_at_far, ten_fold_accuracy
from trainers.zips import SEED, ImageZip

MIN_FACE = 32.0  # px of the longer side
SCENE_SIZE = (512, 512)  # every scene fits, unshrunk
VIDEOS = ("podium_640x360", "three_faces_1080x360")
STREAM_SIZE = (640, 384)
LOW_SCORE = 0.05
WANTED_PRECISION = 0.985


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    data: str = "data"
    weights: str = ""  # a folder of checkpoints; none: the shipped ones
    video: str = ""  # a folder with the two test videos; none: they are left out
    yunet: str = ""  # the YuNet ONNX file whose boxes the videos are judged by
    backend: str = "auto"
    limit: int = 0  # images of each set; 0 is all


def evaluate_recipe(recipe: str, settings: Sequence[str]) -> dict[str, str]:
    """Figure names and values, as they go into the model's card."""
    config = override(EvaluationConfig(), settings)
    measure: dict[str, Callable[[EvaluationConfig], dict[str, str]]] = {
        "detector": detector_figures,
        "landmarks": landmark_figures,
        "recognition": recognition_figures,
        "attributes": attribute_figures,
    }
    return measure[recipe](config)


def engine(config: EvaluationConfig, model: str, size: tuple[int, int] | None = None) -> Engine:
    weights = Path(config.weights) if config.weights else None
    return load_engine(model, backend=config.backend, size=size, weights=weights, progress=print)


def interval(values: np.ndarray, rounds: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def percent(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{values.mean():.2%} ({low:.2%} to {high:.2%})"


def detector_figures(config: EvaluationConfig) -> dict[str, str]:
    """Recall and precision at the default threshold, and AP, on held-out scenes and on the test videos."""
    finder = engine(config, "detector", SCENE_SIZE)
    threshold = finder.spec.threshold or 0.5
    found, truths = [], []
    for image, truth in held_out_truths(config.data, config.limit):
        found.append(detect(finder, [image], min_score=LOW_SCORE)[0])
        truths.append(truth)
    figures = {"default threshold": f"{threshold:.3f}"}
    figures |= _judged(f"{len(found)} held-out scenes against SCRFD >= 0.5", found, truths, threshold)
    if config.video and config.yunet:
        stream = engine(config, "detector", STREAM_SIZE)
        for name in VIDEOS:
            found, truths = video_truths(config, name, stream)
            figures |= _judged(f"{name} against YuNet >= 0.6", found, truths, threshold)
    return figures


def _judged(name: str, found: list[Detections], truths: list[Truth], threshold: float) -> dict[str, str]:
    figures = {}
    for side in (16.0, MIN_FACE, 64.0):
        judged = judge(found, truths, side)
        precision, recall = judged.precision_recall(threshold)
        figures[f"{name}, faces >= {side:.0f} px"] = (
            f"recall {recall:.3f}, precision {precision:.3f}, AP {judged.average_precision():.3f} "
            f"({judged.num_faces} faces)"
        )
    return figures


def video_truths(config: EvaluationConfig, name: str, stream: Engine) -> tuple[list[Detections], list[Truth]]:
    """Every fifth frame: ours at the stream's size, YuNet's at the picture's own."""
    import av

    found, truths = [], []
    with av.open(Path(config.video) / f"{name}.mp4") as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % 5:
                continue
            image = frame.to_ndarray(format="bgr24")
            yunet = cv2.FaceDetectorYN.create(config.yunet, "", image.shape[1::-1], 0.3)
            _, rows = yunet.detect(image)
            rows = np.zeros((0, 15), np.float32) if rows is None else rows
            boxes = np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), 1)
            sure = rows[:, 14] >= 0.6
            truths.append(Truth(boxes[sure], boxes[~sure]))
            found.append(detect(stream, [image], min_score=LOW_SCORE)[0])
    return found, truths


def landmark_figures(config: EvaluationConfig) -> dict[str, str]:
    """NME over the faces found, and FR@10 % counting misses, from our own detector's boxes."""
    samples = load_samples(LandmarksConfig(data=config.data, limit=config.limit), "val")
    detector = engine(config, "detector", (160, 160))
    boxes = [central_face(detector, image, min_score=0.2) for image in samples.images]
    seen = [i for i, box in enumerate(boxes) if box is not None]
    points, _ = find_landmarks(
        engine(config, "landmarks"), [samples.images[i] for i in seen], np.stack([boxes[i] for i in seen])
    )
    truth = samples.points[seen]
    error = np.linalg.norm(points - truth, axis=2).mean(1) / np.linalg.norm(truth[:, 0] - truth[:, 1], axis=1)
    failed = np.ones(len(boxes))
    failed[seen] = error > 0.10
    return {
        f"NME, {len(boxes)} faces of MTFL val": percent(error),
        "FR@10 %, misses counted": percent(failed),
        "faces missed by the detector": f"{1 - len(seen) / len(boxes):.2%}",
    }


def faces_through_chain(
    config: EvaluationConfig, images: list[Image], size: tuple[int, int], fallback: Floats
) -> tuple[Floats, int]:
    """Landmarks (M, 5, 2) by our detector and landmark network; the fallback box where no face is found."""
    detector = engine(config, "detector", size)
    boxes = [central_face(detector, image, min_score=0.2) for image in images]
    missed = sum(box is None for box in boxes)
    filled = np.stack([fallback if box is None else box for box in boxes])
    points, _ = find_landmarks(engine(config, "landmarks"), images, filled)
    return points, missed


def embed_chain(config: EvaluationConfig, images: list[Image]) -> tuple[Floats, int]:
    """(M, D) embeddings of 128x128 face pictures through the whole chain; and how many faces were missed."""
    points, missed = faces_through_chain(config, images, (128, 128), recognition.LFW_BOX)
    crops = np.stack([recognition_crop(i, p) for i, p in zip(images, points, strict=True)])
    return embed(engine(config, "embedder"), crops), missed


def recognition_figures(config: EvaluationConfig) -> dict[str, str]:
    with ImageZip(config.data, "lfw") as data:
        pairs, same, fold = read_pairs(data)
        if config.limit:
            chosen = np.arange(0, len(pairs), max(1, len(pairs) // config.limit))
            pairs, same, fold = [pairs[i] for i in chosen], same[chosen], fold[chosen]
        names = sorted({name for pair in pairs for name in pair})
        embeddings, missed = embed_chain(config, [data.image(name) for name in names])
    row = {name: i for i, name in enumerate(names)}
    left, right = (embeddings[[row[pair[k]] for pair in pairs]] for k in (0, 1))
    similarity = (left * right).sum(1)
    accuracy, error = ten_fold_accuracy(similarity, same, fold)
    default = engine(config, "embedder").spec.threshold or 0.5
    return {
        "LFW 10-fold accuracy": f"{accuracy:.2%} +- {error:.2%} (standard error over folds)",
        "LFW TAR@FAR=1e-2": f"{tar_at_far(similarity, same, 1e-2)[0]:.3f}",
        "LFW TAR@FAR=1e-3": f"{tar_at_far(similarity, same, 1e-3)[0]:.3f}",
        "LFW faces missed by the detector": f"{missed} of {len(names)}",
        "default threshold (cosine)": f"{default:.3f}",
        "LFW at the default threshold: false matches, true matches": (
            f"{(similarity[~same] >= default).mean():.2%}, {(similarity[same] >= default).mean():.2%}"
        ),
    }


def attribute_figures(config: EvaluationConfig) -> dict[str, str]:
    """UTKFace test: age and gender. FER+ PrivateTest: accuracy against the majority, KL to the votes."""
    settings = attributes.AttributesConfig(data=config.data, limit=config.limit)
    finder = FaceFinder(engine(config, "landmarks"))
    classifier = engine(config, "attributes")
    faces = attributes.utkface(settings, "test", finder)
    scores = classify(classifier, np.ascontiguousarray(recognition.inner(faces.crops)))
    years = np.abs(scores.age_years - faces.age)
    gender = (scores.female > 0.5) == (faces.female > 0.5)
    low, high = interval(years)
    votes = attributes.ferplus(settings, "test", finder)
    emotion = classify(classifier, np.ascontiguousarray(recognition.inner(votes.crops))).emotion
    right = emotion.argmax(1) == votes.emotion.argmax(1)
    divergence = (votes.emotion * np.log(np.maximum(votes.emotion, 1e-9) / np.maximum(emotion, 1e-9))).sum(1)
    return {
        f"age MAE, {len(years)} of UTKFace test": f"{years.mean():.2f} years ({low:.2f} to {high:.2f})",
        "gender accuracy, UTKFace test": percent(gender),
        f"emotion accuracy (8), {len(right)} of FER+ PrivateTest": percent(right),
        "emotion KL(votes, found)": f"{divergence.mean():.3f}",
    }


def choose_threshold(recipe: str, config: object, weights: Path) -> float:
    """Detector: the lowest that is right in 98.5 % of the faces >= 32 px it finds in 400 training scenes, since a
    false alarm is worse than a miss, which the next frame mends. Embedder: a false-match rate of 1e-3 on the
    validation identities.
    """
    limit = getattr(config, "limit", 0)
    settings = EvaluationConfig(data=config.data, backend="eager", limit=limit)  # type: ignore[attr-defined]
    if recipe == "recognition":
        return _embedder_threshold(settings, weights)
    finder = load_engine("detector", backend="eager", size=SCENE_SIZE, weights=weights)
    scenes = load_scenes(settings.data, limit or 400)
    found = [detect(finder, [scene.image], min_score=LOW_SCORE)[0] for scene in scenes]
    judged = judge(found, [Truth(scene.faces, scene.doubtful) for scene in scenes], MIN_FACE)
    steps = np.arange(LOW_SCORE, 0.95, 0.01)
    both = np.array([judged.precision_recall(step) for step in steps])
    right = np.flatnonzero(both[:, 0] >= WANTED_PRECISION)
    return round(float(steps[right[0] if len(right) else both.prod(1).argmax()]), 3)


def _embedder_threshold(config: EvaluationConfig, weights: Path) -> float:
    """The shipped detector and landmarks find the faces; the new embedder judges them."""
    with ImageZip(config.data, "celeba_faces") as data:
        rows = [row for row in data.rows() if recognition.is_validation(int(row["identity"]))][
            : config.limit or None
        ]
        images = [data.image(row["file"]) for row in rows]
    points, _ = faces_through_chain(config, images, (128, 128), recognition.LFW_BOX)
    crops = np.stack([recognition_crop(i, p) for i, p in zip(images, points, strict=True)])
    embeddings = embed(load_engine("embedder", backend="eager", weights=weights), crops)
    identity = np.array([int(row["identity"]) for row in rows])
    i, j = np.triu_indices(len(rows), 1)
    other = identity[i] != identity[j]
    if not other.any():
        return 0.5
    return round(tar_at_far((embeddings @ embeddings.T)[i, j], ~other, 1e-3)[1], 3)
