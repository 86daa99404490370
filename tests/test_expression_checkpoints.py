"""Checkpoints of expression models, as a run leaves them: what `mien classify` makes of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from daemon.classify import Classifier
from engines.checkpoint import save_checkpoint
from engines.errors import MienError, UsageError
from engines.expression import expression_spec, load_classifier
from engines.networks import AttributesNet
from engines.networks.expression import KINDS
from trainers.composition import expression_config
from trainers.expression import ModelOptions, make_network
from trainers.expression_crops import changed
from trainers.fit import image_batch

PORTRAIT = Path(__file__).parents[1] / "samples" / "eileen_collins.jpg"


@pytest.fixture(scope="module")
def crops():
    """(4, 112, 112, 3) uint8 BGR: one portrait, changed as training changes it."""
    stored = cv2.resize(cv2.imread(str(PORTRAIT)), (144, 144))
    return np.stack([changed(np.random.default_rng(i), stored, masked=False) for i in range(4)])


def save_as_lightning(path: Path, network: nn.Module) -> Path:
    """A file as our training leaves it: the network as it is, and, in better words, its average."""
    state = {f"averaged.module.{name}": value for name, value in network.state_dict().items()}
    worse = {f"network.{name}": torch.zeros_like(value) for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**worse, **state, "averaged.n_averaged": torch.tensor(3)}}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_classify_answers_as_the_network_does_that_was_trained(kind, crops, tmp_path):
    torch.manual_seed(3)
    network = make_network(
        expression_config([f"model={kind}", "model.start=", "model.pretrain_epochs=0"]).model
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the crops as they are
    with torch.no_grad():
        network.train()(image_batch(torch.from_numpy(crops)))
        sides = np.concatenate((crops, crops[:, :, ::-1]))
        wanted = network.eval()(image_batch(torch.from_numpy(sides))).softmax(1).numpy()
        wanted = (wanted[: len(crops)] + wanted[len(crops) :]) / 2
    classifier = Classifier(save_as_lightning(tmp_path / "best.ckpt", network), "", "eager", whole=True)

    found = []
    for i, crop in enumerate(crops):
        cv2.imwrite(str(tmp_path / f"{i}.png"), crop)
        found.append([*classifier.image(tmp_path / f"{i}.png")["all_probabilities"].values()])

    assert wanted.std(0).max() > 0.01  # they do hang on the crop
    assert wanted == pytest.approx(np.array(found), abs=1e-4)


@pytest.mark.parametrize("given", ["", "efficientnet_b0"])
def test_a_file_without_a_spec_is_fed_as_its_kind_is_used_to(given, tmp_path):
    network = make_network(ModelOptions("efficientnet_b0"))
    torch.save(network.state_dict(), tmp_path / "plain.pt")

    _, engine = load_classifier(tmp_path / "plain.pt", given)

    assert 2 == network.trunk[0].enlarged == engine.spec.network_args["enlarged"]


@pytest.mark.parametrize("folder", [".", "expression"])
def test_a_file_is_fed_as_the_spec_beside_it_says(folder, tmp_path):
    network = make_network(ModelOptions("resnet18", enlarged=3))
    save_checkpoint(tmp_path / folder, network, expression_spec("resnet18", enlarged=3), "# expression\n")

    _, engine = load_classifier(save_as_lightning(tmp_path / "best.ckpt", network))

    assert 3 == engine.spec.network_args["enlarged"]


def test_a_spec_of_another_model_beside_a_file_does_not_count(tmp_path):
    save_checkpoint(tmp_path, make_network(ModelOptions("cnn")), expression_spec("cnn"), "# expression\n")
    path = save_as_lightning(tmp_path / "best.ckpt", make_network(ModelOptions("face_trunk")))

    assert "face_trunk" == load_classifier(path)[1].spec.network_args["kind"]


@pytest.mark.parametrize("kind", ["resnet18", "cnn"])
def test_a_run_s_own_checkpoint_is_a_start(kind, tmp_path):
    network = make_network(ModelOptions(kind))
    path = save_as_lightning(tmp_path / "best.ckpt", network)

    started = make_network(ModelOptions(kind, start=str(path)))

    trunk = network.trunk.state_dict()
    assert all(value.equal(trunk[name]) for name, value in started.trunk.state_dict().items())
    assert not started.head[0].weight.equal(network.head[0].weight)


def test_a_checkpoint_of_another_kind_or_task_is_no_start(tmp_path):
    cnn = save_as_lightning(tmp_path / "cnn.ckpt", make_network(ModelOptions("cnn")))
    attributes = save_as_lightning(tmp_path / "attributes.ckpt", AttributesNet())

    with pytest.raises(
        MienError, match=r"cnn\.ckpt: does not fit this network; \d+ tensors lack.*choose the"
    ):
        make_network(ModelOptions("resnet18", start=str(cnn)))
    with pytest.raises(UsageError, match="different splits; start from an embedder"):
        make_network(ModelOptions(start=str(attributes)))
