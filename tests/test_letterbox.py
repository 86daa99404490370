"""What a detector sees of a picture of any size, and whether its boxes come back to where they were."""

import cv2
import numpy as np
import pytest

from engines.geometry import GREY, Fit, fit, location_centres
from engines.image_ops import HOST
from engines.image_ops_torch import TorchOps
from engines.stages import detect
from tests.fakes import STRIDES, spec


class SpotDetector:
    """A box of 30 px around the centre of mass of what is brighter than grey, to a fraction of a pixel."""

    backend = "fake"

    def __init__(self, size):
        self.input_size = size
        self.spec = spec("detector", size, ("scores", "sides"), threshold=0.5)

    def __call__(self, batch):
        centres, strides = location_centres(self.input_size, STRIDES)
        middle = centre_of_mass(np.asarray(batch)[0])
        at = int(np.abs(centres - middle).sum(1).argmin())
        scores, sides = np.zeros((1, len(centres)), np.float32), np.zeros((1, len(centres), 4), np.float32)
        scores[0, at] = 0.9
        sides[0, at] = np.concatenate((centres[at] - middle + 15, middle - centres[at] + 15)) / strides[at]
        return {"scores": scores, "sides": sides}


def centre_of_mass(image):
    """x and y in px from the picture's corner."""
    weight = image[..., 0].astype(float) - GREY
    ys, xs = np.indices(weight.shape) + 0.5
    return np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("ops", [HOST, TorchOps("cpu")], ids=["host", "torch"])
@pytest.mark.parametrize(
    "shape", [(1943, 2591), (3023, 4031), (1083, 1283), (480, 854), (563, 1000), (720, 1280), (200, 300)]
)
@pytest.mark.parametrize("size", [(640, 384), (1280, 736)])
def test_a_box_comes_back_to_where_it_was_in_a_picture_of_any_size(ops, shape, size):
    image = np.full((*shape, 3), GREY, np.uint8)
    height, width = shape
    radius = height // 12
    cv2.circle(image, (width - 2 * radius, height - 2 * radius), radius, (250, 250, 250), -1, cv2.LINE_AA)

    (found,) = detect(SpotDetector(size), ops.take([image]), ops=ops)

    middle = found.boxes_xyxy[0].reshape(2, 2).mean(0)
    np.testing.assert_allclose(middle, centre_of_mass(image), atol=0.15)


def test_each_axis_has_the_scale_by_which_it_is_shrunk():
    assert Fit(2, (507, 380), (507 / 2588, 380 / 1940)) == fit((1943, 2591, 3), (640, 380))
    assert Fit(0, (640, 360), (0.5, 0.5)) == fit((720, 1280, 3), (640, 384))
    assert Fit(1, (640, 360), (1 / 3, 1 / 3)) == fit((1080, 1920, 3), (640, 384))
    assert Fit(0, (80, 100), (1.0, 1.0)) == fit((100, 80, 3), (640, 384))
