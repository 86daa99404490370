"""A run is of its data and options: what changes between two calls of a training, and what may."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import TensorDataset

from engines.errors import MienError, UsageError
from tests.face_sets import write_mtfl
from tests.test_resume import coloured_faces
from trainers.callbacks import BEST_METRICS_FILE, METRICS_FILE, Patience
from trainers.closed_set import ClosedSetConfig, train_closed_set
from trainers.closed_set_faces import ClosedSet, Faces
from trainers.closed_set_networks import make_backbone
from trainers.closed_set_report import table_text
from trainers.evaluate_landmarks import coded
from trainers.fit import FitOptions, RandomSamples, Recipe, fit
from trainers.recipes import check_card, put_into_card, train_recipe
from trainers.run_loggers import RUN_ID_FILE, make_logger
from trainers.run_options import claim, fixed_options

TINY = ["fit.steps_per_epoch=1", "fit.batch_size=2", "fit.threads=1", "limit=12"]


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    settings = [f"data={tmp_path}", f"run={tmp_path / 'run'}", *TINY]
    write_mtfl(tmp_path, np.random.default_rng(3))
    train_recipe("landmarks", [*settings, "fit.epochs=1"])
    train_recipe("landmarks", [*settings, "fit.epochs=2"])

    whole = (tmp_path / "mtfl.zip").read_bytes()
    (tmp_path / "mtfl.zip").unlink()
    with pytest.raises(MienError, match=r"mtfl\.zip.*set data=FOLDER"):
        train_recipe("landmarks", [*settings, "fit.epochs=3"])
    (tmp_path / "mtfl.zip").write_bytes(whole + b"\0")
    with pytest.raises(MienError, match="was begun with another content of the data; set another run="):
        train_recipe("landmarks", [*settings, "fit.epochs=3"])


def test_a_closed_set_does_not_go_on_with_another_choice_of_images(tmp_path: Path) -> None:
    faces = coloured_faces()
    chosen, other = ClosedSet(("0", "1", "2"), faces, faces), ClosedSet(("0", "1", "2"), faces, turned(faces))
    config = ClosedSetConfig(run=str(tmp_path), loss="ce")
    claim(config, [chosen.fingerprint()])
    claim(config, [other.fingerprint()])  # nothing has been learnt yet
    (tmp_path / "last.ckpt").touch()

    claim(dataclasses.replace(config, mirror=False, start_note="all of them"), [other.fingerprint()])
    with pytest.raises(MienError, match="was begun with another content of the data;"):
        claim(config, [chosen.fingerprint()])
    with pytest.raises(MienError, match="was begun with another small;"):
        claim(dataclasses.replace(config, small=48), [other.fingerprint()])


def turned(faces: Faces) -> Faces:
    return Faces(faces.records, faces.encoded[::-1], faces.label)


def test_who_has_no_imagenet_weights_says_so() -> None:
    with pytest.raises(UsageError, match="face_resnet has no ImageNet weights; resnet18 and resnet50 have"):
        make_backbone(ClosedSetConfig(network="face_resnet", start="imagenet"))


@pytest.mark.parametrize(
    ("mirror", "words"), [(True, "with the mirror image beside each face"), (False, "as they are")]
)
def test_the_closed_set_s_table_says_how_images_were_judged(mirror: bool, words: str) -> None:
    result = {
        "network": "resnet18",
        "start": "from scratch",
        "persons": 3,
        "train_images": 9,
        "val_images": 3,
    }
    result |= {"alignment": "eyes", "loss": "ce", "scale": 45, "margin": 0.1, "samples": 9, "mirror": mirror}
    result |= {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "top_5": 0.7}

    assert f"Accuracy on the validation images, {words};" in table_text([result])


def test_patience_is_this_call_s_and_begins_when_images_are_whole() -> None:
    before = Patience("val_loss", patience=1)
    before.wait_count = 1
    patience = Patience("val_loss", patience=5)
    patience.load_state_dict(before.state_dict())
    assert (5, 1) == (patience.patience, patience.wait_count)

    module, trainer = Recipe(coloured_network(), FitOptions()), Trainer(logger=False, accelerator="cpu")
    seen = []
    patience._run_early_stopping_check = seen.append
    patience.setup(trainer, module, "fit")
    patience._should_skip_check = lambda _: False
    module.small, module.small_share = 80, 0.6
    for share in (0.3, 0.7):
        module.share_done = lambda _, share=share: share
        patience.on_train_epoch_end(trainer, module)
    assert 1 == len(seen)


def coloured_network():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))


@pytest.mark.filterwarnings("ignore:.*noload")  # MLflow's own use of SQLAlchemy
def test_a_run_s_folder_that_was_copied_without_its_mlflow_store_begins_another(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "a" / "run").mkdir(parents=True)
    first = make_logger("mlflow", tmp_path / "a" / "run").run_id
    assert first == make_logger("mlflow", tmp_path / "a" / "run").run_id

    shutil.copytree(tmp_path / "a" / "run", tmp_path / "b" / "run")
    other = make_logger("mlflow", tmp_path / "b" / "run").run_id

    assert other and other != first
    assert other == (tmp_path / "b" / "run" / RUN_ID_FILE).read_text()


def test_a_card_names_the_options_that_its_figures_were_measured_with(tmp_path: Path) -> None:
    (tmp_path / "yunet.onnx").write_bytes(b"")
    settings = [
        f"data={tmp_path}",
        f"run={tmp_path}",
        f"video={tmp_path}",
        f"yunet={tmp_path / 'yunet.onnx'}",
        "limit=9",
    ]

    put_into_card(tmp_path, "landmarks", {"NME": "5 %"}, settings)

    command = "`mien evaluate landmarks data=FOLDER video=FOLDER yunet=yunet.onnx limit=9`"
    assert command in (tmp_path / "card.md").read_text()


def test_figures_of_other_weights_do_not_come_into_a_card(tmp_path: Path, untrained) -> None:
    from tests.test_backends import SPEC

    own = untrained(SPEC) / "landmarks"

    check_card("landmarks", own, [f"weights={own.parent}"])
    with pytest.raises(UsageError, match="is what is measured; set weights="):
        check_card("landmarks", own, [])


def test_a_still_clip_of_a_picture_with_odd_sides_is_coded(tmp_path: Path) -> None:
    picture = np.full((133, 97, 3), 90, np.uint8)

    frames = coded(picture, np.random.default_rng(0))

    assert {(132, 96, 3)} == {frame.shape for frame in frames}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("crop=300", "crop=300: must be a multiple of 32"),
        ("learn_from=LANDMARKS", "holds a StackedHourglass, not a detector"),
    ],
)
def test_a_detector_s_wrong_options_are_told_first(
    tmp_path: Path, untrained, setting: str, words: str
) -> None:
    from tests.test_backends import SPEC

    given = setting.replace("LANDMARKS", str(untrained(SPEC) / "landmarks"))
    with pytest.raises(UsageError, match=words):
        train_recipe("detector", [f"data={tmp_path}", f"run={tmp_path / 'run'}", given])


def test_a_limit_leaves_nobody_of_lfw_among_the_trained(sets: Path) -> None:
    from trainers.faces import FaceFinder
    from trainers.recognition import RecognitionConfig
    from trainers.recognition_sets import lfw_faces

    finder = FaceFinder()
    limited, whole = (lfw_faces(RecognitionConfig(data=str(sets), limit=each), finder) for each in (2, 0))

    assert set(limited) == set(whole) and len(whole) > 2


class Judged(Recipe):
    """Of four epochs the second has the lowest validation loss."""

    def loss(self, batch):
        return self.network(batch[0]).mean(), {}

    def validation_loss(self, _):
        return torch.tensor((1.0, 0.5, 2.0, 3.0)[self.current_epoch]), {}


class Numbers(RandomSamples):
    def sample(self, rng):
        return (rng.random(4).astype(np.float32),)


def test_the_best_figures_are_those_of_the_weights_that_are_kept(tmp_path: Path) -> None:
    options = FitOptions(epochs=4, steps_per_epoch=2, batch_size=2, threads=1, progress=False)

    fit(Judged(nn.Linear(4, 1), options), Numbers(4), tmp_path, TensorDataset(torch.ones(2, 4)))

    last, best = (json.loads((tmp_path / name).read_text()) for name in (METRICS_FILE, BEST_METRICS_FILE))
    assert (3.0, 0.5) == (last["val_loss"], best["val_loss"])
    assert 1 == torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"]


@pytest.mark.parametrize("train", [lambda given: train_recipe("landmarks", given), train_closed_set])
def test_patience_without_a_validation_loss_is_refused(train) -> None:
    with pytest.raises(UsageError, match=r"fit\.patience: there is no validation loss to wait for"):
        train(["fit.patience=3"])


def test_a_closed_set_s_run_of_before_november_goes_on(tmp_path: Path) -> None:
    config = ClosedSetConfig(run=str(tmp_path), loss="ce", degrees=5.0)
    fixed = fixed_options(config) | {"choice of images": "abc"}
    (tmp_path / "options.json").write_text(json.dumps({"fixed": fixed, "length": {"epochs": 30}}))
    (tmp_path / "last.ckpt").touch()

    for other, content in ((dataclasses.replace(config, degrees=10.0), "abc"), (config, "abd")):
        with pytest.raises(MienError, match="was begun with another"):
            claim(other, [content])
    claim(config, ["abc"])
