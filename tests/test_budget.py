"""`mien train all` over several calls: what the first one chose holds for the next."""

import json
from pathlib import Path

import pytest

from engines.errors import UsageError
from trainers import budget


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
    with pytest.raises(UsageError, match=r"fit.devices=2: one training a command"):
        budget.train_all([f"run={tmp_path}", "fit.devices=2"], "10m", lambda _: None)

    assert not trainings.settings and not list(tmp_path.iterdir())
