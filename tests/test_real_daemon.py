"""`mien run` as it ships: real engines, a process of its own, names that want to do harm."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from tests.processes import MIEN, ROOT, DaemonProcess

CLIP = ROOT / "samples/two_people.mp4"
PHOTO = ROOT / "samples/eileen_collins.jpg"
HARMFUL = '../\'; DROP TABLE people; --\n\x1b[2J{"event": "forged"}🙂'
"""A name for a file: out of its folder, out of its line, out of its string."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    harmful = folder / HARMFUL.replace("/", "|")
    harmful.symlink_to(CLIP)
    cameras = [{"name": f"clip{number}", "source": str(CLIP), "loop": True} for number in range(4)]
    cameras.append({"name": "harm", "source": str(harmful), "loop": True, "max_fps": 5})
    publish = {"endpoint": f"ipc://{folder}/events", "heartbeat_s": 0.5, "empty_frames": True}
    with DaemonProcess(folder, cameras, real=True, publish=publish) as it:
        it.until(lambda: all(it.of(f"{each['name']}/faces") for each in cameras), 240)
        yield it


def test_who_is_enrolled_and_erased_is_known_and_forgotten_within_a_second(daemon):
    took_s = until_known(daemon)

    assert all(seconds < 3 for seconds in took_s), took_s  # a second, and what a busy machine adds
    files = sorted(daemon.folder.glob("gallery.sqlite*"))
    assert files and not [each for each in files if b"Eileen" in each.read_bytes()]


def until_known(daemon):
    """Seconds from the end of `mien gallery enroll`, and `remove`, to the first event that bears it out.

    Tracks seen often enough to be judged are compared with the people of now; with nobody there is nothing to
    compare them with.
    """

    def bears_out(event, somebody):
        judged = [
            face["identity"] for face in event.get("faces", ()) if face["identity"]["status"] != "undecided"
        ]
        return any((each["similarity"] is not None) == somebody for each in judged)

    took_s = []
    for words, somebody in (
        (["enroll", "Eileen Collins", PHOTO], True),
        (["remove", "Eileen Collins"], False),
    ):
        command = [MIEN, "gallery", *words, "--config", daemon.config]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert 0 == done.returncode, done.stderr
        daemon.collect()
        since, started_s = len(daemon.events), time.monotonic()
        daemon.until(
            lambda since=since, somebody=somebody: any(
                bears_out(event, somebody) for _, event in daemon.events[since:]
            )
        )
        took_s.append(round(time.monotonic() - started_s, 2))
    return took_s


def test_a_harmful_file_name_is_only_a_name(daemon):
    told = subprocess.run(
        [MIEN, "ctl", "status", "--config", daemon.config], capture_output=True, text=True, cwd=ROOT
    )
    lines = [json.loads(line) for line in daemon.log().splitlines()]  # each line is one object

    assert 0 == told.returncode and "harm" in told.stdout
    assert "\x1b[2J" not in told.stdout
    assert "forged" not in {line.get("event") for line in lines}
    assert {"harm"} == {event["camera"] for event in daemon.of("harm/faces")}


def test_sigterm_under_load_delivers_the_last_events_and_exits_0(daemon):
    started_s = time.monotonic()
    status = daemon.end(signal.SIGTERM)
    took_s = time.monotonic() - started_s
    daemon.until(lambda: "stopping" in daemon.states("_daemon"))
    daemon.collect(500)

    assert (0, True) == (status, took_s < 6), took_s  # 2 s on a machine that has nothing else to do
    num_told = sum(len(daemon.of(f"{name}/faces")) for name in names(daemon))
    last = daemon.of("_daemon/heartbeat")[-1]
    assert num_told == last["frames_processed"]
    assert last["frames_in"] == (
        last["frames_processed"] + sum(last["dropped"].values()) + sum(last["queue_depth"].values())
    )
    assert {"offline"} == {daemon.states(name)[-1] for name in names(daemon)}


def names(daemon):
    return {topic.split("/")[2] for topic, _ in daemon.events} - {"_daemon"}
