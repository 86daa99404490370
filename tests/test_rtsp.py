"""A real RTSP server, GStreamer's, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path

import cv2
import pytest

from daemon.config import CameraConfig
from daemon.sources import read_live, read_video
from engines.errors import MienError
from tests.clips import noise
from tests.rtsp_proxy import RtspProxy
from tests.wire import FakePipeline, config_of, is_state, messages_until, of_topic, running

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
CLIP = Path(__file__).parents[1] / "samples/two_people.mp4"
FPS = 25


def has_gstreamer() -> bool:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return not subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not has_gstreamer(),
    reason="needs GStreamer's RTSP server: see tests/rtsp_server.py for the Debian packages",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    images = (
        (frame.image for frame in read_video(CLIP, camera="x")) if CLIP.is_file() else noise(50, (320, 240))
    )
    for number, image in enumerate(islice(images, 100)):
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), image)
    return folder


@pytest.fixture
def start_server(pictures):
    servers = []

    def start(
        codec: str = "h264", port: int = 0, folder: Path = pictures
    ) -> tuple[subprocess.Popen[str], int]:
        command = [SYSTEM_PYTHON, str(SERVER), str(folder), str(FPS), codec, str(port)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        word, bound = server.stdout.readline().split()
        assert word == "ready"
        return server, int(bound)

    yield start
    for server in servers:
        server.kill()
        server.communicate()


def camera(port: int, **more):
    return {"name": "door", "source": f"rtsp://me:secret@127.0.0.1:{port}/cam", **more}


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_frames_arrive_at_the_streams_rate(start_server, codec):
    _, port = start_server(codec)

    frames = list(islice(read_live(CameraConfig(**camera(port))), 30))

    seconds = (frames[-1].monotonic_ns - frames[4].monotonic_ns) / 1e9
    assert abs(25 / FPS - seconds) < 0.5
    assert list(range(30)) == [frame.index for frame in frames]
    assert {frame.clock for frame in frames} <= {"arrival", "rtcp"}


def test_a_path_the_server_does_not_have_is_told(start_server):
    _, port = start_server()
    wrong = CameraConfig(name="door", source=f"rtsp://127.0.0.1:{port}/other")

    with pytest.raises(MienError, match="no such stream"):
        next(read_live(wrong))


def test_events_of_a_stream_are_published(start_server):
    _, port = start_server()

    with running(config_of(camera(port))) as (_, socket):
        messages = messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 20)

    faces = of_topic(messages, "mien/1/door/faces")
    assert list(range(21)) == [event["seq"] for event in faces]
    assert {event["frame"]["clock"] for event in faces} <= {"arrival", "rtcp"}
    assert "secret" not in str(messages)


def test_a_slow_pipeline_gets_the_newest_frames_and_is_told_what_it_missed(start_server):
    _, port = start_server()
    pipeline = FakePipeline(delay_s=0.2)

    with running(config_of(camera(port)), pipeline) as (_, socket):
        messages = messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 8)

    frames = [event["frame"]["index"] for event in of_topic(messages, "mien/1/door/faces")]
    dropped = [event["dropped"] for event in of_topic(messages, "mien/1/door/faces")]
    assert [b - a - 1 for a, b in pairwise(frames)] == dropped[1:]
    assert sum(dropped) > 10


def test_a_server_that_dies_is_connected_to_anew_when_it_returns(start_server):
    server, port = start_server()

    with running(config_of(camera(port, reconnect_max_s=0.5))) as (_, socket):
        messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 5)
        server.kill()
        messages = messages_until(socket, is_state("door", "reconnecting"))
        start_server(port=port)
        messages += messages_until(socket, is_state("door", "online"))
        messages += messages_until(socket, lambda m: m[0].endswith("/faces"))

    faces = of_topic(messages, "mien/1/door/faces")
    assert [event["phase"] for event in of_topic(messages, "mien/1/door/track")] == ["left"]
    assert sorted(event["frame"]["index"] for event in faces) == [event["frame"]["index"] for event in faces]
    assert [event["seq"] for event in faces] == list(range(faces[0]["seq"], faces[0]["seq"] + len(faces)))
    assert "secret" not in str(messages)


def test_a_stream_that_falls_silent_is_stalled_and_then_given_up(start_server):
    server, port = start_server()
    config = config_of(camera(port, stalled_after_s=0.3, read_timeout_s=1.0))

    with running(config) as (_, socket):
        messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 5)
        os.kill(server.pid, signal.SIGSTOP)
        started = time.monotonic()
        messages_until(socket, is_state("door", "stalled"))
        messages = messages_until(socket, is_state("door", "reconnecting"))
        os.kill(server.pid, signal.SIGCONT)

    assert time.monotonic() - started < 5
    assert "no answer in time" in messages[-1][1]["reason"]


def test_a_stream_that_pauses_comes_back_online(start_server):
    server, port = start_server()
    config = config_of(camera(port, stalled_after_s=0.3, read_timeout_s=5.0))

    with running(config) as (_, socket):
        messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 5)
        os.kill(server.pid, signal.SIGSTOP)
        messages_until(socket, is_state("door", "stalled"))
        os.kill(server.pid, signal.SIGCONT)
        messages = messages_until(socket, is_state("door", "online"))

    assert not of_topic(messages, "mien/1/door/track")


def test_the_senders_clock_is_taken_once_its_reports_come(start_server):
    _, port = start_server()
    frames, until = [], time.monotonic() + 15
    for frame in read_live(CameraConfig(**camera(port))):
        frames.append((frame, datetime.now(UTC)))
        if frame.clock == "rtcp" or time.monotonic() > until:
            break

    frame, now = frames[-1]
    assert "rtcp" == frame.clock
    # Server and client are one machine here: its clock cannot be far off.
    assert abs((now - frame.captured_at).total_seconds()) < 2


def test_damaged_packets_cost_pictures_and_nothing_else(start_server):
    _, port = start_server()
    with RtspProxy(port, damage=0.2) as proxy:
        cameras = [camera(proxy.port), {**camera(port), "name": "calm"}]
        with running(config_of(*cameras)) as (_, socket):
            messages = messages_until(socket, lambda m: m[0] == "mien/1/calm/faces" and m[1]["seq"] == 60)
        num_damaged = proxy.num_damaged

    assert num_damaged > 20
    assert len(of_topic(messages, "mien/1/door/faces")) > 20
    states = [event["state"] for event in of_topic(messages, "mien/1/calm/status")]
    assert ["connecting", "online"] == states


def test_a_server_that_comes_back_with_another_size_is_followed(start_server, tmp_path):
    server, port = start_server()
    for number, image in enumerate(noise(20, (160, 128))):
        cv2.imwrite(str(tmp_path / f"{number:05d}.jpg"), image)

    with running(config_of(camera(port, reconnect_max_s=0.5))) as (_, socket):
        messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["seq"] == 5)
        server.kill()
        messages_until(socket, is_state("door", "reconnecting"))
        started = time.monotonic()
        start_server(port=port, folder=tmp_path)
        messages_until(socket, lambda m: m[0].endswith("/faces") and m[1]["frame"]["width"] == 160)

    assert time.monotonic() - started < 10
