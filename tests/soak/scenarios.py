"""Many cameras, people who come and go, damaged files: each scenario returns what was measured, as plain values."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from daemon.control_requests import GalleryEnrol, GalleryRemove, LookRecord, Status, record_of
from daemon.gallery import Gallery
from daemon.looks import EnrolledLook
from tests.processes import MIEN, ROOT, DaemonProcess
from tests.soak.measures import Event, Stopwatch, accounts, cpu_s, footprint, growth, p99_ms
from tests.soak.rtsp import RtspServer, write_pictures
from tests.soak.streams import SIZE, camera, has_frames
from tests.test_damaged_files import read_corrupted

Measured = dict[str, Any]

PERSON = "Eileen Collins"
PHOTO = ROOT / "samples/eileen_collins.jpg"


def fuzzed(folder: Path, *, num: int) -> Measured:
    """Damaged files and damaged packets in whole files, read in this process."""
    read_corrupted(folder, num // 4)
    gc.collect()
    before = footprint(os.getpid())
    num_read, num_refused = read_corrupted(folder, num, seed=1)
    gc.collect()
    return {"read": num_read, "refused": num_refused, **growth(before, footprint(os.getpid()))}


def many(folder: Path, *, num_cameras: int, seconds: float) -> Measured:
    """RTSP streams of 640x360 at 15 frames a second through the real engines; then SIGTERM under load."""
    with RtspServer(write_pictures(folder / "pictures", SIZE)) as server:
        cameras = [camera(f"c{n}", server.url, open_timeout_s=30) for n in range(num_cameras)]
        publish = {"endpoint": f"ipc://{folder}/events", "heartbeat_s": 0.5, "empty_frames": True}
        with DaemonProcess(folder, cameras, real=True, publish=publish) as daemon:
            daemon.until(lambda: all(has_frames(daemon, each["name"], 3) for each in cameras), 300)
            daemon.wait(min(seconds / 4, 60))
            before, since = footprint(daemon.process.pid), len(daemon.events)
            taken = _taken(daemon)
            watch, busy_s = Stopwatch(), cpu_s(daemon.process.pid)
            daemon.wait(seconds)
            cores = (cpu_s(daemon.process.pid) - busy_s) / watch.seconds
            processed = [(b - a) / watch.seconds for a, b in zip(taken, _taken(daemon), strict=True)]
            after = footprint(daemon.process.pid)
            events = [event for each in cameras for event in daemon.of(f"{each['name']}/faces", since=since)]
            beats = daemon.of("_daemon/heartbeat", since=since)
            watch = Stopwatch()
            status = daemon.end(signal.SIGTERM)
            stopped_s = watch.seconds
            daemon.collect(500)
            told = sum(len(daemon.of(f"{each['name']}/faces")) for each in cameras)
            return {
                "cameras": num_cameras,
                "seconds": seconds,
                "cores_used": round(cores, 2),
                "processed_fps_least": round(min(processed), 2),
                "processed_fps_most": round(max(processed), 2),
                "fairness": round(min(processed) / max(max(processed), 1e-9), 3),
                "p99_ms": p99_ms(events),
                "accounts": all(accounts(beat) for beat in beats) and bool(beats),
                **growth(before, after),
                "sigterm_status": status,
                "sigterm_s": stopped_s,
                "stopping_told": "stopping" in daemon.states("_daemon"),
                "all_delivered": told == daemon.of("_daemon/heartbeat")[-1]["frames_processed"],
            }


def _taken(daemon: DaemonProcess) -> list[int]:
    return [each["taken"] for each in daemon.ask(Status())["cameras"]]


def enrolled(folder: Path, *, rounds: int) -> Measured:
    """She is enrolled and erased through the control socket while a camera looks at her; times from the answer.

    compared_s: to the first event that compares a face with her. named_s: to the first that names her; with
    nobody enrolled before, her track has first to be looked at `min_votes` times, beside others it has been.
    forgotten_s: to the last event that names her.
    """
    (look, *_) = _looks_of(PHOTO, folder / "other.sqlite")
    stranger = record_of(replace(look, embedding=np.roll(look.embedding, 1), image="stranger.jpg"))
    took: dict[str, list[float]] = {"compared": [], "named_first": [], "named_beside": [], "forgotten": []}
    with RtspServer(write_pictures(folder / "pictures", (854, 480), num=150)) as server:
        cameras = [camera("door", server.url, open_timeout_s=30)]
        with DaemonProcess(folder, cameras, real=True) as daemon:
            daemon.until(lambda: has_frames(daemon, "door", 15), 300)
            for named in ("named_first", "named_beside"):
                for _ in range(rounds):
                    daemon.wait(1.5)
                    _enrol_and_erase(daemon, record_of(look), took, named)
                daemon.ask(GalleryEnrol("Somebody", [stranger]))
    return {
        "rounds": 2 * rounds,
        "bound_s": 1.0,
        **{f"{name}_s": max(seconds) for name, seconds in took.items()},
        **{f"{name}_s_median": round(median(seconds), 3) for name, seconds in took.items()},
    }


def _enrol_and_erase(
    daemon: DaemonProcess, look: LookRecord, took: dict[str, list[float]], named: str
) -> None:
    since = len(daemon.events)
    daemon.ask(GalleryEnrol(PERSON, [look]))
    at = datetime.now(UTC)
    daemon.until(lambda: _that(daemon, since, _names_her))
    took[named].append(_seconds(at, _that(daemon, since, _names_her)[0]))
    compared = _with_nearest if named == "named_first" else _with_second
    took["compared"].append(_seconds(at, _that(daemon, since, compared)[0]))
    daemon.wait(1.0)
    since = len(daemon.events)
    daemon.ask(GalleryRemove(PERSON))
    at = datetime.now(UTC)
    daemon.wait(2.5)
    assert has_frames(daemon, "door", 3, since), daemon.log()[-3000:]
    late = _that(daemon, since, _names_her)
    took["forgotten"].append(_seconds(at, late[-1]) if late else 0.0)


def _looks_of(photo: Path, gallery: Path) -> list[EnrolledLook]:
    command = [MIEN, "gallery", "enroll", PERSON, photo, "--gallery", gallery]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    with Gallery(gallery) as opened:
        return opened.looks(PERSON)


def _that(daemon: DaemonProcess, since: int, holds: Callable[[Event], bool]) -> list[Event]:
    return [event for event in daemon.of("door/faces", since=since) if holds(event)]


def _names_her(event: Event) -> bool:
    return any(face["identity"]["name"] == PERSON for face in event["faces"])


def _with_nearest(event: Event) -> bool:
    return any(face["identity"]["similarity"] is not None for face in event["faces"])


def _with_second(event: Event) -> bool:
    return any(face["identity"]["margin"] is not None for face in event["faces"])


def _seconds(since: datetime, event: Event) -> float:
    passed = datetime.fromisoformat(event["published_at"]) - since
    return round(max(0.0, passed.total_seconds()), 3)
