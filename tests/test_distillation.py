"""What the embedder learns from its teacher: the same views, and nobody of LFW."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import UsageError
from tests.test_held import faces
from trainers import recognition
from trainers.closed_set import ClosedSetConfig, ClosedSetNetwork
from trainers.held import made
from trainers.recognition import (
    FaceSamples,
    FaceSet,
    RecognitionConfig,
    RecognitionRecipe,
    load_faces,
    meets_lfw,
    teacher_views,
    view_of,
)
from trainers.teacher import TeacherEmbedder

TEACHER = Path(__file__).parents[2] / "shared/teachers/mobilefacenet_192.onnx"


class Looker:
    """A teacher that is the same for a picture and its mirror image, and moves with what a crop shows."""

    def __init__(self, path="", fast=False):
        self.seen = []

    def __call__(self, crops):
        self.seen += list(crops)
        grid = crops.reshape(len(crops), 14, 8, 14, 8, 3).mean((2, 4, 5))
        answer = (grid + grid[:, :, ::-1])[:, :, :7].reshape(len(crops), -1) - 2 * grid.mean((1, 2))[:, None]
        return (answer / np.linalg.norm(answer, axis=1, keepdims=True).clip(1e-6)).astype(np.float32)


@pytest.fixture
def plain(monkeypatch):
    """Views as they are cut: not lit, degraded or covered."""
    monkeypatch.setattr("trainers.faces.photometric", lambda rng, image, strength: image)
    monkeypatch.setattr("trainers.faces.occlude", lambda rng, image, chance: image)


def test_the_pupil_sees_the_views_that_its_teacher_saw(tmp_path, plain):
    teacher, pictures = Looker(), faces(4)
    answers = teacher_views(RecognitionConfig(run=str(tmp_path), views=3), teacher, pictures)
    samples = FaceSamples(FaceSet(pictures, np.array([3, 3, -1, 8]), answers), answers.shape[2])
    rng = np.random.default_rng(1)

    drawn = [samples.sample(rng) for _ in range(30)]
    images = np.stack([image for image, _, _ in drawn])
    targets = np.stack([target for _, _, target in drawn])

    assert 24 == len(teacher.seen) == len(np.unique(np.stack(teacher.seen).reshape(24, -1), axis=0))
    assert (Looker()(images) * targets).sum(1).min() > 0.9999
    assert (Looker()(images) * np.roll(targets, 1, axis=0)).sum(1).min() < 0.99


def test_the_teacher_says_the_same_of_a_face_and_its_mirror_image(tmp_path):
    class OneSided(Looker):
        def __call__(self, crops):
            left = crops[:, :, :56].mean((2, 3)).astype(np.float32)
            return left / np.linalg.norm(left, axis=1, keepdims=True)

    pictures = faces(3)
    config = RecognitionConfig(run=str(tmp_path), views=2)

    answers = teacher_views(config, OneSided(), pictures)

    views = np.stack([view_of(pictures[i], i, v) for i in range(3) for v in range(2)])
    both = OneSided()(views) + OneSided()(views[:, :, ::-1])
    assert (OneSided()(views) * OneSided()(views[:, :, ::-1])).sum(1).min() < 0.999
    assert answers.reshape(6, -1) == pytest.approx(
        both / np.linalg.norm(both, axis=1, keepdims=True), abs=1e-6
    )


def test_views_made_on_the_device_have_the_same_teacher(tmp_path):
    pictures = faces(4)
    answers = teacher_views(RecognitionConfig(run=str(tmp_path)), Looker(), pictures)
    samples = FaceSamples(FaceSet(pictures, np.array([3, 3, -1, 8]), answers), answers.shape[2])
    rng = np.random.default_rng(2)
    draw = replace(samples.draw(rng, 16), strength=0.0, hidden=0.0)

    images = made(torch.from_numpy(samples.crops), draw, rng)[0].numpy()

    alike = (Looker()(images) * draw.targets[1]).sum(1)
    assert np.median(alike) > 0.9999 and alike.min() > 0.99  # some are grey


def test_what_the_teacher_said_is_asked_only_once_a_run(tmp_path):
    config, teacher = RecognitionConfig(run=str(tmp_path), views=2), Looker()
    first = teacher_views(config, teacher, faces(3))

    again = teacher_views(config, teacher, faces(3))

    assert np.array_equal(first, again) and (3, 2) == first.shape[:2]
    assert 12 == len(teacher.seen)  # each view from both sides


def test_a_person_s_class_begins_where_the_teacher_sees_them():
    answers = np.random.default_rng(3).normal(size=(4, 2, 5)).astype(np.float32)
    samples = FaceSamples(FaceSet(faces(4), np.array([70, 5, 5, -1]), answers), 5)

    prototypes = samples.prototypes()

    assert prototypes.numpy() == pytest.approx(
        np.stack([answers[1:3].mean((0, 1)), answers[0].mean(0)]), abs=1e-6
    )
    assert [1, 0, 0, -1] == list(samples.label)
    assert FaceSamples(FaceSet(faces(4), np.array([70, 5, 5, -1]), None), 5).prototypes() is None


def test_without_a_teacher_no_two_looks_at_a_face_are_the_same(plain):
    samples = FaceSamples(FaceSet(faces(1), np.array([1]), None), 5)
    rng = np.random.default_rng(4)

    looks = np.stack([samples.sample(rng)[0] for _ in range(12)])

    assert 12 == len(np.unique(looks.reshape(12, -1), axis=0))


def test_a_person_whose_faces_meet_one_of_lfw_is_known():
    lfw = np.eye(4, dtype=np.float32)[:2]
    near, far = np.array([0.9, 0.1, 0.4, 0.0], np.float32), np.array([0.3, 0.2, 0.0, 0.9], np.float32)
    embeddings = np.stack([near, near, far, near])

    assert {4} == meets_lfw(np.array([4, 4, 9, -1]), embeddings, lfw)


def test_nobody_of_lfw_is_trained_on(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "TeacherEmbedder", Looker)
    config = RecognitionConfig(data=str(sets), run=str(tmp_path), teacher="any", limit=12)
    monkeypatch.setattr(recognition, "meets_lfw", lambda identity, embeddings, lfw: set())
    everybody = load_faces(config)
    people = sorted(set(everybody.identity[everybody.identity >= 0]))
    monkeypatch.setattr(recognition, "meets_lfw", lambda identity, embeddings, lfw: {people[0]})

    others = load_faces(config)

    assert people[1:] == sorted(set(others.identity[others.identity >= 0]))
    assert (everybody.identity == -1).sum() == (others.identity == -1).sum()
    assert len(others.teacher) == len(others.crops) == len(others.identity)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"views": 0}, "at least one view"), ({"embedding_size": 192}, "set embedding_size=98")],
)
def test_what_does_not_fit_the_teacher_is_said(sets, tmp_path, monkeypatch, wrong, words):
    monkeypatch.setattr(recognition, "TeacherEmbedder", Looker)

    with pytest.raises(UsageError, match=words):
        recognition.train(
            RecognitionConfig(data=str(sets), run=str(tmp_path), teacher="any", limit=4, **wrong)
        )


def test_a_loss_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UsageError, match="loss=cosine: is none of arcface, ce"):
        recognition.train(RecognitionConfig(data=str(tmp_path), loss="cosine"))


@pytest.mark.parametrize("loss", ["arcface", "ce"])
def test_without_a_margin_a_person_is_taught_by_what_they_are_judged_by(loss):
    torch.manual_seed(0)
    network = ClosedSetNetwork(torch.nn.Identity(), 8, 3, ClosedSetConfig(loss=loss, margin=0.0))
    embedding = torch.randn(4, 8) * 7

    taught = network.head(embedding, torch.tensor([0, 1, 2, 0]))

    assert torch.allclose(network(embedding), taught, atol=1e-3)


def test_a_margin_of_none_is_of_cosines_with_arcface_and_of_plain_logits_with_ce():
    heads = {
        loss: RecognitionRecipe(torch.nn.Identity(), RecognitionConfig(loss=loss, margin=0.0), 5).head
        for loss in ("arcface", "ce")
    }
    embedding, label = torch.randn(2, 192), torch.tensor([1, 4])

    assert torch.allclose(
        heads["arcface"](embedding, label), heads["arcface"](embedding * 3, label), atol=1e-3
    )
    assert torch.allclose(heads["ce"](embedding, label) * 3, heads["ce"](embedding * 3, label), atol=1e-3)
    assert 45.0 >= heads["arcface"](embedding, label).detach().abs().max()


@pytest.mark.skipif(not TEACHER.is_file(), reason="needs the teacher's ONNX file in ../shared/teachers")
@pytest.mark.parametrize("fast", [False, True])
def test_the_teacher_answers_in_the_order_it_was_asked(fast):
    teacher, pictures = TeacherEmbedder(TEACHER, fast), faces(2)[:, 16:-16, 16:-16]
    asked = np.concatenate((pictures, pictures[:1], pictures[:, :, ::-1], pictures[1:]))

    answers = teacher(asked)  # an even number; and an odd one

    cosine = answers @ answers.T
    assert (6, 192) == answers.shape and np.diag(cosine) == pytest.approx(1, abs=1e-5)
    assert min(cosine[0, 2], cosine[1, 5]) > 0.999
    assert min(cosine[0, 3], cosine[1, 4]) > 0.8 and cosine[0, 1] < 0.5
    assert (teacher(asked[:5]) * answers[:5]).sum(1).min() > 0.999
