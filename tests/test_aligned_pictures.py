"""Labelled pictures as they are stored: found by a guess of their own size, and made anew when they change."""

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from engines.errors import MienError
from tests.face_sets import face, write_zip
from trainers.attribute_sets import align_set, fill_black
from trainers.expression_crops import aligned
from trainers.expression_data import Picture
from trainers.faces import stored_box
from trainers.ffhq_layout import ImageFolder
from trainers.zips import ImageZip

EYES_AND_MOUTH = np.array([[0.31, 0.33], [0.69, 0.33], [0.5, 0.52], [0.36, 0.7], [0.64, 0.7]], np.float32)


class Finder:
    """Says that the landmarks are where they are in every picture, and keeps what it was asked."""

    landmarks = SimpleNamespace(spec=SimpleNamespace(weights_sha256="0" * 64))

    def __init__(self) -> None:
        self.boxes: list[np.ndarray] = []

    def refine(self, images, boxes):
        self.boxes += list(boxes)
        return np.stack([EYES_AND_MOUTH * image.shape[0] for image in images]), np.ones((len(images), 5))


def test_thumbnails_of_any_size_are_searched_where_their_faces_are(tmp_path):
    (tmp_path / "thumbnails").mkdir()
    for name, side in (("a", 256), ("b", 128)):
        cv2.imwrite(str(tmp_path / "thumbnails" / f"{name}.png"), np.full((side, side, 3), 90, np.uint8))
    finder = Finder()

    align_set(ImageFolder(tmp_path), "ffhq", ["thumbnails/a.png", "thumbnails/b.png"], finder)

    large, small = finder.boxes
    assert np.allclose(large, 2 * small) and np.allclose(large, stored_box("ffhq", 256))


def test_landmarks_are_kept_until_a_picture_of_the_name_is_another(tmp_path):
    rng, finder, run = np.random.default_rng(2), Finder(), str(tmp_path / "run")

    def align(data):
        before = len(finder.boxes)
        with data:
            align_set(data, "utkface", ["a.webp"], finder, run)
        return len(finder.boxes) - before

    rows = [{"file": "a.webp"}]
    write_zip(tmp_path / "utkface.zip", {"a.webp": face(rng, 112, 43, 0.3)[0]}, rows)
    assert [1, 0] == [align(ImageZip(tmp_path, "utkface")) for _ in range(2)]
    write_zip(tmp_path / "utkface.zip", {"a.webp": face(rng, 112, 43, 0.3)[0]}, rows)
    assert 1 == align(ImageZip(tmp_path, "utkface"))


@pytest.fixture
def guessed(monkeypatch):
    """Landmarks that are where they are in every picture."""
    monkeypatch.setattr("trainers.expression_crops.FaceFinder", Finder)


def test_what_is_blacked_out_around_a_masked_face_is_filled_whole(tmp_path, guessed):
    """As WebP stores it, black is noise of up to 15."""
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 16, (112, 112, 3)).astype(np.uint8)
    cv2.ellipse(picture, (56, 56), (34, 44), 0, 0, 360, (120, 140, 160), -1)
    write_zip(tmp_path / "emotion_masked.zip", {"a.webp": picture}, [{"file": "a.webp", "emotion": "sad"}])

    (crop,) = aligned(str(tmp_path), [Picture("emotion_masked", "a.webp", 3, "a")], tmp_path / "run")

    assert 0.2 < (crop == 0).all(2).mean() < 0.8
    filled = fill_black(rng, crop)
    assert (filled.max(2) < 16).mean() < 0.01


def test_crops_are_made_anew_when_a_picture_of_the_name_is_another(tmp_path, monkeypatch):
    def crop(level):
        path = tmp_path / "Sad" / "a.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((80, 80, 3), level, np.uint8))
        os.utime(path, (level, level))
        return aligned(str(tmp_path), [Picture("folders", "Sad/a.png", 3, "a")], tmp_path / "run")[0]

    monkeypatch.setattr("trainers.expression_crops.largest_face", lambda *_: None)
    assert [90, 90, 150] == [round(crop(level).mean()) for level in (90, 90, 150)]
    assert 2 == len(list(Path(tmp_path / "run").glob("crops-*")))


def test_a_thumbnail_whose_name_is_no_utf_8_is_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(cv2.imencode(".png", np.full((8, 8, 3), 70, np.uint8))[1].tobytes())

    assert 70 == ImageFolder(tmp_path).image(name).mean()


def test_a_thumbnail_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")

    with pytest.raises(MienError, match=r"a\.png: No such file or directory; mend or remove it"):
        ImageFolder(tmp_path).image("a.png")
