"""`mien run` as a process of its own, with real engines, heard from here with plain pyzmq: a file and RTSP at once."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import jsonschema
import pytest
import yaml
import zmq

from daemon.records import event_schemas
from tests.test_rtsp import has_gstreamer, pictures, start_server  # noqa: F401  fixtures

ROOT = Path(__file__).parents[1]
MIEN = Path(sys.executable).with_name("mien")
DEADLINE_S = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def daemon_of(tmp_path):
    """Starts `mien run` on given cameras; yields a function that returns the process and its endpoint."""
    started = []

    def start(cameras):
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        config = tmp_path / "config.yaml"
        settings = {"cameras": cameras, "publish": {"endpoint": endpoint, "heartbeat_s": 1}}
        settings["gallery"] = {"path": str(tmp_path / "gallery.sqlite")}
        settings["metrics"] = {"port": 0}
        config.write_text(yaml.safe_dump(settings))
        log = (tmp_path / "log.txt").open("w")
        process = subprocess.Popen([MIEN, "run", "--config", config], stderr=log, stdout=log, text=True)
        started.append((process, log))
        return process, endpoint, tmp_path / "log.txt"

    yield start
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


def heard(endpoint, enough):
    """(topic, event) pairs until `enough(pairs)`, or a failure at the deadline."""
    pairs = []
    ends = time.monotonic() + DEADLINE_S
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.connect(endpoint)
        subscriber.subscribe("mien/1/")
        while not enough(pairs):
            assert time.monotonic() < ends, f"only {sorted({topic for topic, _ in pairs})}"
            if subscriber.poll(1000):
                topic, payload = subscriber.recv_multipart()
                pairs.append((topic.decode(), json.loads(payload)))
    return pairs


def count(pairs, topic):
    return sum(each == topic for each, _ in pairs)


def test_a_second_process_hears_a_file_and_an_rtsp_camera_as_the_contract_says(daemon_of, request):
    cameras = [{"name": "clip", "source": str(ROOT / "samples/two_people.mp4"), "loop": True}]
    if has_gstreamer():
        _, port = request.getfixturevalue("start_server")()
        cameras.append({"name": "door", "source": f"rtsp://me:secret@127.0.0.1:{port}/cam"})
    process, endpoint, log = daemon_of(cameras)
    topics = [f"mien/1/{camera['name']}/faces" for camera in cameras]

    pairs = heard(
        endpoint,
        lambda p: all(count(p, t) >= 15 for t in topics) and count(p, "mien/1/_daemon/heartbeat") >= 2,
    )

    by_topic = defaultdict(list)
    for topic, event in pairs:
        assert f"mien/1/{event['camera']}/{event['schema'].removeprefix('mien.').removesuffix('/1')}" == topic
        jsonschema.validate(event, event_schemas()[topic.rpartition("/")[2]])
        if not event.get("resent"):
            by_topic[topic].append(event["seq"])
    for seqs in by_topic.values():
        assert list(range(seqs[0], seqs[0] + len(seqs))) == seqs
    assert 1 == len({(event["instance"], event["epoch"]) for _, event in pairs})
    faces = [event for topic, event in pairs if topic in topics]
    assert all(0 < event["latency_ms"]["total"] for event in faces if event["camera"] == "door")
    assert any(len(event["faces"]) == 2 for event in faces)
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(20)
    assert "secret" not in log.read_text() + json.dumps(pairs)


def test_the_shipped_configuration_runs_as_it_is(tmp_path):
    process = subprocess.Popen([MIEN, "run"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        pairs = heard("tcp://127.0.0.1:5600", lambda p: count(p, "mien/1/demo/faces") >= 5)
    finally:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)

    assert "mien/1/demo/status" in {topic for topic, _ in pairs}
    assert 0 == process.returncode, told
    assert "Traceback" not in told
