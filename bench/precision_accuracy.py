"""What an engine's precision costs in accuracy: the same held-out pictures through f32, bf16 and int8.

    python -m bench.precision_accuracy --data FOLDER [--models MODEL...] [--limit N] [--json FILE]

Whole chain in the precision named: LFW's pairs (embedder), landmarks of MTFL val, emotion on FER+ PrivateTest, age
and gender on UTKFace test (attributes), detector on held-out scenes at 640x384. FOLDER holds the sets that
`mien evaluate` reads. The last row says whether the change from the first precision is within what a default may cost.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engines.errors import MienError
from engines.stages import detect
from trainers.attribute_sets import ferplus, utkface
from trainers.detection_metrics import judge
from trainers.evaluate_attributes import measured, right_gender
from trainers.evaluate_embedder import lfw_pairs
from trainers.evaluate_landmarks import FAILED, PICTURE, face_errors, our_points
from trainers.faces import FaceFinder
from trainers.landmarks import LandmarksConfig, load_samples
from trainers.measuring import EvaluationConfig, engine
from trainers.scenes import held_out_truths
from trainers.verification import ten_fold_accuracy

LFW, NME, FER = "LFW 10-fold accuracy, %", "NME, MTFL val, %", "FER+ accuracy, %"
STREAM_SIZE, LOW_SCORE, SIDES = (640, 384), 0.05, (16.0, 32.0, 64.0)
Values = dict[str, float]


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    config = EvaluationConfig(data=str(options.data), backend=options.backend, limit=options.limit)
    found: dict[str, Values] = {}
    try:
        for precision in options.precisions:
            started = time.monotonic()
            with contextlib.redirect_stdout(sys.stderr):  # what engines tell while they are built
                found[precision] = accuracies(replace(config, precision=precision), options.models)
            print(f"{precision}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    except (MienError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(found)
    if options.json:
        verdicts = {name: verdict(found[options.precisions[0]], values) for name, values in found.items()}
        text = json.dumps({"limit": options.limit, "figures": found, "within": verdicts}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def accuracies(config: EvaluationConfig, models: Sequence[str]) -> Values:
    """The models' figures in the units of their names; `limit` takes that many of each set, in every precision."""
    return {name: value for model in models for name, value in MEASURES[model](config).items()}


def lfw(config: EvaluationConfig) -> Values:
    pairs = lfw_pairs(config)
    return {LFW: 100 * ten_fold_accuracy(pairs.similarity, pairs.same, pairs.fold)[0]}


def landmark_errors(config: EvaluationConfig) -> Values:
    samples = load_samples(LandmarksConfig(data=config.data, limit=config.limit), "val")
    find = our_points(config, PICTURE)
    errors = face_errors([find(image) for image in samples.images], samples.points)
    seen = np.isfinite(errors)
    return {NME: 100 * float(errors[seen].mean()), "FR@10 %, %": 100 * float((~(errors <= FAILED)).mean())}


def attribute_figures(config: EvaluationConfig) -> Values:
    finder, classifier = FaceFinder(engine(config, "landmarks")), engine(config, "attributes")
    aged = measured(classifier, utkface(config, "test", finder))
    judged = measured(classifier, ferplus(config, "test", finder))
    right = judged.scores.emotion.argmax(1) == judged.faces.emotion.argmax(1)
    return {
        FER: 100 * float(right.mean()),
        "UTKFace age MAE, years": float(np.abs(aged.scores.age_years - aged.faces.age).mean()),
        "UTKFace gender accuracy, %": 100 * float(right_gender(aged).mean()),
    }


def detector_precision(config: EvaluationConfig) -> Values:
    finder = engine(config, "detector", STREAM_SIZE)
    found, truths = [], []
    for image, truth in held_out_truths(config.data, config.limit):
        found.append(detect(finder, [image], min_score=LOW_SCORE)[0])
        truths.append(truth)
    return {
        f"detector AP, faces >= {side:.0f} px": judge(found, truths, side).average_precision()
        for side in SIDES
    }


MEASURES = {
    "embedder": lfw,
    "landmarks": landmark_errors,
    "attributes": attribute_figures,
    "detector": detector_precision,
}


def verdict(reference: Values, values: Values) -> dict[str, bool]:
    """Whether each figure that bounds a default, of those measured, is within its bound of the reference's."""
    within = {
        LFW: lambda value, other: value >= other - 0.2,
        NME: lambda value, other: value <= other * 1.02,
        FER: lambda value, other: value >= other - 0.5,
    }
    return {name: holds(values[name], reference[name]) for name, holds in within.items() if name in values}


def show(found: dict[str, Values]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", *found, "bound on the change")
    bounds = {LFW: "- 0.2 points", NME: "+ 2 % of its value", FER: "- 0.5 points"}
    reference = next(iter(found.values()))
    for name in reference:
        table.add_row(name, *(f"{values[name]:.3f}" for values in found.values()), bounds.get(name, ""))
    within = ("yes" if all(verdict(reference, values).values()) else "no" for values in found.values())
    table.add_row("within all bounds", *within, "")
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.precision_accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="the folder with the evaluation sets")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument(
        "--precisions", nargs="+", default=["f32", "bf16", "int8"], help="the first is compared with"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        metavar="MODEL",
        help=str([*MEASURES]),
    )
    parser.add_argument("--limit", type=int, default=0, help="pictures of each set; 0: all")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
