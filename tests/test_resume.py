"""A recipe that was killed in an epoch and started again ends as one that nobody disturbed."""

import cv2
import numpy as np
import pytest
import torch

from trainers.closed_set import ClosedSetConfig, ClosedSetRecipe, train_one
from trainers.closed_set_faces import ClosedSet, Faces
from trainers.face_rows import FaceRecord
from trainers.fit import FitOptions
from trainers.landmarks import LandmarkRecipe
from trainers.recipes import train_recipe

STEPS = 2
EXACT = {"threads": 1, "precision": "32-true", "accelerator": "cpu"}


class BrokenOffError(Exception):
    pass


def coloured_faces() -> Faces:
    rng = np.random.default_rng(3)
    encoded = [
        cv2.imencode(".png", rng.integers(0, 255, (144, 144, 3), dtype=np.uint8))[1].tobytes()
        for _ in range(6)
    ]
    records = tuple(FaceRecord(f"{i}.png", str(i % 3)) for i in range(6))
    return Faces(records, tuple(encoded), np.arange(6) % 3)


def landmarks(sets, run):
    options = EXACT | {"epochs": 2, "steps_per_epoch": STEPS, "batch_size": 2}
    settings = [f"fit.{name}={value}" for name, value in options.items()]
    train_recipe("landmarks", [f"data={sets}", f"run={run}", "stacks=1", "channels=8", "limit=4", *settings])
    return run


def closed_set(_, run):
    """With all that depends on how much is done: images small at first, a margin that rises; and with dropout."""
    fit = FitOptions(epochs=2, steps_per_epoch=STEPS, batch_size=4, **EXACT)
    config = ClosedSetConfig(
        run=str(run), loss="arcface", embedding_size=8, small=48, small_share=0.7, fit=fit
    )
    faces = coloured_faces()
    return train_one(config, ClosedSet(("0", "1", "2"), faces, faces))


@pytest.mark.parametrize(("train", "recipe"), [(landmarks, LandmarkRecipe), (closed_set, ClosedSetRecipe)])
def test_a_run_broken_off_in_its_second_epoch_ends_with_the_same_weights(
    sets, tmp_path, monkeypatch, train, recipe
):
    whole = torch.load(train(sets, tmp_path / "whole") / "last.ckpt", weights_only=True)
    loss, steps = recipe.loss, []

    def broken_off(self, batch):
        steps.append(self.global_step)
        if self.global_step > STEPS:
            raise BrokenOffError
        return loss(self, batch)

    monkeypatch.setattr(recipe, "loss", broken_off)
    with pytest.raises(BrokenOffError):
        train(sets, tmp_path / "broken")
    monkeypatch.setattr(
        recipe, "loss", lambda self, batch: steps.append(self.global_step) or loss(self, batch)
    )

    again = torch.load(train(sets, tmp_path / "broken") / "last.ckpt", weights_only=True)

    assert [0, 1, 2, 3, 2, 3] == steps
    assert all(torch.equal(again["state_dict"][name], value) for name, value in whole["state_dict"].items())
