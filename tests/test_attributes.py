"""What the attributes recipe does with faces that carry some of the labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.errors import UsageError
from engines.geometry import ATTRIBUTE_TEMPLATE, attribute_matrix, transform_points
from engines.networks import AttributesNet
from trainers.attributes import AttributesConfig, AttributesRecipe, mixed, train
from trainers.faces import ROOM, STORED_SIZE, shown, to_inner
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
    return images, age, female, votes, torch.ones(6)


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
