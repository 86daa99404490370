"""The trainers as software: killed and resumed, in a budget, with groups, and with what is not installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engines.checkpoint import load_checkpoint
from engines.errors import MienError, UsageError
from tests.processes import MIEN
from trainers import fit as fit_module
from trainers import precision
from trainers.fit import FitOptions
from trainers.options import override
from trainers.provenance import git_revision
from trainers.recipes import train_recipe
from trainers.run_options import OPTIONS_FILE

ROOT = Path(__file__).parents[1]
TINY = [
    "model=cnn",
    "training=testing_2_epochs",
    "training.threads=1",
    "training.precision=32-true",
    "training.accelerator=cpu",
    "training.steps_per_epoch=3",
    "training.batch_size=4",
    "training.epochs=4",
]


@pytest.fixture(scope="module")
def whole(expression_sets, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole")
    train_recipe("expression", [*TINY, f"data={expression_sets}", f"run={run}"])
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def start(settings: list[str]) -> subprocess.Popen:
    code = f"from trainers.recipes import train_recipe; train_recipe('expression', {settings!r})"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(expression_sets, whole, tmp_path):
    settings = [*TINY, f"data={expression_sets}", f"run={tmp_path}"]
    with start(settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                os.kill(process.pid, signal.SIGKILL)
    assert -signal.SIGKILL == process.returncode
    assert 4 > torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] + 1

    train_recipe("expression", settings)

    resumed, undisturbed = weights(tmp_path), weights(whole)
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)


def test_two_processes_train_one_network(sets, tmp_path):
    settings = [
        "fit.devices=2",
        "fit.accelerator=cpu",
        "fit.threads=1",
        "fit.epochs=2",
        "fit.steps_per_epoch=2",
    ]
    settings += ["fit.batch_size=3", f"data={sets}", f"run={tmp_path}", "limit=12"]

    command = [MIEN, "train", "landmarks", *settings]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert ["1/2", "2/2"] == [line.split()[1] for line in said if line.startswith("epoch")]
    assert all(torch.isfinite(p).all() for p in load_checkpoint(tmp_path / "landmarks")[0].parameters())


def test_another_seed_gives_other_weights_and_the_card_names_it(expression_sets, whole, tmp_path):
    settings = [*TINY, f"data={expression_sets}", f"run={tmp_path}", "training.seed=7"]

    checkpoint = train_recipe("expression", settings)

    assert not torch.equal(
        weights(tmp_path)["network.head.0.weight"], weights(whole)["network.head.0.weight"]
    )
    assert "seed 7" in (checkpoint / "card.md").read_text()


def test_a_seed_below_nought_is_told():
    with pytest.raises(UsageError, match=r"fit.seed=-1: must be 0 or more"):
        override(FitOptions(), ["seed=-1"])


@pytest.mark.parametrize(
    ("flags", "bf16_seconds", "chosen"),
    [({"avx512_bf16"}, 0.6, "bf16-mixed"), ({"avx512_bf16"}, 2.0, "32-true"), ({"avx2"}, 0.6, "32-true")],
)
def test_the_precision_is_what_this_cpu_is_faster_in_and_stays_the_run_s(
    monkeypatch, tmp_path, flags, bf16_seconds, chosen
):
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 1.0}
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(precision, "step_seconds", seconds.__getitem__)

    assert chosen == precision.precision_of("auto", "cpu", tmp_path)
    seconds[torch.bfloat16] = 1.6 - bf16_seconds
    assert chosen == precision.precision_of("auto", "cpu", tmp_path)
    assert chosen == precision.recorded_precision("auto", tmp_path)
    assert "16-mixed" == precision.precision_of("16-mixed", "cpu", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_either_precision_takes_time(dtype):
    assert 0 < precision.step_seconds(dtype) < 60


def test_a_finished_run_is_not_trained_again(expression_sets, whole, capsys):
    train_recipe("expression", [*TINY, f"data={expression_sets}", f"run={whole}"])

    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("model.kind=cnn_large", "model.kind"),
        ("training.seed=7", "training.seed"),
        ("training.learning_rate=0.5", "training.learning_rate"),
        ("model.start=engines/weights/embedder", "model.start"),
        ("balance=1", "balance"),
    ],
)
def test_a_run_is_not_gone_on_with_under_other_options(expression_sets, whole, changed, named):
    card = (whole / "expression" / "card.md").read_text(encoding="utf-8")

    with pytest.raises(MienError, match=rf"{whole}: was begun with another {named}; set another run="):
        train_recipe("expression", [*TINY, f"data={expression_sets}", f"run={whole}", changed])
    assert card == (whole / "expression" / "card.md").read_text(encoding="utf-8")


def test_a_run_may_be_made_longer_and_told_on_another_way(expression_sets, tmp_path, capsys):
    settings = [*TINY, f"data={expression_sets}", f"run={tmp_path}"]
    train_recipe("expression", [*settings, "training.epochs=1"])

    train_recipe("expression", [*settings, "training.epochs=2", "training.patience=3", "logging.logger=csv"])

    said = capsys.readouterr().out
    assert "epoch 1/1" in said and "epoch 2/2" in said and "epoch 1/2" not in said


def test_a_run_s_folder_that_was_moved_knows_its_best(expression_sets, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "moved")
    before = kept(whole)
    train_recipe("expression", [*TINY, f"data={expression_sets}", f"run={run}", "training.epochs=5"])

    after = kept(run)
    assert after["best_model_score"] <= before["best_model_score"]
    assert str(run / "best.ckpt") == after["best_model_path"] and list(after["best_k_models"]) == [
        str(run / "best.ckpt")
    ]
    assert (whole / "best.ckpt").is_file()


def kept(run: Path) -> dict:
    states = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]
    return next(state for name, state in states.items() if "val_loss" in name and "best_k_models" in state)


def test_a_run_of_before_with_another_network_is_told(expression_sets, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / OPTIONS_FILE).unlink()

    with pytest.raises(
        MienError, match=r"last.ckpt: holds a run of another network; choose another run=FOLDER"
    ):
        train_recipe("expression", [*TINY, f"data={expression_sets}", f"run={run}", "model.kind=cnn_large"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs=0", "must be 1 or more"),
        ("epochs=-1", "must be 1 or more"),
        ("steps_per_epoch=0", "must be 1 or more"),
        ("batch_size=0", "must be 1 or more"),
        ("devices=0", "must be 1 or more"),
        ("learning_rate=-1.0", "must be 0 or more"),
        ("workers=-1", "must be 0 or more"),
        ("threads=-1", "must be 0 or more"),
        ("ema_decay=1.0", "must be below 1"),
        ("accelerator=nonsense", "is none of auto, cpu, gpu, cuda"),
        ("precision=f32", "is none of auto, 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_a_wrong_pace_is_told_before_anything_is_read(tmp_path, setting, words):
    with pytest.raises(UsageError, match=rf"fit.{setting}: {words}"):
        train_recipe("landmarks", [f"fit.{setting}", "data=nowhere", f"run={tmp_path}"])


@pytest.mark.parametrize(
    ("gpus", "settings", "words"),
    [
        (0, ["fit.accelerator=gpu"], "fit.accelerator=gpu: "),
        (1, ["fit.devices=2"], "fit.devices=2: there are 1 GPUs here"),
    ],
)
def test_more_gpus_than_there_are_are_told_before_anything_is_read(
    monkeypatch, tmp_path, gpus, settings, words
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    with pytest.raises(UsageError, match=words):
        train_recipe("landmarks", [*settings, "data=nowhere", f"run={tmp_path}"])


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        (
            "landmarks",
            ["start=engines/weights/embedder"],
            "is a FaceResNet for embedder, not a StackedHourglass",
        ),
        ("landmarks", ["start=engines/weights/landmarks", "stacks=1"], "has stacks=2; set it so"),
        (
            "recognition",
            ["start=engines/weights/attributes"],
            "is a AttributesNet for attributes, not a FaceResNet",
        ),
        (
            "recognition",
            ["start=engines/weights/embedder", "embedding_size=64"],
            "has embedding_size=192; set",
        ),
    ],
)
def test_a_start_of_another_network_is_told_before_anything_is_read(sets, tmp_path, recipe, settings, words):
    with pytest.raises(UsageError, match=words):
        train_recipe(recipe, [*settings, f"data={sets}", f"run={tmp_path}"])


def test_each_of_two_processes_takes_every_second_sample(monkeypatch):
    monkeypatch.setattr(fit_module.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(fit_module.distributed, "get_rank", lambda: 1)

    mine = fit_module._EachInTurn(6)

    assert ([1, 3, 5], 3) == (list(mine), len(mine))


def test_the_card_says_where_the_model_comes_from(expression_sets, whole):
    card = (whole / "expression" / "card.md").read_text()

    assert git_revision() in card
    assert "ferplus.zip" in card and "seed 281" in card
    lowest = round(float(kept(whole)["best_model_score"]), 4)
    assert f"- these weights' epoch: val_loss {lowest}," in card
    assert str(expression_sets) not in card


def test_training_ends_when_validation_gets_no_better(expression_sets, tmp_path, capsys):
    settings = [
        *TINY,
        f"data={expression_sets}",
        f"run={tmp_path}",
        "training.learning_rate=0.0",
        "training.patience=1",
    ]

    train_recipe("expression", [*settings, "training.epochs=30"])
    first = capsys.readouterr().out.count("epoch ")
    train_recipe("expression", [*settings, "training.epochs=30"])

    assert first < 10
    said = capsys.readouterr().out
    assert 0 == said.count("epoch ") and "ended after 1 epochs without a lower validation loss" in said

    train_recipe("expression", [*settings, "training.epochs=30", "training.patience=2"])
    assert 1 <= capsys.readouterr().out.count("epoch ") < 10


ABSENT = (
    "hydra",
    "omegaconf",
    "mlflow",
    "msgspec",
    "zmq",
    "structlog",
    "av",
    "prometheus_client",
    "matplotlib",
)
ABSENT += ("pydantic", "tensorboard")
WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)
    @classmethod
    def find_distributions(cls, *context):
        return (each for each in super().find_distributions(*context) if each.name not in {absent!r})
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import daemon.cli  # and the commands of trainers
from trainers.commands import train
train({recipe!r}, {settings!r})
"""


def train_without(recipe: str, *settings: str) -> str:
    """What `mien train` says where none of ABSENT is installed. Past typer, whose newer versions need pydantic."""
    code = WITHOUT.format(absent=ABSENT, recipe=recipe, settings=[*settings, "fit.threads=1"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def test_training_needs_neither_hydra_nor_mlflow_nor_the_daemon_s_libraries(expression_sets, tmp_path):
    settings = ["model.kind=cnn", "fit.epochs=1", "fit.steps_per_epoch=1", "fit.batch_size=4", "validated=5"]

    train_without("expression", f"data={expression_sets}", f"run={tmp_path}", *settings)

    assert (tmp_path / "expression" / "weights.safetensors").is_file()


def test_ffhq_without_matplotlib_leaves_the_pictures_out_and_says_so_once(sets, tmp_path):
    settings = ["crop=thumbnail", "input_size=64", "start=", "picture_every=1", "fit.epochs=2"]

    said = train_without("ffhq", f"data={sets}", f"run={tmp_path}", *settings, "fit.batch_size=16")

    assert 1 == said.count("they need matplotlib")
    assert {"epoch_001", "epoch_002", "history.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.png"))


def test_a_second_call_of_train_all_goes_on_where_the_first_was_killed(tmp_path, monkeypatch):
    from trainers import budget

    calls = []

    def train(recipe: str, settings: list[str], logger: str) -> Path:
        calls.append(recipe)
        if len(calls) == 3:
            raise KeyboardInterrupt  # as a kill: nothing is caught
        return tmp_path / recipe

    monkeypatch.setattr(budget, "train_recipe", train)
    with pytest.raises(KeyboardInterrupt):
        budget.train_all([f"run={tmp_path}"], "60s", lambda _: None)
    done = budget.train_all([f"run={tmp_path}"], "60s", lambda _: None)

    assert calls.count(calls[2]) == 2
    assert set(calls) == set(done) == set(json.loads((tmp_path / budget.STATE_FILE).read_text()))
    assert len(calls) == len(done) + 1
