import cv2
import numpy as np
import pytest

from daemon.scene import SceneWatch

RANDOM = np.random.default_rng(0)


def room(seed=0, light=1.0, noise=3.0, size=(640, 360)):
    """A picture with large shapes; BGR."""
    shapes = np.random.default_rng(seed).integers(30, 220, (5, 8, 3)).astype(np.uint8)
    image = cv2.resize(shapes, size, interpolation=cv2.INTER_CUBIC) * light
    return np.clip(image + RANDOM.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def is_cut(*images):
    watch = SceneWatch()
    return [watch.is_cut(image) for image in images]


def test_another_room_is_a_cut_and_the_first_picture_is_none():
    assert [False, False, True, False] == is_cut(room(), room(), room(seed=1), room(seed=1))


@pytest.mark.parametrize(
    "after",
    [room(light=0.4), room(light=1.4), np.roll(room(), 25, axis=1), room(noise=40)],
    ids=["light out", "light on", "pan", "noise"],
)
def test_the_same_room_is_no_cut(after):
    assert [False, False] == is_cut(room(), after)


def test_somebody_close_to_the_camera_is_no_cut():
    near = room()
    near[100:, 200:420] = 20

    assert [False, False] == is_cut(room(), near)


def test_noise_in_the_dark_is_no_cut():
    assert [False, False] == is_cut(room(light=0.02, noise=12), room(light=0.02, noise=12))


def test_pictures_of_any_size_are_compared():
    assert [False, True, False] == is_cut(room(size=(40, 24)), room(seed=1, size=(1920, 1080)), room(seed=1))
