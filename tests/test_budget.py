"""`mien train all` over several calls: what the first one chose holds for the next."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.errors import MienError, UsageError
from tests.face_sets import face, point_columns, write_zip
from trainers import budget
from trainers.attributes import AttributesConfig
from trainers.run_options import claim

TINY = ["fit.batch_size=4", "fit.steps_per_epoch=1", "fit.threads=1", "fit.precision=32-true"]


class Trainings:
    """In the place of `train_recipe`: each is killed; keeps what it was given, and the state at its start."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.settings: list[list[str]] = []
        self.states: list[dict] = []

    def __call__(self, recipe: str, settings: list[str], *_: str) -> Path:
        self.settings.append(settings)
        self.states.append(json.loads((self.run / budget.STATE_FILE).read_text())[recipe])
        raise KeyboardInterrupt  # nothing is caught, as by a kill

    def given(self, key: str) -> list[str]:
        return [value for settings in self.settings for name, _, value in [s.partition("=") for s in settings]
                if name == key]  # fmt: skip


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    watched = Trainings(tmp_path)
    monkeypatch.setattr(budget, "train_recipe", watched)
    return watched


def test_a_second_call_trains_on_as_many_images_as_the_first(tmp_path, trainings):
    for time_given in ("10m", "3h"):
        with pytest.raises(KeyboardInterrupt):
            budget.train_all([f"run={tmp_path}"], time_given, lambda _: None)

    first, second = trainings.given("limit")
    assert first == second and int(first) > 40
    assert [int(first)] * 2 == [state["limit"] for state in trainings.states]


def test_train_all_on_two_devices_is_refused_before_it_starts(tmp_path, trainings):
    with pytest.raises(UsageError, match=r"fit.devices=2: `train all` trains on one device"):
        budget.train_all([f"run={tmp_path}", "fit.devices=2"], "10m", lambda _: None)

    assert not trainings.settings and not list(tmp_path.iterdir())


@pytest.fixture
def people(tmp_path):
    """Faces of which the first fifty are two people's, the others' twenty more."""
    rng = np.random.default_rng(281)
    pictures, rows = {}, []
    drawn, points = face(rng, 128, 25, 0.45)
    for i in range(90):
        name = f"{i:06d}.webp"
        pictures[name] = cv2.convertScaleAbs(drawn, alpha=0.5 + i / 180)
        identity = 100 + 10 * (i % 2 if i < 50 else i % 20)
        rows.append({"file": name, "identity": identity, **point_columns(points)})
    write_zip(tmp_path / "celeba_faces.zip", pictures, rows)
    return tmp_path


def test_a_call_with_more_time_goes_on_with_the_network_that_the_first_began(people, monkeypatch):
    monkeypatch.setattr(budget, "SHARES", {"recognition": 1.0})
    monkeypatch.setattr(budget, "CONFIGS", {})
    settings = [f"data={people}", f"run={people / 'runs'}", *TINY]
    state = people / "runs" / budget.STATE_FILE

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainers.recipes.finish", killed)
        budget.train_all([*settings, "fit.epochs=1"], "1s", lambda _: None)
    first = json.loads(state.read_text())["recognition"]
    told: list[str] = []
    done = budget.train_all([*settings, "fit.epochs=2"], "120s", told.append)

    assert (40, "") == (first["limit"], first["checkpoint"])
    assert {"recognition"} == set(done), told
    assert 40 == json.loads(state.read_text())["recognition"]["limit"]


def test_a_run_of_train_all_goes_on_with_the_start_that_it_began_with(tmp_path):
    def start():
        return [each for each in budget._for_this_machine("attributes", 40, tmp_path) if "start" in each]

    assert [] == start()
    (tmp_path / "recognition" / "embedder").mkdir(parents=True)
    assert [f"start={tmp_path / 'recognition' / 'embedder'}"] == start()
    (tmp_path / "attributes").mkdir()
    (tmp_path / "attributes" / "options.json").write_text('{"start": ""}', encoding="utf-8")
    assert 1 == len(start())
    (tmp_path / "attributes" / "last.ckpt").touch()
    assert [] == start()


def claimed(run, start):
    claim(AttributesConfig(run=str(run), start=str(start)))


@pytest.fixture
def begun(tmp_path):
    """runs/attributes, which started from runs/recognition/embedder."""
    (tmp_path / "runs" / "recognition" / "embedder").mkdir(parents=True)
    claimed(tmp_path / "runs" / "attributes", tmp_path / "runs" / "recognition" / "embedder")
    (tmp_path / "runs" / "attributes" / "last.ckpt").touch()
    return tmp_path / "runs"


def test_a_run_goes_on_where_it_or_all_was_moved_and_from_wherever_it_is_told_of(
    begun, tmp_path, monkeypatch
):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    claimed("../../runs/attributes", "../../runs/recognition/embedder")

    alone = (begun / "attributes").rename(tmp_path / "alone")
    claimed(alone, begun / "recognition" / "embedder")
    claimed(alone.rename(begun / "attributes"), begun / "recognition" / "embedder")
    moved = begun.rename(tmp_path / "elsewhere")
    claimed(moved / "attributes", moved / "recognition" / "embedder")


def test_a_run_does_not_go_on_with_other_weights(begun):
    for other in (begun / "recognition" / "another", "", "imagenet"):
        with pytest.raises(MienError, match="was begun with another start;"):
            claimed(begun / "attributes", other)
