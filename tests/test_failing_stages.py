"""What fails in one batch takes nothing from the tracks, nor from the cameras of other pipelines."""

import contextlib

import pytest

from daemon.config import ServiceConfig
from daemon.pipelines import PartlyFailedError, PipelinesByCamera
from tests.clips import grey_levels, write_clip
from tests.fakes import FakeAttributes, FakeEmbedder, FakeLandmarks, fake_engines, walk
from tests.test_pipeline import OTHER, STAY, pipeline_of, turns_of
from tests.wire import FakePipeline, config_of, is_state, messages_until, of_topic, running


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


class Broken(FakePipeline):
    def process(self, frames):
        raise ZeroDivisionError("a stage fails")


def test_a_pipeline_that_fails_keeps_no_event_of_the_others_back():
    both = PipelinesByCamera({"yard": Broken(), "door": FakePipeline(), "gate": FakePipeline()})
    frames = {name: walk(STAY, num=1, camera=name)[0] for name in ("door", "yard", "gate")}

    with pytest.raises(PartlyFailedError, match="yard: a stage fails") as raised:
        both.process(list(frames.values()))

    assert {"door", "gate"} == {event.camera for event in raised.value.events}
    assert [["yard"]] == [cameras for _, cameras in raised.value.failures]
    assert isinstance(raised.value.failures[0][0], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        both.process([frames["yard"]])


@pytest.fixture
def cameras(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(20), fps=50)
    return [{"name": name, "source": str(clip), "speed": "max"} for name in ("door", "yard")]


def daemon_with(cameras, max_failures):
    config = config_of(*cameras).model_copy(update={"service": ServiceConfig(max_failures=max_failures)})
    return running(config, PipelinesByCamera({"door": FakePipeline(), "yard": Broken()}))


def test_the_frames_of_the_other_pipelines_are_published_and_count_as_processed(cameras):
    with daemon_with(cameras, max_failures=1000) as (_, socket):
        messages = messages_until(socket, lambda message: message[0].endswith("/heartbeat"))

    assert list(range(20)) == [event["seq"] for event in of_topic(messages, "mien/1/door/faces")]
    heartbeat = messages[-1][1]
    assert (40, 20, 20) == (
        heartbeat["frames_in"],
        heartbeat["frames_processed"],
        heartbeat["dropped"]["failed"],
    )


def test_a_pipeline_that_fails_too_often_ends_the_daemon_with_its_own_error(cameras):
    with (
        pytest.raises(ZeroDivisionError),
        daemon_with(cameras, max_failures=2) as (_, socket),
    ):
        messages_until(socket, is_state("_daemon", "stopping"))


def test_of_two_pipelines_that_fail_each_says_why():
    class Hung(FakePipeline):
        def process(self, frames):
            raise TimeoutError("it hangs")

    both = PipelinesByCamera({"yard": Broken(), "door": Hung()})
    frames = [walk(STAY, num=1, camera=name)[0] for name in ("door", "yard")]

    with pytest.raises(PartlyFailedError, match="door: it hangs") as raised:
        both.process(frames)

    told = {cameras[0]: type(error) for error, cameras in raised.value.failures}
    assert {"yard": ZeroDivisionError, "door": TimeoutError} == told
