"""`mien evaluate detector`: ours and YuNet side by side, on held-out scenes, WIDER FACE and the test videos."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from engines.runtime import Engine
from engines.stages import Detections, detect
from trainers import plots
from trainers.bootstrap import Figure, bootstrap, mean_figure
from trainers.detection_metrics import Judged, Truth, judge
from trainers.detector_truths import (
    LOW_SCORE,
    Find,
    JudgedScene,
    OursAtOwnSize,
    YuNet,
    held_out_scenes,
    inside,
    painted,
)
from trainers.measuring import EvaluationConfig, Figures, checkpoint_of, engine
from trainers.scenes import has_scenes
from trainers.wider import wider_scenes

SIDES = (16.0, 32.0, 64.0)  # px of the longer side, from which faces count
ALARM_SIDE, ALARM_RECALL = 32.0, 0.90
VIDEOS = ("podium_640x360", "three_faces_1080x360")
STREAM_SIZE = (640, 384)
OURS, STREAM, YUNET = "ours", "ours at 640x384", "YuNet-n"


def detector_figures(config: EvaluationConfig) -> Figures:
    """AP by size, false alarms at equal recall, and recall and precision at the default threshold.

    On the held-out scenes, and on WIDER FACE's val part where `wider` names it, which does without scenes.zip.
    """
    finders = detectors(config)
    stream = engine(config, "detector", STREAM_SIZE)
    threshold = stream.spec.threshold or 0.5
    figures: Figures = {"default threshold": f"{threshold:.3f}"}
    if has_scenes(config.data) or not config.wider:
        scenes = held_out_scenes(config.data, config.limit)
        figures |= compared(config, "held-out scenes", scenes, finders, threshold)
    if config.wider:
        figures |= compared(config, "WIDER FACE val", wider_judged(config), finders, threshold)
    if config.video and config.yunet:
        figures |= video_rows(config, stream, threshold)
    return figures


def detectors(config: EvaluationConfig) -> dict[str, Find]:
    stream = engine(config, "detector", STREAM_SIZE)
    finders: dict[str, Find] = {
        OURS: OursAtOwnSize(checkpoint_of(config, "detector")),
        STREAM: lambda image: detect(stream, [image], min_score=LOW_SCORE)[0],
    }
    return finders | ({YUNET: YuNet(config.yunet)} if config.yunet else {})


def wider_judged(config: EvaluationConfig) -> Iterable[JudgedScene]:
    for scene in wider_scenes(config.wider, "val", limit=config.limit):
        truth = Truth(inside(scene.faces, scene.image), inside(scene.doubtful, scene.image))
        labelled = np.concatenate((scene.faces, scene.doubtful))
        yield JudgedScene(scene.image, truth, labelled, labelled[:0])


def compared(
    config: EvaluationConfig,
    name: str,
    scenes: Iterable[JudgedScene],
    finders: dict[str, Find],
    threshold: float,
) -> Figures:
    """Every detector on the same pictures, and again with every labelled box painted over."""
    found: dict[str, list[Detections]] = {key: [] for key in finders}
    blank: dict[str, list[Detections]] = {key: [] for key in finders}
    truths, lenient = [], []
    for number, scene in enumerate(scenes):
        truths.append(scene.truth)
        lenient.append(scene.lenient())
        covered = painted(scene, number)
        for key, find in finders.items():
            found[key].append(find(scene.image))
            blank[key].append(find(covered))
    judged = {key: {side: judge(f, truths, side) for side in SIDES} for key, f in found.items()}
    figures: Figures = {}
    for side in SIDES:
        figures |= precision_rows(f"{name}, faces >= {side:.0f} px", {k: j[side] for k, j in judged.items()})
        if any(len(kind.ignored) > len(strict.ignored) for kind, strict in zip(lenient, truths, strict=True)):
            again = {key: judge(f, lenient, side) for key, f in found.items()}
            label = f"{name}, boxes that only YuNet drew ignored, faces >= {side:.0f} px"
            figures |= precision_rows(label, again)
    nothing = [Truth(t.faces[:0], t.faces[:0]) for t in truths]
    for key in finders:
        empty = judge(blank[key], nothing, ALARM_SIDE)
        figures |= alarm_rows(f"{name}, {key}", judged[key][ALARM_SIDE], empty)
    figures |= at_threshold(f"{name}, ours at the default threshold", found[OURS], truths, threshold)
    if config.plots:
        picture = Path(config.plots) / f"precision_recall_{name.split()[0].lower()}.png"
        plots.precision_recall(picture, name, judged, threshold)
    return figures


def precision_rows(name: str, judged: dict[str, Judged]) -> Figures:
    """AP at IoU 0.5 of each detector, and the difference from YuNet over the same draws of images."""
    num = judged[OURS].num_images
    figures: Figures = {}
    for key, one in judged.items():
        label = f"AP of {key}, {num} {name} ({one.num_faces} faces)"
        figures[label] = bootstrap(lambda rows, one=one: one.average_precision(one.weights(rows)), num)
    if YUNET in judged:
        ours, theirs = judged[OURS], judged[YUNET]

        def lead(rows: np.ndarray) -> float:
            weight = ours.weights(rows)
            return ours.average_precision(weight) - theirs.average_precision(weight)

        figures[f"AP, ours less YuNet's, {name}"] = bootstrap(lead, num)
    return figures


def alarm_rows(name: str, judged: Judged, painted_over: Judged) -> Figures:
    """False positives >= 32 px per image at the threshold of recall 0.90, with faces and with none left."""
    threshold = judged.threshold_at_recall(ALARM_RECALL)
    label = f"{name}: false alarms an image at recall {ALARM_RECALL:.2f}"
    if threshold is None:
        return {label: "this recall is not reached"}
    return {
        f"{label} (score {threshold:.2f})": mean_figure(judged.false_alarms(threshold)),
        f"{label}, the same with all faces painted over": mean_figure(painted_over.false_alarms(threshold)),
    }


def at_threshold(name: str, found: list[Detections], truths: list[Truth], threshold: float) -> Figures:
    """Recall, precision and AP as text, a row for each size."""
    figures: Figures = {}
    for side in SIDES:
        judged = judge(found, truths, side)

        def figure(which: int, judged: Judged = judged) -> Figure:
            return bootstrap(
                lambda rows: judged.precision_recall(threshold, judged.weights(rows))[which],
                judged.num_images,
            )

        precision = bootstrap(lambda rows, j=judged: j.average_precision(j.weights(rows)), judged.num_images)
        figures[f"{name}, faces >= {side:.0f} px"] = (
            f"recall {figure(1)}, precision {figure(0)}, AP {precision} ({judged.num_faces} faces)"
        )
    return figures


def video_rows(config: EvaluationConfig, stream: Engine, threshold: float) -> Figures:
    """The test videos against YuNet; the rows say which frames, where it is not every fifth."""
    which = {1: ", every frame", 5: ""}.get(config.video_step, f", one frame in {config.video_step}")
    strict = "" if config.faint_ignored else ", its 0.3 to 0.6 no faces"
    figures: Figures = {}
    for name in VIDEOS:
        found, truths = video_truths(config, name, stream)
        figures |= at_threshold(f"{name}{which} against YuNet >= 0.6{strict}", found, truths, threshold)
    return figures


def video_truths(config: EvaluationConfig, name: str, stream: Engine) -> tuple[list[Detections], list[Truth]]:
    """One frame in `video_step`: ours at the stream's size; YuNet's, at its own, count from 0.6.

    Its answers from 0.3 on are ignored, or with `faint_ignored=false` no faces.
    """
    import av

    yunet = YuNet(config.yunet)
    found, truths = [], []
    with av.open(Path(config.video) / f"{name}.mp4") as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % config.video_step:
                continue
            image = frame.to_ndarray(format="bgr24")
            seen = yunet(image)
            boxes, sure = seen.boxes_xyxy[seen.scores >= 0.3], seen.scores[seen.scores >= 0.3] >= 0.6
            faint = boxes[~sure] if config.faint_ignored else boxes[:0]
            truths.append(Truth(boxes[sure], faint))
            found.append(detect(stream, [image], min_score=LOW_SCORE)[0])
    return found, truths
