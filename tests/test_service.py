from __future__ import annotations

import json
import os
import signal
import socket as sockets
import threading
import time

import jsonschema
import pytest
from structlog.testing import capture_logs

from daemon.notify import notify, watchdog_interval_s
from daemon.pipelines import LoadedPipeline, PipelinesByCamera
from daemon.publisher import Publisher
from daemon.records import event_schemas
from daemon.service import Service
from daemon.signals import stop_on_signals
from daemon.sources import read_video
from engines.errors import MienError, UsageError
from tests.clips import grey_levels, write_clip
from tests.wire import FakePipeline, config_of, is_state, messages_until, of_topic, running

SCHEMAS = event_schemas()


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", grey_levels(20), fps=50)


def camera(clip, name="door", **more):
    return {"name": name, "source": str(clip), "speed": "max", **more}


def test_every_frame_of_a_file_is_published_in_order(clip):
    with running(config_of(camera(clip))) as (_, socket):
        messages = messages_until(socket, is_state("door", "ended"))

    faces = of_topic(messages, "mien/1/door/faces")
    assert list(range(20)) == [event["frame"]["index"] for event in faces]
    assert list(range(20)) == [event["seq"] for event in faces]


def test_a_cameras_life_is_told_in_order(clip):
    with running(config_of(camera(clip))) as (_, socket):
        messages = messages_until(socket, is_state("_daemon", "stopping"))

    states = [event["state"] for event in of_topic(messages, "mien/1/door/status")]
    topics = [topic for topic, _ in messages]
    assert states == ["connecting", "online", "ended"]
    assert topics.index("mien/1/door/track") < len(topics) - topics[::-1].index("mien/1/door/status") - 1
    assert max(i for i, topic in enumerate(topics) if topic.endswith("/faces")) < topics.index(
        "mien/1/door/track"
    )


def test_everything_published_fits_the_shipped_schemas(clip):
    with running(config_of(camera(clip), heartbeat_s=0.05)) as (_, socket):
        messages = messages_until(socket, is_state("_daemon", "stopping"))

    kinds = {topic.rpartition("/")[2] for topic, _ in messages}
    assert {"faces", "track", "status"} <= kinds
    for topic, event in messages:
        jsonschema.Draft202012Validator(SCHEMAS[topic.rpartition("/")[2]]).validate(event)


def test_the_daemon_ends_when_its_last_source_does(clip):
    with running(config_of(camera(clip))) as (daemon, socket):
        messages_until(socket, is_state("_daemon", "stopping"))
        daemon.thread.join(5)

        assert not daemon.thread.is_alive()


def test_what_all_cameras_have_ready_is_one_batch(clip):
    pipeline = FakePipeline(delay_s=0.02)

    with running(config_of(camera(clip, "door"), camera(clip, "yard")), pipeline) as (_, socket):
        messages_until(socket, is_state("_daemon", "stopping"))

    assert 20 <= len(pipeline.batches) <= 24
    assert [name for name, _ in pipeline.batches[5]] == ["door", "yard"]


def test_cameras_of_different_pipelines_share_an_iteration_but_not_a_batch(clip):
    near, far = FakePipeline(), FakePipeline()
    frames = {name: next(read_video(clip, camera=name)) for name in ("door", "yard", "gate")}

    both = PipelinesByCamera({"door": near, "yard": far, "gate": near})
    events = both.process([frames["door"], frames["yard"], frames["gate"]])

    assert near.batches == [[("door", 0), ("gate", 0)]]
    assert far.batches == [[("yard", 0)]]
    assert {event.camera for event in events} == {"door", "yard", "gate"}
    assert [event.camera for event in both.close_camera("yard")] == ["yard"]


def test_a_camera_switched_off_is_left_alone(clip):
    config = config_of(camera(clip, "door"), camera("nothing.mp4", "yard", enabled=False))

    with running(config) as (_, socket):
        messages = messages_until(socket, is_state("_daemon", "stopping"))

    assert not [topic for topic, _ in messages if topic.startswith("mien/1/yard/")]


def test_heartbeat_counts_frames_and_names_engines(clip):
    with running(config_of(camera(clip)), FakePipeline(delay_s=0.002)) as (_, socket):
        messages = messages_until(socket, lambda message: message[0] == "mien/1/_daemon/heartbeat")

    heartbeat = messages[-1][1]
    assert (heartbeat["frames_in"], heartbeat["frames_processed"]) == (20, 20)
    assert heartbeat["engines"] == {"detector": "fake"}
    assert 0 < heartbeat["latency_ms"]["p50"] <= heartbeat["latency_ms"]["p99"] < 5000


def test_stopping_ends_tracks_and_tells_the_cameras_are_offline(clip):
    with running(config_of(camera(clip, loop=True, speed="realtime"))) as (daemon, socket):
        messages_until(socket, lambda message: message[0] == "mien/1/door/faces")
        started = time.monotonic()
        daemon.stop.set()
        messages = messages_until(socket, is_state("door", "offline"))

    assert time.monotonic() - started < 2
    assert [event["phase"] for event in of_topic(messages, "mien/1/door/track")] == ["left"]


def test_who_subscribes_late_is_told_the_state_of_things(clip):
    import zmq

    with running(config_of(camera(clip, loop=True, speed="realtime"))) as (daemon, socket):
        messages_until(socket, is_state("door", "online"))
        with zmq.Context() as context, context.socket(zmq.SUB) as late:
            late.linger, late.rcvtimeo = 0, 5000
            late.subscribe("mien/1/door/status")
            late.connect(daemon.service.publisher.endpoint)
            event = json.loads(late.recv_multipart()[1])

    assert (event["state"], event["resent"]) == ("online", True)


def test_a_source_that_cannot_be_read_stops_the_start_by_name(tmp_path):
    config = config_of(camera(tmp_path / "none.mp4"))

    with pytest.raises(MienError, match=r"camera door: .*none.mp4: no such file"):
        Service(config, lambda _: pytest.fail("loaded")).run()


def test_an_endpoint_in_use_stops_the_start_before_anything_is_loaded(clip):
    with (
        Publisher("tcp://127.0.0.1:*", instance="other") as other,
        pytest.raises(MienError, match="already in use"),
    ):
        config = config_of(camera(clip), endpoint=other.endpoint)
        Service(config, lambda _: pytest.fail("loaded")).run()


def test_without_a_camera_there_is_nothing_to_run():
    with pytest.raises(UsageError, match="no camera"):
        Service(config_of(), lambda _: pytest.fail("loaded")).run()


def test_a_bug_in_the_pipeline_ends_the_daemon(clip):
    class Broken(FakePipeline):
        def process(self, frames):
            raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        running(config_of(camera(clip)), Broken()) as (_, socket),
    ):
        messages_until(socket, is_state("_daemon", "stopping"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_event_and_the_old_handler_returns(number):
    before, stop = signal.getsignal(number), threading.Event()

    with stop_on_signals(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(1)

    assert before == signal.getsignal(number)


def test_a_real_signal_stops_a_daemon_at_work(clip):
    stop, pipeline = threading.Event(), FakePipeline()
    config = config_of(camera(clip, loop=True, speed="realtime"))
    kill = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))

    with stop_on_signals(stop), capture_logs() as logs:
        kill.start()
        Service(config, lambda _: LoadedPipeline(pipeline, {}), stop).run()

    assert pipeline.batches
    assert [entry["event"] for entry in logs][-2:] == ["camera_offline", "stopped"]


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    path = tmp_path / "notify"
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


def told(listener):
    words = []
    while True:
        try:
            words.append(listener.recv(100).decode())
        except BlockingIOError:
            return words


def test_systemd_is_told_ready_alive_and_stopping(clip, systemd, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    with running(config_of(camera(clip)), FakePipeline(delay_s=0.01)) as (_, socket):
        messages_until(socket, is_state("_daemon", "stopping"))

    words = told(systemd)
    assert (words[0], words[-1]) == ("READY=1", "STOPPING=1")
    assert words.count("WATCHDOG=1") >= 3


def test_without_systemd_nothing_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    notify("READY=1")

    assert watchdog_interval_s() is None


def test_a_notify_socket_that_is_gone_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))

    notify("WATCHDOG=1")


def test_a_watchdog_meant_for_another_process_is_ignored(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")

    assert watchdog_interval_s() is None
