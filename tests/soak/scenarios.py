"""Each scenario makes the real thing go wrong and returns what was measured: plain values, for table and JSON."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

from daemon.control_requests import Status
from tests.processes import DaemonProcess
from tests.rtsp_proxy import RtspProxy
from tests.soak.measures import Stopwatch, accounts, cpu_s, footprint, p99_ms, rate
from tests.soak.rtsp import RtspServer, write_pictures
from tests.test_streams import read_corrupted

Measured = dict[str, Any]

CAP_S = 2.0
READ_TIMEOUT_S = 3.0


def camera(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": url, "read_timeout_s": READ_TIMEOUT_S, "stalled_after_s": 1.0, **more}


def _frames(daemon: DaemonProcess, name: str, num: int, since: int = 0) -> bool:
    return len(daemon.of(f"{name}/faces", since=since)) >= num


def killed_and_back(folder: Path, *, rounds: int) -> Measured:
    """The server dies, is away for longer than the backoff takes to reach its cap, and returns."""
    pictures = write_pictures(folder / "pictures", (640, 360))
    other = RtspServer(pictures)
    server = RtspServer(pictures)
    seconds, noticed = [], []
    cameras = [camera("door", server.url), camera("calm", other.url)]
    with other, DaemonProcess(folder, cameras, "--delay", "0.01") as daemon:
        daemon.until(lambda: _frames(daemon, "door", 15) and _frames(daemon, "calm", 60))
        calm_ms = p99_ms(daemon.of("calm/faces")[10:])
        start = len(daemon.events)
        for _ in range(rounds):
            since = len(daemon.events)
            server.process.kill()
            watch = Stopwatch()
            daemon.until(lambda since=since: "reconnecting" in daemon.states("door", since=since))
            noticed.append(watch.seconds)
            _wait(daemon, 4.0)
            server.__exit__()
            server = RtspServer(pictures, port=server.port)
            since, watch = len(daemon.events), Stopwatch()
            daemon.until(lambda since=since: _frames(daemon, "door", 1, since))
            seconds.append(watch.seconds)
        stormy_ms = p99_ms(daemon.of("calm/faces", since=start))
        server.__exit__()
    return {
        "noticed_s": max(noticed),
        "back_s": max(seconds),
        "back_bound_s": 2 + CAP_S,
        "other_p99_ms_calm": calm_ms,
        "other_p99_ms_then": stormy_ms,
        "other_ratio": round(stormy_ms / calm_ms, 2),
    }


def frozen(folder: Path) -> Measured:
    """The server stops answering without closing anything."""
    with (
        RtspServer(write_pictures(folder / "pictures", (640, 360))) as server,
        DaemonProcess(folder, [camera("door", server.url)]) as daemon,
    ):
        daemon.until(lambda: _frames(daemon, "door", 15))
        server.freeze()
        watch = Stopwatch()
        daemon.until(lambda: "stalled" in daemon.states("door"))
        stalled_s = watch.seconds
        daemon.until(lambda: "reconnecting" in daemon.states("door"))
        given_up_s = watch.seconds
        server.thaw()
        since, watch = len(daemon.events), Stopwatch()
        daemon.until(lambda: _frames(daemon, "door", 1, since))
        return {
            "stalled_s": stalled_s,
            "stalled_bound_s": 1.0 + 1,
            "given_up_s": given_up_s,
            "given_up_bound_s": READ_TIMEOUT_S + 1,
            "back_s": watch.seconds,
        }


def resized(folder: Path) -> Measured:
    """The server comes back with pictures of another size."""
    server = RtspServer(write_pictures(folder / "wide", (640, 360)))
    with DaemonProcess(folder, [camera("door", server.url)]) as daemon:
        daemon.until(lambda: _frames(daemon, "door", 15))
        server.__exit__()
        with RtspServer(write_pictures(folder / "narrow", (320, 240)), port=server.port):
            watch = Stopwatch()
            daemon.until(lambda: daemon.of("door/faces")[-1]["frame"]["width"] == 320)
            epochs = {event["epoch"] for event in daemon.of("door/faces")}
            return {"back_s": watch.seconds, "starts": len(epochs)}


def damaged(folder: Path, *, seconds: float, share: float = 0.05) -> Measured:
    """Bytes are turned over in some of the packets; the camera beside it reads the same server undamaged."""
    pictures = write_pictures(folder / "pictures", (640, 360))
    with RtspServer(pictures) as server, RtspProxy(server.port, share) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        with DaemonProcess(folder, [camera("door", url), camera("calm", server.url)]) as daemon:
            daemon.until(lambda: _frames(daemon, "door", 5) and _frames(daemon, "calm", 5))
            since = len(daemon.events)
            _wait(daemon, seconds)
            return {
                "packets_damaged": proxy.num_damaged,
                "fps": rate(daemon.of("door/faces", since=since)),
                "other_fps": rate(daemon.of("calm/faces", since=since)),
                "reconnects": daemon.states("door").count("reconnecting"),
                "alive": daemon.process.poll() is None,
            }


def fuzzed(folder: Path, *, num: int) -> Measured:
    """Damaged files and damaged packets in whole files, read in this process."""
    read_corrupted(folder, num // 4)
    gc.collect()
    before = footprint(os.getpid())
    num_read, num_refused = read_corrupted(folder, num, seed=1)
    gc.collect()
    return {"read": num_read, "refused": num_refused, **_growth(before, footprint(os.getpid()))}


def reconnects(folder: Path, *, num: int) -> Measured:
    """The connection is cut again and again."""
    pictures = write_pictures(folder / "pictures", (640, 360))
    with RtspServer(pictures) as server, RtspProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        with DaemonProcess(folder, [camera("door", url, reconnect_max_s=0.25)]) as daemon:
            before: Measured = {}
            for number in range(num):
                since = len(daemon.events)
                daemon.until(lambda since=since: _frames(daemon, "door", 2, since))
                if number == max(num // 10, 3):  # allocators have settled
                    before = footprint(daemon.process.pid)
                proxy.cut()
                daemon.until(lambda since=since: "reconnecting" in daemon.states("door", since=since))
            since = len(daemon.events)
            daemon.until(lambda: _frames(daemon, "door", 2, since))
            after = footprint(daemon.process.pid)
            return {"reconnects": num, **_growth(before, after)}


def many(folder: Path, *, num_cameras: int, seconds: float) -> Measured:
    """RTSP streams of 640x360 at 15 frames a second through the real engines; then SIGTERM under load."""
    with RtspServer(write_pictures(folder / "pictures", (640, 360))) as server:
        cameras = [camera(f"c{n}", server.url, open_timeout_s=30) for n in range(num_cameras)]
        publish = {"endpoint": f"ipc://{folder}/events", "heartbeat_s": 0.5, "empty_frames": True}
        with DaemonProcess(folder, cameras, real=True, publish=publish) as daemon:
            daemon.until(lambda: all(_frames(daemon, each["name"], 3) for each in cameras), 300)
            _wait(daemon, min(seconds / 4, 60))
            before, since = footprint(daemon.process.pid), len(daemon.events)
            taken = _taken(daemon)
            watch, busy_s = Stopwatch(), cpu_s(daemon.process.pid)
            _wait(daemon, seconds)
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
                **_growth(before, after),
                "sigterm_status": status,
                "sigterm_s": stopped_s,
                "stopping_told": "stopping" in daemon.states("_daemon"),
                "all_delivered": told == daemon.of("_daemon/heartbeat")[-1]["frames_processed"],
            }


def _taken(daemon: DaemonProcess) -> list[int]:
    return [each["taken"] for each in daemon.ask(Status())["cameras"]]


def _wait(daemon: DaemonProcess, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        daemon.collect(50)


def _growth(before: Measured, after: Measured) -> Measured:
    return {
        "rss_ratio": round(after["rss_mib"] / before["rss_mib"], 3),
        "rss_mib": after["rss_mib"],
        "threads_more": after["threads"] - before["threads"],
        "files_more": after["files"] - before["files"],
    }
