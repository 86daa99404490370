import cv2
import numpy as np
import pytest

from daemon.config import QualityConfig
from daemon.quality import assess, interocular, sharpness, weight, yaw
from engines.geometry import TEMPLATE

SETTINGS = QualityConfig()
FRAME = (640, 480)
BOX = np.array([100, 100, 190, 220], np.float32)


def face_crop(contrast=45.0, brightness=120.0, blur=0.0):
    """An aligned crop with the detail of a photograph: noise whose strength falls with its fineness."""
    random = np.random.default_rng(0)
    grey = np.zeros((112, 112), np.float32)
    for side in (4, 8, 16, 32, 64, 112):
        grey += cv2.resize(random.normal(0, 1 / side, (side, side)).astype(np.float32), (112, 112))
    grey = (grey - grey.mean()) / grey.std() * contrast + brightness
    if blur:
        grey = cv2.GaussianBlur(grey, (0, 0), blur)
    return np.dstack([np.clip(grey, 0, 255).astype(np.uint8)] * 3)


def landmarks(scale=1.0, nose=0.0):
    points = TEMPLATE * scale + 100
    points[2, 0] += nose * scale
    return points.astype(np.float32)


def assessed(box=BOX, score=0.9, points=None, crop=None):
    points = landmarks() if points is None else points
    return assess(box, score, points, face_crop() if crop is None else crop, FRAME, SETTINGS)


def test_a_good_look_is_usable_and_has_no_reasons():
    quality = assessed()

    assert (quality.usable, quality.reasons) == (True, ())
    assert quality.interocular_px == 35.2


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        ({"points": landmarks(scale=0.3)}, "too_small"),
        ({"crop": face_crop(blur=5)}, "blurred"),
        ({"points": landmarks(nose=14)}, "averted"),
        ({"crop": face_crop(brightness=12, contrast=15)}, "bad_light"),
        ({"crop": face_crop(brightness=250, contrast=20)}, "bad_light"),
        ({"crop": face_crop(contrast=5)}, "bad_light"),
        ({"box": np.array([0, 100, 90, 220], np.float32)}, "cut_off"),
        ({"box": np.array([560, 400, 640, 480], np.float32)}, "cut_off"),
        ({"score": 0.45}, "low_score"),
    ],
)
def test_a_bad_look_says_why(look, reason):
    quality = assessed(**look)

    assert (False, (reason,)) == (quality.usable, quality.reasons)


def test_several_reasons_come_in_the_order_of_the_contract():
    reasons = assessed(points=landmarks(scale=0.3, nose=14), score=0.1).reasons

    assert reasons == ("too_small", "averted", "low_score")


def test_yaw_is_zero_in_front_and_one_over_an_eye_and_does_not_mind_tilt():
    across = landmarks()
    across[2] = across[:2].mean(0)
    over_eye = across.copy()
    over_eye[2] = across[1] + [0, 20]
    turn = cv2.getRotationMatrix2D((150, 150), 25, 1.7)
    tilted = (over_eye @ turn[:, :2].T + turn[:, 2]).astype(np.float32)

    assert (pytest.approx(yaw(across), abs=1e-3), pytest.approx(yaw(over_eye), abs=0.02)) == (0, 1)
    assert yaw(over_eye) == pytest.approx(yaw(tilted), abs=0.01)


def test_sharpness_falls_with_blur_and_does_not_mind_contrast():
    def of(**look):
        return sharpness(face_crop(**look)[16:96, 16:96, 0].astype(np.float32))

    assert of() > of(blur=1) > of(blur=2) > of(blur=4)
    assert of() == pytest.approx(of(contrast=20), rel=0.05)


def test_better_looks_weigh_more():
    def of(points=None, score=0.9):
        points = landmarks() if points is None else points
        return weight(assessed(points=points, score=score), points, score)

    assert of() > of(landmarks(scale=0.5)) > of(landmarks(scale=0.3))
    assert of() > of(landmarks(nose=8)) > 0
    assert of(score=0.9) > of(score=0.6)
    assert of(landmarks(scale=10)) <= 1


def test_eyes_are_as_far_apart_as_they_are():
    assert interocular(np.array([[0, 0], [30, 40], [0, 0], [0, 0], [0, 0]], np.float32)) == 50
