"""A stage that fails in one batch takes nothing from the tracks."""

import contextlib

import pytest

from tests.fakes import FakeAttributes, FakeEmbedder, FakeLandmarks, fake_engines, walk
from tests.test_pipeline import OTHER, STAY, pipeline_of, turns_of


class Failing:
    """An engine that fails at the calls of these numbers."""

    def __init__(self, engine, *calls):
        self._engine, self._left, self._calls = engine, 0, calls
        self.spec, self.input_size, self.backend = engine.spec, engine.input_size, engine.backend

    def __call__(self, batch):
        self._left += 1
        if self._left in self._calls:
            raise RuntimeError("out of memory")
        return self._engine(batch)


def told_despite(pipeline, frames):
    events = []
    for each in frames:
        with contextlib.suppress(RuntimeError):
            events += pipeline.process([each])
    return events


@pytest.mark.parametrize(
    "engines", [{"attributes": Failing(FakeAttributes(), 1)}, {"embedder": Failing(FakeEmbedder(), 1)}]
)
def test_who_enters_while_a_stage_fails_is_told_of_with_the_next_frame(engines):
    pipeline = pipeline_of(engines=fake_engines(**engines))

    events = told_despite(pipeline, walk(STAY, num=20)) + pipeline.close_camera("door")

    assert [(1, "entered"), (1, "identified"), (1, "left")] == turns_of(events)


def test_of_who_was_never_seen_whole_no_end_is_told():
    pipeline = pipeline_of(engines=fake_engines(landmarks=Failing(FakeLandmarks(), 1, 2)))

    events = told_despite(pipeline, walk(STAY, num=3)) + pipeline.close_camera("door")

    assert [] == turns_of(events)


def test_the_end_of_a_track_is_told_though_the_batch_failed():
    """Ann leaves; when her track is given up, the stage that looks at Bob fails."""
    frames = walk(STAY, OTHER, num=5) + walk(OTHER, num=205)[5:]
    pipeline = pipeline_of(engines=fake_engines(landmarks=Failing(FakeLandmarks(), *range(30, 200))))

    events = told_despite(pipeline, frames)

    assert (1, "left") in turns_of(events)
