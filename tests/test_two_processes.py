"""Trainings by several processes, one after the other in one command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import MienError
from tests.processes import MIEN, ROOT
from trainers.recipes import train_recipe

TINY = ["fit.accelerator=cpu", "fit.threads=1", "fit.epochs=1", "limit=12"]
TINY += ["fit.steps_per_epoch=1", "fit.batch_size=3", "stacks=1", "channels=8"]
TWICE = """
import os
from trainers.recipes import train_recipe
for name in ("first", "second"):
    train_recipe("landmarks", [*{settings!r}, f"run={folder}/{{name}}"])
    print("trained", name, [os.environ.get(each) for each in ("LOCAL_RANK", "MASTER_PORT")], flush=True)
"""


def run_twice(folder: Path, settings: list[str]) -> list[str]:
    """What a script says that trains twice, with what its processes were started with."""
    script = folder / "twice.py"
    script.write_text(TWICE.format(settings=settings, folder=folder))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()


def test_a_second_training_starts_processes_of_its_own(sets, tmp_path):
    said = run_twice(tmp_path, ["fit.devices=2", *TINY, f"data={sets}"])

    # The other process of the second training runs the script again, and passes over the first.
    assert 2 == sum(line.startswith("epoch 1/1") for line in said)
    assert [f"trained {name} [None, None]" for name in ("first", "second")] == [
        line for line in said if line.endswith("[None, None]")
    ]
    assert ["first"] == [line.split()[1] for line in said if line.startswith("trained") and "['1'" in line]
    assert all(
        (tmp_path / name / "landmarks" / "weights.safetensors").is_file() for name in ("first", "second")
    )


def test_a_finished_run_of_another_network_is_still_told_apart(sets, tmp_path):
    settings = [*TINY, f"data={sets}", f"run={tmp_path}"]
    train_recipe("landmarks", settings)

    with pytest.raises(MienError, match=r"was begun with another channels; set another run="):
        train_recipe("landmarks", [*settings, "channels=16"])


def test_two_processes_are_judged_and_lose_patience_together(expression_sets, tmp_path):
    settings = ["model=cnn", "training=testing_2_epochs", "training.accelerator=cpu", "training.threads=1"]
    settings += [
        "training.batch_size=4",
        "training.steps_per_epoch=3",
        "training.epochs=30",
        "training.devices=2",
    ]
    settings += ["training.learning_rate=0.0", "training.patience=1", "small=48", "small_share=0.1"]

    command = [MIEN, "train", "expression", *settings, f"data={expression_sets}", f"run={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert 0 == done.returncode, done.stderr
    assert 4 <= done.stdout.count("epoch ") < 20  # three while images are small, with which it has patience
    assert (tmp_path / "expression" / "weights.safetensors").is_file()
