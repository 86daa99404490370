"""The machine itself goes wrong: the clock is set back, processes are killed half-way."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.clips import grey_levels, write_clip
from tests.fakes import ANN, BOB, walk
from tests.processes import ROOT, DaemonProcess


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", grey_levels(30), fps=25)


def camera(clip, name="door", **more):
    return {"name": name, "source": str(clip), "loop": True, **more}


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """What makes a process believe in another time of day, and the file that says which."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for tests/clock_shim.c")
    folder = tmp_path_factory.mktemp("clock")
    shim, offset = folder / "shim.so", folder / "offset"
    source = ROOT / "tests/clock_shim.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    offset.write_text("0")
    return {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(offset)}


def test_a_clock_set_back_is_told_and_disturbs_nothing(tmp_path, clip, clock):
    offset = Path(clock["CLOCK_OFFSET"])
    with DaemonProcess(tmp_path, [camera(clip)], environment=clock) as daemon:
        daemon.until(lambda: len(daemon.of("door/faces")) > 10 and daemon.of("_daemon/heartbeat"))
        offset.write_text(str(-2 * 86400))
        daemon.until(lambda: '"event": "clock_set"' in daemon.log())
        since = len(daemon.events)
        daemon.until(lambda: len(daemon.of("door/faces", since=since)) > 25)
        daemon.until(lambda: len(daemon.of("_daemon/heartbeat", since=since)) > 1)
        offset.write_text("0")
        daemon.until(lambda: daemon.log().count('"event": "clock_set"') == 2)
        assert 0 == daemon.end(signal.SIGTERM)
        daemon.until(lambda: "stopping" in daemon.states("_daemon"))

    faces, beats = daemon.of("door/faces"), daemon.of("_daemon/heartbeat")
    assert list(range(faces[0]["seq"], faces[-1]["seq"] + 1)) == [event["seq"] for event in faces]
    uptimes = [beat["uptime_s"] for beat in beats]
    assert sorted(uptimes) == uptimes and uptimes[-1] < 60
    assert not {"stalled", "reconnecting", "ended"} & set(daemon.states("door"))
    told = [
        json.loads(line)["seconds"] for line in daemon.log().splitlines() if '"event": "clock_set"' in line
    ]
    assert [-172800, 172800] == [round(seconds) for seconds in told]
    behind_s = [
        (datetime.now(UTC) - datetime.fromisoformat(event["published_at"])).total_seconds()
        for event in daemon.of("door/faces", since=since)[:5]
    ]
    assert all(172_000 < each < 173_600 for each in behind_s)


REPLAYS = """
import sys
from pathlib import Path
from rich.console import Console
from tests.test_replay import job_of, load

clip, out, video = map(Path, sys.argv[1:])
print("replaying", flush=True)
job_of(clip, out=out, annotated=video).run(load, Console(quiet=True))
"""


def kill_during_replay(folder, rounds, seed=0):
    """Kills a replaying process at random moments; returns how many times it had finished before that."""
    chance, num_finished = random.Random(seed), 0
    folder.mkdir(exist_ok=True)
    clip = write_clip(
        folder / "clip.mp4", [each.image for each in walk([(ANN, 20, 60), (BOB, 200, 60)], num=80)]
    )
    out, video = folder / "e.jsonl", folder / "v.mp4"
    command = [sys.executable, "-c", REPLAYS, str(clip), str(out), str(video)]
    whole = None
    for number in range(rounds + 2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            process.stdout.readline()
            if 0 < number <= rounds:
                time.sleep(chance.uniform(0, 0.6))
                process.send_signal(signal.SIGKILL)
            num_finished += not process.wait()
        whole = whole or out.read_bytes()
        assert whole == out.read_bytes()  # the file of before, or the same anew: never a torn one
        left = [each.name for each in folder.iterdir() if each.name.endswith(".part")]
        assert len(left) <= 2, left
    assert {"clip.mp4", "e.jsonl", "v.mp4"} == {each.name for each in folder.iterdir()}
    return num_finished - 2


def test_kill_9_during_replay_tears_no_file_and_piles_nothing_up(tmp_path):
    assert kill_during_replay(tmp_path / "replay", 2) < 2
