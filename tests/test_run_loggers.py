"""Where the figures of a run go when nobody says: MLflow in a local folder, CSV where it is absent."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from engines.errors import UsageError
from tests.processes import MIEN
from trainers import commands
from trainers.run_loggers import RUN_ID_FILE

TINY = ["fit.threads=1", "fit.steps_per_epoch=2", "fit.batch_size=3", "limit=12"]


def mlflow_rows(store: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def test_a_training_and_its_resumption_are_one_mlflow_run_with_the_losses_of_both(sets, tmp_path):
    run = tmp_path / "landmarks"
    for epochs in (1, 2):
        words = ["train", "landmarks", f"data={sets}", f"run={run}", f"fit.epochs={epochs}", *TINY]
        subprocess.run([MIEN, *words], capture_output=True, check=True)

    rows = mlflow_rows(tmp_path / "mlruns", "select run_uuid, step, value from metrics where key = 'loss'")
    assert {(run / RUN_ID_FILE).read_text()} == {name for name, _, _ in rows}
    assert 2 == len(rows) and all(0 < value < 1000 for _, _, value in rows)


@pytest.mark.parametrize("logger", ["csv", "mlflow"])
def test_train_all_logs_where_each_recipe_does(tmp_path, monkeypatch, logger):
    loggers = []

    def train(recipe: str, settings: list[str], logger: str) -> Path:
        loggers.append(logger)
        return tmp_path / recipe

    monkeypatch.setattr("trainers.budget.train_recipe", train)
    monkeypatch.setattr("trainers.run_loggers.default_logger", lambda: logger)
    commands.train("all", [f"run={tmp_path}"], "10m")
    by_default = list(loggers)
    commands.train("all", [f"run={tmp_path / 'own'}", "fit.logger=csv"], "10m")

    assert [logger] * len(commands.RECIPES) == by_default
    assert ["csv"] * len(commands.RECIPES) == loggers[len(by_default) :]


def test_closed_set_logs_where_the_recipes_do_unless_it_is_told_otherwise(monkeypatch):
    given = []
    monkeypatch.setattr("trainers.closed_set.train_closed_set", given.append)
    monkeypatch.setattr("trainers.run_loggers.default_logger", lambda: "mlflow")

    commands.train("closed_set", ["fit.logger=csv"])

    assert [["fit.logger=mlflow", "fit.logger=csv"]] == given  # the last one counts


@pytest.mark.parametrize("recipe", ["landmarks", "closed_set", "all"])
@pytest.mark.parametrize(
    ("logger", "words"),
    [
        ("wandb", "logger 'wandb' is none of csv, mlflow, tensorboard"),
        ("tensorboard", "pip install tensorboard, or choose csv"),
        ("mlflow", "pip install mlflow, or choose csv"),
    ],
)
def test_a_logger_that_is_not_there_is_refused_before_any_data_are_read(
    tmp_path, monkeypatch, recipe, logger, words
):
    monkeypatch.setattr("trainers.run_loggers.find_spec", lambda name: None)
    settings = [f"fit.logger={logger}", f"run={tmp_path / 'run'}"]
    settings.append(f"{'faces' if recipe == 'closed_set' else 'data'}={tmp_path / 'none'}")

    with pytest.raises(UsageError, match=words):
        commands.train(recipe, settings, "10m" if recipe == "all" else None)


def test_the_logging_group_is_checked_before_any_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.run_loggers.find_spec", lambda name: None)

    with pytest.raises(UsageError, match="pip install tensorboard"):
        commands.train("expression", ["logging=tensorboard", f"data={tmp_path / 'none'}"])


def test_tensorboard_gets_a_file_of_events(sets, tmp_path):
    pytest.importorskip("tensorboard")
    words = [f"data={sets}", f"run={tmp_path}", "fit.epochs=1", "fit.logger=tensorboard", *TINY]

    subprocess.run([MIEN, "train", "landmarks", *words], capture_output=True, check=True)

    assert 1 == len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*")))
