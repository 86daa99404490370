"""The closed set's networks and heads: what they start from, how they begin, and how they are judged."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from engines.errors import MienError, UsageError
from engines.geometry import ALIGNMENTS
from trainers import closed_set
from trainers.closed_set import (
    ClosedSetConfig,
    ClosedSetNetwork,
    ClosedSetRecipe,
    done_before,
    imprint,
    length_of,
    train_closed_set,
)
from trainers.closed_set_faces import Faces
from trainers.closed_set_networks import load_start, make_backbone, save_backbone
from trainers.closed_set_report import accuracy_figures, predict, table_text
from trainers.face_rows import FaceRecord
from trainers.fit import FitOptions
from trainers.recognition import MarginHead, risen


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ({}, True),
        ({"mirror": False}, False),
        ({"fit": FitOptions(epochs=31)}, False),
        ({"fit": FitOptions(epochs=30, threads=1)}, True),
    ],
)
def test_a_training_is_done_when_it_was_as_long_and_judged_as_is_asked_for(change, done, tmp_path):
    config = ClosedSetConfig(fit=FitOptions(epochs=30))
    assert not done_before(tmp_path, config)
    (tmp_path / "last.ckpt").touch()
    result = {"length": length_of(config), "mirror": True}
    (tmp_path / "result.json").write_text(json.dumps(result))

    assert done == done_before(tmp_path, dataclasses.replace(config, **change))
    (tmp_path / "last.ckpt").unlink()
    assert not done_before(tmp_path, config)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss=cosine", "loss=cosine: give one or more of ce, arcface"),
        ("alignment=ears", "alignment=ears"),
        ("network=vgg", "network=vgg: is none of resnet18"),
        ("small=16", "small=16: 32 to 112 px"),
        ("small=128", "small=128: 32 to 112 px"),
    ],
)
def test_a_wrong_option_of_closed_set_is_refused(setting, words):
    with pytest.raises(UsageError, match=words):
        train_closed_set([setting])


@pytest.mark.parametrize(("share", "sides"), [(0.5, (64, 64, 112, 112)), (1.0, (64, 64, 64, 64))])
def test_images_are_small_in_the_first_part_of_training_and_whole_after(share, sides, monkeypatch):
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return super().forward(x)

    config = ClosedSetConfig(small=64, small_share=share, loss="ce")
    backbone = Watched(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    recipe = ClosedSetRecipe(ClosedSetNetwork(backbone, 3, 3, config), config)
    batch = torch.randint(256, (2, 112, 112, 3), dtype=torch.uint8), torch.tensor([0, 2])

    for done in (0.0, 0.49, 0.5):
        monkeypatch.setattr(recipe, "share_done", lambda _, done=done: done)
        recipe.loss(batch)

    recipe.network(torch.zeros((1, 3, 112, 112)))  # as it is judged
    assert [(side, side) for side in sides] == seen


def test_training_before_aligning_says_what_to_run(tmp_path):
    with pytest.raises(MienError, match=r"missing; make it: mien faces align .* --by similarity"):
        train_closed_set([f"faces={tmp_path}"])


def test_arcface_from_scratch_begins_with_logits_of_unit_variance_and_ends_with_scale_and_margin():
    head = MarginHead(256, 20, scale=45, margin=0.1)
    images, label = torch.randn(500, 256), torch.randint(20, (500,))

    first, last = (head(images, label, risen(share, 0.3)) for share in (0.3, 0.6))

    assert 1 == pytest.approx(float(first.detach().std()), rel=0.1)
    assert head(images, label).equal(last)
    assert 0.5 == pytest.approx(risen(0.45, 0.3))
    network = ClosedSetNetwork(nn.Identity(), 256, 20, ClosedSetConfig(loss="arcface"))
    assert 0 < ClosedSetRecipe(network, ClosedSetConfig(loss="arcface")).rise
    assert 0 == ClosedSetRecipe(network, ClosedSetConfig(loss="arcface", start="an/embedder")).rise


@torch.inference_mode()
def test_imagenet_s_weights_are_fed_as_imagenet_was_and_so_is_what_starts_from_their_run(
    tmp_path, monkeypatch
):
    torch.manual_seed(0)
    published = models.resnet18()
    state = published.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    config = ClosedSetConfig(start="imagenet", embedding_size=8)

    backbone, _ = make_backbone(config)

    published.fc = backbone.body.fc
    pixels = torch.randint(0, 256, (2, 3, 112, 112)).float()  # BGR
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (pixels - 127.5) / 128
    wanted = published.eval()((pixels.flip(1) / 255 - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(wanted, backbone.eval()(images), atol=1e-4)

    save_backbone(tmp_path, backbone, config, ["a"], 8)
    on, _ = make_backbone(dataclasses.replace(config, start=str(tmp_path)))
    load_start(on, dataclasses.replace(config, start=str(tmp_path)), ["a"])
    assert torch.allclose(wanted, on.eval()(images), atol=1e-4)


def test_a_backbone_from_before_imagenet_s_input_is_fed_as_it_was(tmp_path):
    config = ClosedSetConfig(embedding_size=8)
    backbone, _ = make_backbone(config)
    save_backbone(tmp_path, backbone, config, ["a"], 8)
    about = json.loads((tmp_path / "backbone.json").read_text())
    assert about.pop("imagenet_input") is False
    (tmp_path / "backbone.json").write_text(json.dumps(about))

    again = dataclasses.replace(config, start=str(tmp_path))
    on, _ = make_backbone(again)
    load_start(on, again, ["a"])

    assert all(value.equal(backbone.state_dict()[name]) for name, value in on.state_dict().items())


def test_a_head_starts_from_embeddings_of_images_as_small_as_training_begins_with(monkeypatch):
    seen = []
    monkeypatch.setattr(
        closed_set, "outputs", lambda network, *_, **__: seen.append(network[0].size) or torch.eye(3)
    )
    faces = Faces((), (), np.arange(3))

    for small in (0, 64):
        config = ClosedSetConfig(small=small, loss="ce")
        imprint(ClosedSetNetwork(nn.Identity(), 3, 3, config), faces)

    assert [0, 64] == seen


@pytest.mark.parametrize("loss", ["ce", "arcface"])
def test_a_head_that_starts_from_mean_embeddings_knows_its_persons(loss):
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]] * 2, np.uint8)
    encoded = [
        cv2.imencode(".png", np.full((144, 144, 3), colour, np.uint8))[1].tobytes() for colour in colours
    ]
    records = tuple(FaceRecord(f"{i}.png", str(i % 3)) for i in range(6))
    faces = Faces(records, tuple(encoded), np.arange(6) % 3)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = ClosedSetNetwork(backbone, 3, 3, ClosedSetConfig(loss=loss))

    imprint(network, faces)

    assert network.training
    probability = predict(network, faces)
    assert [0, 1, 2, 0, 1, 2] == probability.argmax(1).tolist()
    assert 0.9 < probability.max(1).min()


def test_accuracy_ranks_and_table_by_hand():
    scores = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.4, 0.4, 0.2]], np.float32)

    figures = accuracy_figures(scores, np.array([0, 1, 0]))

    assert (1 / 3, 1.0) == pytest.approx((figures["accuracy"], figures["top_5"]))
    result = {
        "network": "resnet18", "start": "from scratch", "persons": 3, "train_images": 9, "val_images": 3,
        "loss": "arcface", "scale": 45.0, "margin": 0.1, "samples": 1000, **figures,
    }  # fmt: skip
    text = table_text([{**result, "alignment": method} for method in ALIGNMENTS])
    assert ["2 points", "3 points", "5 points"] == [
        words for line in text.splitlines() for words in ("2 points", "3 points", "5 points") if words in line
    ]
    assert 3 == text.count("| not run | **33.3%**") and "s=45, m=0.1" in text
