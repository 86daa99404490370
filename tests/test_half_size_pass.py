"""The detector looks at every picture twice: at its size, and at half of it for faces too large otherwise."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines.backends.eager import EagerEngine
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.geometry import detector_locations, iou_matrix
from engines.runtime import WEIGHTS, load_engine
from engines.spec import ModelSpec
from engines.stages import detect


@dataclass
class CoarseEngine:
    """Answers at one location of the pass at half size, with a box of the given side."""

    side: float
    input_size: tuple[int, int] = (640, 352)
    spec = ModelSpec("detector", "detector", "", {}, (640, 352), ("scores", "sides"), threshold=0.5)

    def __call__(self, batch):
        centres, strides, coarse = detector_locations(self.input_size)
        at = np.flatnonzero(coarse & (strides == 64))[14]
        scores = np.zeros((len(batch), len(centres)), np.float32)
        sides = np.zeros((len(batch), len(centres), 4), np.float32)
        scores[:, at], sides[:, at] = 0.9, self.side / 2 / 64
        return {"scores": scores, "sides": sides}


def test_the_pass_at_half_size_answers_for_large_faces_only():
    image = np.zeros((352, 640, 3), np.uint8)

    assert [] == detect(CoarseEngine(100), [image])[0].boxes_xyxy.tolist()
    assert [[188, 0, 388, 196]] == detect(CoarseEngine(200), [image])[0].boxes_xyxy.tolist()


@pytest.mark.parametrize("size", [(640, 384), (640, 352), (96, 32)])
def test_the_detector_answers_at_every_location_of_both_passes(size):
    network, spec = load_checkpoint(WEIGHTS / "detector")
    outputs = EagerEngine(Deployed(network, spec), spec, size)(np.zeros((2, size[1], size[0], 3), np.uint8))

    assert (2, len(detector_locations(size)[0])) == outputs["scores"].shape


def test_the_coarse_answers_are_those_of_all_strides_but_the_finest():
    network, _ = load_checkpoint(WEIGHTS / "detector")
    images = torch.rand(1, 3, 64, 96)

    with torch.inference_mode():
        whole, coarse = network(images), network.coarse(images)

    for all_strides, some in zip(whole, coarse, strict=True):
        assert torch.equal(all_strides[:, 8 * 12 :], some)


@pytest.mark.parametrize("height", [60, 150, 320])
def test_a_face_is_found_at_every_size_that_fits_the_input(height):
    portrait = cv2.imread(str(Path(__file__).parents[1] / "samples" / "eileen_collins.jpg"))
    engine = load_engine("detector", backend="eager")
    known = detect(engine, [portrait])[0].boxes_xyxy[0]
    scale = height / (known[3] - known[1])
    centre = (known[:2] + known[2:]) / 2 * scale
    matrix = np.array([[scale, 0, 320 - centre[0]], [0, scale, 192 - centre[1]]])

    frame = cv2.warpAffine(portrait, matrix, (640, 384), borderMode=cv2.BORDER_REPLICATE)
    found = detect(engine, [frame])[0].boxes_xyxy

    expected = known * scale + np.tile([320, 192] - centre, 2)
    assert iou_matrix(found[:1], np.float32([expected]))[0, 0] > 0.6


DETECTOR = ModelSpec(
    "detector", "detector", "Detector", {"width": 8, "neck": 8}, (64, 32), ("scores", "sides"), threshold=0.5
)


@pytest.fixture(scope="module")
def small_detector(untrained):
    """Its picture at half size, 32x16, has to be padded."""
    return untrained(DETECTOR)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_detector_takes_pictures_one_by_one_at_a_size_whose_half_is_padded(
    small_detector, tmp_path, precision
):
    if precision == "int8":
        pytest.importorskip("nncf")
    options = {"backend": "openvino", "weights": small_detector, "cache": tmp_path / "cache"}
    engine = load_engine("detector", precision=precision, **options)
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)

    together, alone = engine(images), [engine(images[i : i + 1]) for i in range(3)]

    assert (3, 3) == tuple(len(values) for values in together.values())
    for name, values in together.items():
        assert np.array_equal(values, np.concatenate([each[name] for each in alone]))
        assert not np.array_equal(values[0], values[1])
