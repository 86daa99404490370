"""RTSP streams that fail, each beside a camera that does not: how soon the one is back, what the other felt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import DaemonProcess
from tests.rtsp_proxy import RtspProxy
from tests.soak.measures import Stopwatch, footprint, growth, p99_ms, rate
from tests.soak.rtsp import RtspServer, write_pictures

Measured = dict[str, Any]

CAP_S = 2.0
READ_TIMEOUT_S = 3.0
SIZE = (640, 360)

CALM_FRAMES = 300
"""Frames of the undisturbed camera before anything happens: 20 seconds, so that a p99 means something."""

CALM_FPS = 14
"""Beside another's 15: two cameras of one rate wait for each other always or never, as their starts fell."""


def camera(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": url, "read_timeout_s": READ_TIMEOUT_S, "stalled_after_s": 1.0, **more}


def has_frames(daemon: DaemonProcess, name: str, num: int, since: int = 0) -> bool:
    return len(daemon.of(f"{name}/faces", since=since)) >= num


@contextmanager
def beside(folder: Path, url: str) -> Iterator[tuple[DaemonProcess, Callable[[], Measured]]]:
    """A daemon with the camera `door` at a URL, and `calm` at a server of its own, both warm.

    Gives what tells, in the end, calm's latency since now beside that of before.
    """
    with RtspServer(write_pictures(folder / "calm", SIZE), CALM_FPS) as other:
        cameras = [camera("door", url), camera("calm", other.url)]
        with DaemonProcess(folder, cameras, "--delay", "0.01") as daemon:
            daemon.until(lambda: has_frames(daemon, "door", 15) and has_frames(daemon, "calm", 15))
            warm = len(daemon.events)
            daemon.until(lambda: has_frames(daemon, "calm", CALM_FRAMES, warm), 120)
            calm_ms, start = p99_ms(daemon.of("calm/faces", since=warm)), len(daemon.events)

            def felt() -> Measured:
                events = daemon.of("calm/faces", since=start)
                then_ms = p99_ms(events)
                return {
                    "other_p99_ms_calm": calm_ms,
                    "other_p99_ms_then": then_ms,
                    "other_ratio": round(then_ms / calm_ms, 2),
                    "other_frames": len(events),
                }

            yield daemon, felt


def killed_and_back(folder: Path, *, rounds: int) -> Measured:
    """The server dies, is away for longer than the backoff takes to reach its cap, and returns."""
    pictures = write_pictures(folder / "pictures", SIZE)
    server = RtspServer(pictures)
    back, noticed = [], []
    with beside(folder, server.url) as (daemon, felt):
        for _ in range(rounds):
            since, watch = len(daemon.events), Stopwatch()
            server.process.kill()
            daemon.until(lambda since=since: "reconnecting" in daemon.states("door", since=since))
            noticed.append(watch.seconds)
            daemon.wait(4.0)
            server.__exit__()
            server = RtspServer(pictures, port=server.port)
            since, watch = len(daemon.events), Stopwatch()
            daemon.until(lambda since=since: has_frames(daemon, "door", 1, since))
            back.append(watch.seconds)
        server.__exit__()
        return {"noticed_s": max(noticed), "back_s": max(back), "back_bound_s": 2 + CAP_S, **felt()}


def frozen(folder: Path, *, rounds: int) -> Measured:
    """The server stops answering without closing anything."""
    stalled, given_up, back = [], [], []
    with (
        RtspServer(write_pictures(folder / "pictures", SIZE)) as server,
        beside(folder, server.url) as (daemon, felt),
    ):
        for _ in range(rounds):
            since, watch = len(daemon.events), Stopwatch()
            server.freeze()
            daemon.until(lambda since=since: "stalled" in daemon.states("door", since=since))
            stalled.append(watch.seconds)
            daemon.until(lambda since=since: "reconnecting" in daemon.states("door", since=since))
            given_up.append(watch.seconds)
            daemon.wait(4.0)
            server.thaw()
            since, watch = len(daemon.events), Stopwatch()
            daemon.until(lambda since=since: has_frames(daemon, "door", 15, since))
            back.append(watch.seconds)
        return {
            "stalled_s": max(stalled),
            "stalled_bound_s": 1.0 + 1,
            "given_up_s": max(given_up),
            "given_up_bound_s": READ_TIMEOUT_S + 1,
            "back_s": max(back),
            "back_bound_s": 2 + CAP_S,
            **felt(),
        }


def resized(folder: Path, *, rounds: int) -> Measured:
    """The server comes back with pictures of another size, to and fro."""
    sizes = {640: SIZE, 320: (320, 240)}
    pictures = {width: write_pictures(folder / str(width), size) for width, size in sizes.items()}
    server = RtspServer(pictures[640])
    back = []
    with beside(folder, server.url) as (daemon, felt):
        for width in [320, 640] * rounds:
            server.__exit__()
            server = RtspServer(pictures[width], port=server.port)
            since, watch = len(daemon.events), Stopwatch()
            daemon.until(
                lambda since=since, width=width: any(
                    event["frame"]["width"] == width for event in daemon.of("door/faces", since=since)
                )
            )
            back.append(watch.seconds)
            daemon.wait(2.0)
        server.__exit__()
        starts = {event["epoch"] for event in daemon.of("door/faces")}
        return {"back_s": max(back), "back_bound_s": 2 + CAP_S, "starts": len(starts), **felt()}


def damaged(folder: Path, *, seconds: float, share: float = 0.05) -> Measured:
    """Bytes are turned over in some of the packets."""
    pictures = write_pictures(folder / "pictures", SIZE)
    with RtspServer(pictures) as server, RtspProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        with beside(folder, url) as (daemon, felt):
            since, proxy.damage = len(daemon.events), share
            daemon.wait(seconds)
            return {
                "packets_damaged": proxy.num_damaged,
                "fps": rate(daemon.of("door/faces", since=since)),
                "other_fps": rate(daemon.of("calm/faces", since=since)),
                "reconnects": daemon.states("door").count("reconnecting"),
                "alive": daemon.process.poll() is None,
                **felt(),
            }


def reconnects(folder: Path, *, num: int) -> Measured:
    """The connection is cut again and again."""
    pictures = write_pictures(folder / "pictures", SIZE)
    with RtspServer(pictures) as server, RtspProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        with DaemonProcess(folder, [camera("door", url, reconnect_max_s=0.25)]) as daemon:
            before: Measured = {}
            for number in range(num):
                since = len(daemon.events)
                daemon.until(lambda since=since: has_frames(daemon, "door", 2, since))
                if number == max(num // 10, 3):  # allocators have settled
                    before = footprint(daemon.process.pid)
                proxy.cut()
                daemon.until(lambda since=since: "reconnecting" in daemon.states("door", since=since))
            since = len(daemon.events)
            daemon.until(lambda: has_frames(daemon, "door", 2, since))
            after = footprint(daemon.process.pid)
            return {"reconnects": num, **growth(before, after)}
