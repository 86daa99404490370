"""What a run keeps for the next: made for these very pictures, and there whole or not at all."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engines.networks import ExpressionNet
from tests.face_sets import write_attributes
from tests.test_distillation import Looker
from tests.test_held import faces
from trainers import masked_autoencoder
from trainers.attribute_sets import utkface
from trainers.attributes import AttributesConfig
from trainers.fit import FitOptions
from trainers.recognition import RecognitionConfig, teacher_views
from trainers.whole_file import whole_file


class Finder:
    """Finds landmarks that tell the pictures apart."""

    landmarks = SimpleNamespace(spec=SimpleNamespace(weights_sha256="0" * 64))

    def __init__(self):
        self.asked = 0

    def refine(self, images, boxes):
        self.asked += len(images)
        shift = np.array([image.mean() for image in images], np.float32)[:, None, None] / 10
        return np.float32([[38, 38], [74, 38], [56, 60], [42, 80], [70, 80]]) + shift, np.ones(len(images))


def interrupted(file, *_):
    """Where a file is saved, the process is killed in the middle."""
    target = file if hasattr(file, "write") else Path(file).open("wb")  # noqa: SIM115 - the dead close nothing
    target.write(b"\x93NUMPY")
    target.flush()
    raise KeyboardInterrupt


def interrupted_save(array_or_state, file):
    interrupted(file)


@pytest.fixture
def aged(tmp_path):
    write_attributes(tmp_path, np.random.default_rng(281))
    return AttributesConfig(data=str(tmp_path), run=str(tmp_path / "run"), limit=2)


def test_landmarks_of_one_part_are_not_taken_for_those_of_another_as_large(aged):
    train, other, again = Finder(), Finder(), Finder()

    first = utkface(aged, "train", train, aged.run)
    val = utkface(aged, "val", other, aged.run)
    kept = utkface(aged, "train", again, aged.run)

    assert (2, 2, 0) == (train.asked, other.asked, again.asked)
    assert np.array_equal(first.crops, kept.crops)
    assert np.array_equal(val.crops, utkface(aged, "val", Finder()).crops)


def test_what_a_teacher_said_of_other_faces_or_another_teacher_said_is_not_taken(tmp_path):
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes(b"one")
    config = RecognitionConfig(run=str(tmp_path), views=2, teacher=str(teacher))
    looker = Looker()
    first = teacher_views(config, looker, faces(3))

    others = teacher_views(config, looker, np.ascontiguousarray(faces(3)[::-1, :, ::-1]))
    assert 24 == len(looker.seen) and not np.array_equal(first, others)

    teacher.write_bytes(b"two")
    teacher_views(config, looker, faces(3))
    assert 36 == len(looker.seen)


def test_a_kill_while_a_file_is_written_leaves_none_to_be_trusted(aged, tmp_path, monkeypatch):
    config, finder = RecognitionConfig(run=str(tmp_path), views=2), Finder()
    network = ExpressionNet("vit_tiny", 5, 0.0)
    monkeypatch.setattr(masked_autoencoder, "fit", lambda recipe, *_: recipe.network)

    def pretrain():
        masked_autoencoder.pretrain(network, FitOptions(), 1, tmp_path, [faces(2)])

    runs = (
        lambda: teacher_views(config, Looker(), faces(3)),
        lambda: utkface(aged, "train", finder, aged.run),
        pretrain,
    )
    with monkeypatch.context() as killing:
        killing.setattr(np, "save", interrupted)
        killing.setattr(torch, "save", interrupted_save)
        for run in runs:
            with pytest.raises(KeyboardInterrupt):
                run()

    for run in runs:
        run()

    assert 4 == finder.asked
    assert (tmp_path / "pretraining" / "encoder.pt").is_file()
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_was_there_stays_as_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "kept"
    with whole_file(path) as file:
        file.write(b"first")

    with pytest.raises(OSError, match="full"), whole_file(path) as file:
        file.write(b"sec")
        raise OSError("disk full")

    assert b"first" == path.read_bytes()
