"""What the attributes recipe does with faces that carry some of the labels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.checkpoint import load_checkpoint, save_checkpoint
from engines.errors import UsageError
from engines.geometry import ATTRIBUTE_TEMPLATE, attribute_matrix, transform_points
from engines.networks import AttributesNet
from engines.networks.layers import PlaceConv
from engines.runtime import WEIGHTS
from trainers.attribute_sets import LabelledFaces
from trainers.attribute_teacher import AttributesTeacher
from trainers.attributes import AttributesConfig, AttributesRecipe, answers_for, load_sets, mixed, train
from trainers.faces import ROOM, STORED_SIZE, FaceFinder, shown, to_inner
from trainers.fit import FitOptions, image_batch

ALPHA = 0.2


class Watched(AttributesNet):
    """Keeps the pictures that it was shown."""

    seen: Tensor

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen = x.detach()
        return super().heads(x)


def batch() -> tuple[Tensor, ...]:
    """Two faces with age and gender, one with all three labels, three with votes alone."""
    torch.manual_seed(0)
    votes = torch.rand(6, 8).softmax(1)
    votes[:2] = -1
    age = torch.tensor([30.0, 50, 20, -1, -1, -1])
    female = torch.tensor([0.0, 1, 1, -1, -1, -1])
    images = torch.randint(0, 256, (6, 112, 112, 3), dtype=torch.uint8)
    return images, age, female, votes, torch.ones(6), torch.empty((6, 0))


@pytest.mark.parametrize("size", [80, 112])
def test_a_crop_of_any_size_shows_the_same_part_of_the_face(size: int) -> None:
    stored = (ATTRIBUTE_TEMPLATE + ROOM).astype(np.float32)  # where the landmarks lie in a stored crop

    taught = transform_points(stored, to_inner(np.eye(2, 3, dtype=np.float32), size))
    used = transform_points(stored, attribute_matrix(stored, size))

    np.testing.assert_allclose(taught, used, atol=1e-4)


def test_what_an_engine_is_fed_in_training_is_what_a_stored_crop_shows() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (2, STORED_SIZE, STORED_SIZE, 3), dtype=np.uint8)

    assert np.array_equal(stored[:, ROOM:-ROOM, ROOM:-ROOM], shown(stored))
    assert (2, 80, 80, 3) == shown(stored, 80).shape
    half = shown(stored, 56).astype(float)
    blocks = shown(stored).reshape(2, 56, 2, 56, 2, 3).mean((2, 4))
    assert np.abs(half - blocks).max() <= 1


def test_a_size_that_the_trunk_cannot_halve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        train(AttributesConfig(data=str(tmp_path), input_size=90))


def test_fer_is_drawn_as_often_as_is_asked_for(sets: Path) -> None:
    for share in (1.5, 3.0):
        config = AttributesConfig(data=str(sets), sets="utkface,ferplus", limit=2, fer_share=share)
        assert [1.0, share] == [faces.share for faces in load_sets(config, FaceFinder())]
    with pytest.raises(UsageError, match=r"fer_share=0\.0: must be above 0"):
        train(AttributesConfig(data=str(sets), fer_share=0.0))


def test_a_mixed_face_is_at_least_half_itself_and_its_votes_likewise() -> None:
    torch.manual_seed(0)
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    images, votes = mixed(pictures, torch.eye(4), ALPHA)
    other = votes.roll(1, 1).diagonal()  # what face i has of face i - 1
    assert torch.allclose(votes.sum(1), torch.ones(4))
    assert (votes.diagonal() >= 0.5).all() and (other > 0).any()
    expected = pictures.lerp(pictures.roll(1, 0), 1 - votes.diagonal()[:, None, None, None])
    assert torch.allclose(images, expected, atol=1e-6)


def test_only_faces_known_by_their_emotion_alone_are_mixed() -> None:
    images, *targets = batch()
    recipe = AttributesRecipe(Watched(), FitOptions(), mixup=ALPHA)
    loss, figures = recipe.loss((images, *targets))
    changed = (recipe.network.seen - image_batch(images)).abs().flatten(1).amax(1)
    assert (changed[:3] == 0).all() and (changed[3:] > 0.01).any()
    assert torch.isfinite(loss) and set(figures) == {"mae", "gender", "emotion"}


def test_without_mixup_every_face_is_itself() -> None:
    images, *targets = batch()
    recipe = AttributesRecipe(Watched(), FitOptions(), mixup=0)
    recipe.loss((images, *targets))
    assert torch.equal(recipe.network.seen, image_batch(images))


def test_pictures_are_small_in_the_first_part_of_training_and_whole_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, sides = AttributesRecipe(Watched(), FitOptions()), []
    recipe.small, recipe.small_share = 80, 0.6
    for done in (0.0, 0.59, 0.6, 1.0):
        monkeypatch.setattr(recipe, "share_done", lambda _, done=done: done)
        recipe.loss(batch())
        sides.append(recipe.network.seen.shape[-1])
    assert [80, 80, 112, 112] == sides


def test_a_smaller_map_is_pooled_by_the_weights_of_the_same_places() -> None:
    torch.manual_seed(1)
    pool = PlaceConv(4, 7)
    weight, level = pool.weight.detach().clone(), torch.tensor([1.0, 2, 3, 4])
    even = level[None, :, None, None]
    with torch.no_grad():
        pool.weight.copy_(weight[:, :, 3:4, :].expand_as(weight))  # the same from top to bottom
        whole, small = pool(even.expand(1, 4, 7, 7)), pool(even.expand(1, 4, 5, 7))
        pool.weight.fill_(1.0)
        side = torch.zeros((1, 4, 5, 5))
        side[..., 0] = 1.0
    assert torch.allclose(whole, small, rtol=1e-4)
    assert torch.allclose(pool(side), torch.full((1, 4, 1, 1), 49 / 5), rtol=1e-4)  # a fifth of the face
    assert torch.allclose(whole.flatten(), level * 7 * weight[:, 0, 3].sum(1), rtol=1e-4)


def test_a_teacher_s_answers_are_the_mean_of_both_sides_and_a_loss_until_they_are_one_s_own() -> None:
    network = load_checkpoint(WEIGHTS / "attributes")[0].eval()
    recipe = AttributesRecipe(network, FitOptions())
    crops = np.random.default_rng(2).integers(0, 256, (3, STORED_SIZE, STORED_SIZE, 3), dtype=np.uint8)
    teacher = AttributesTeacher(str(WEIGHTS / "attributes"), age_bins=101)

    answers = torch.from_numpy(teacher(crops))
    turned = torch.from_numpy(teacher(crops[:, :, ::-1]))

    assert (3, 102) == answers.shape
    assert torch.allclose(answers[:, :-1].sum(1), torch.ones(3), atol=1e-4)
    assert torch.allclose(answers, turned, atol=1e-4)
    own = answers[:, :-1].log(), answers[:, -1].logit()
    other = own[0].roll(7, 1), own[1] + 2
    assert (recipe.answer_loss(*other, answers) > recipe.answer_loss(*own, answers) + 0.1).all()
    logits, logit = (each.clone().requires_grad_() for each in own)
    recipe.answer_loss(logits, logit, answers).sum().backward()
    assert logits.grad.abs().max() < 1e-3 and logit.grad.abs().max() < 1e-3


def test_only_faces_with_an_age_or_a_gender_are_shown_to_the_teacher() -> None:
    class Teacher:
        age_bins = 2

        def __call__(self, crops: np.ndarray) -> np.ndarray:
            return np.tile(crops[:, :1, 0, 0].astype(np.float32), 3)

    crops = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    unknown = np.float32([-1, 5, -1, 7]), np.float32([-1, -1, 1, 0])
    faces = LabelledFaces(crops, *unknown, np.full((4, 8), 0.125, np.float32))

    answers = answers_for(faces, Teacher())

    assert [[-1] * 3, [1] * 3, [2] * 3, [3] * 3] == answers.tolist()
    images, age, female, votes, weight, _ = batch()
    recipe = AttributesRecipe(Watched(age_bins=2), FitOptions())
    alone = recipe.loss((images, age, female, votes, weight, torch.full((6, 3), -1.0)))[0]
    taught = torch.full((6, 3), -1.0)
    taught[0] = torch.tensor([0.5, 0.5, 0.5])
    assert recipe.loss((images, age, female, votes, weight, taught))[0] > alone + 0.1


@pytest.mark.parametrize(("checkpoint", "bins"), [("embedder", 101), ("attributes", 50)])
def test_a_teacher_that_does_not_fit_is_told_first(tmp_path: Path, checkpoint: str, bins: int) -> None:
    config = AttributesConfig(data=str(tmp_path), learn_from=str(WEIGHTS / checkpoint), age_bins=bins)
    with pytest.raises(
        UsageError,
        match=f"{checkpoint}: is no attributes checkpoint of the daemon's crop of 112 px with {bins} age_bins",
    ):
        train(config)


@pytest.mark.parametrize("other", [{"room": 32}, {"aligned": False}])
def test_a_teacher_of_another_crop_is_refused(tmp_path: Path, other: dict) -> None:
    network, spec = load_checkpoint(WEIGHTS / "attributes")
    save_checkpoint(tmp_path / "attributes", network, dataclasses.replace(spec, **other), "# attributes\n")

    with pytest.raises(UsageError, match="no attributes checkpoint of the daemon's crop"):
        AttributesTeacher(str(tmp_path / "attributes"), age_bins=101)


@pytest.mark.parametrize(("small", "size"), [(31, 112), (96, 80)])
def test_pictures_do_not_begin_smaller_than_a_trunk_takes_or_larger_than_they_are(
    tmp_path: Path, small: int, size: int
) -> None:
    with pytest.raises(UsageError, match=f"small={small}: 32 to {size} px"):
        train(AttributesConfig(data=str(tmp_path), small=small, input_size=size))
