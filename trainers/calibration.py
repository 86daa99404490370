"""Probabilities that mean what they say: one temperature a head, folded into its last layer.

Guo et al. 2017, "On calibration of modern neural networks". N pictures, C classes.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engines.backends.eager import EagerEngine
from engines.deploy import Deployed
from engines.geometry import Floats
from engines.networks import AttributesNet
from engines.spec import ModelSpec
from engines.stages import classify
from trainers.attribute_sets import AttributeData, ferplus, ferplus_rows, utkface, utkface_rows
from trainers.faces import FaceFinder, shown
from trainers.zips import ImageZip

CALIBRATION_FILE = "calibration.json"
NUM_BINS = 15


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """(N, C) probabilities with their logits divided by a temperature: above 1 is less sure."""
    logits = np.log(np.maximum(probabilities, 1e-12)) / temperature
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)


def negative_log_likelihood(probabilities: Floats, label: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(label)), label]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def best_temperature(probabilities: Floats, label: np.ndarray) -> float:
    """The temperature of the highest likelihood, among 0.25 to 4 in steps of 1 %."""
    steps = np.exp(np.arange(np.log(0.25), np.log(4), 0.01))
    worth = [negative_log_likelihood(tempered(probabilities, step), label) for step in steps]
    return round(float(steps[int(np.argmin(worth))]), 3)


def calibration_bins(probabilities: Floats, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of 15 equal steps of confidence: mean confidence, accuracy, and how many pictures; nan where none."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == label
    place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(place, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(place, confidence, NUM_BINS) / count
        accuracy = np.bincount(place, right, NUM_BINS) / count
    return sure, accuracy, count


def expected_calibration_error(probabilities: Floats, label: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 bins, weighted by their pictures."""
    sure, accuracy, count = calibration_bins(probabilities, label)
    return float(np.nansum(np.abs(sure - accuracy) * count) / max(1, count.sum()))


def two_classes(female: Floats) -> Floats:
    """Probability of female (N,) -> (N, 2): male, female."""
    return np.stack((1 - female, female), 1)


def single_highest(votes: Floats) -> np.ndarray:
    """Which rows (N,) of the votes (N, C) have one winner."""
    return (votes == votes.max(1, keepdims=True)).sum(1) == 1


def check_held_out(folder: str) -> None:
    """Raises MienError where a part is missing that `calibrate` will need when training is over."""
    with ImageZip(folder, "ferplus") as data:
        ferplus_rows(data, "val")
    with ImageZip(folder, "utkface") as data:
        utkface_rows(data, "val")


def calibrate(network: AttributesNet, spec: ModelSpec, config: AttributeData) -> dict[str, float]:
    """Fit a temperature for emotion on FER+ PublicTest (majority) and for gender on UTKFace val, and fold them in.

    The last layer of each head is divided by its temperature, so every engine built from the network is
    calibrated and knows nothing of it. Returns the temperatures.
    """
    engine = EagerEngine(Deployed(network, spec), spec, spec.input_size)
    finder = FaceFinder()
    faces = ferplus(config, "val", finder, config.run)
    clear = single_highest(faces.emotion)
    found = classify(engine, shown(faces.crops[clear], spec.input_size[0])).emotion
    temperatures = {"emotion": best_temperature(found, faces.emotion[clear].argmax(1))}
    faces = utkface(config, "val", finder, config.run)
    female = classify(engine, shown(faces.crops, spec.input_size[0])).female
    temperatures["gender"] = best_temperature(two_classes(female), (faces.female > 0.5).astype(int))
    divide(network.emotion[-1], temperatures["emotion"])
    divide(network.gender[-1], temperatures["gender"])
    return temperatures


def divide(layer: nn.Module, temperature: float) -> None:
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight /= temperature
        layer.bias /= temperature


def save_temperatures(checkpoint: Path, temperatures: dict[str, float]) -> None:
    """Beside the weights, so that `mien evaluate` can also say how the network was before."""
    (checkpoint / CALIBRATION_FILE).write_text(json.dumps(temperatures) + "\n", encoding="utf-8")


def load_temperatures(checkpoint: Path) -> dict[str, float]:
    """What was folded into the checkpoint's heads; empty when nothing was."""
    path = checkpoint / CALIBRATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
