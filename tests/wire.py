"""A daemon in a thread, with a pipeline that finds one face in every frame, and a plain ZeroMQ subscriber."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import zmq
from msgspec import UNSET, UnsetType
from structlog.testing import capture_logs

from daemon.config import CameraConfig, Config
from daemon.pipelines import LoadedPipeline
from daemon.records import Event, Face, FacesEvent, Frame, FrameRecord, Quality, TrackBest, TrackEvent
from daemon.service import Service

Message = tuple[str, dict[str, Any]]
BOX = (1.0, 2.0, 30.0, 40.0)
GOOD = Quality(usable=True, reasons=(), interocular_px=15.0)
POINTS = ((10.0, 15.0), (20.0, 15.0), (15.0, 22.0), (11.0, 30.0), (19.0, 30.0))


class FakePipeline:
    """One face, one track a camera; `delay_s` is how long a batch takes."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.batches: list[list[tuple[str, int]]] = []
        self.seen: dict[str, list[Frame]] = {}
        self.settings: dict[str, CameraConfig] = {}

    def process(self, frames: Sequence[Frame]) -> list[Event]:
        time.sleep(self.delay_s)
        self.batches.append([(frame.camera, frame.index) for frame in frames])
        return [self._event(frame) for frame in frames]

    def _event(self, frame: Frame) -> Event:
        self.seen.setdefault(frame.camera, []).append(frame)
        height, width = frame.image.shape[:2]
        return FacesEvent(
            camera=frame.camera,
            frame=FrameRecord(
                index=frame.index,
                width=width,
                height=height,
                captured_at=frame.captured_at,
                clock=frame.clock,
                pts_s=frame.pts_s,
            ),
            latency_ms=_latency_ms(frame),
            dropped=frame.dropped,
            faces=(Face(track=0, box_xyxy=BOX, score=0.9, landmarks=POINTS, quality=GOOD),),
        )

    def add_camera(self, camera: CameraConfig) -> list[Event]:
        self.settings[camera.name] = camera
        return []

    def close_camera(self, camera: str) -> list[Event]:
        frames = self.seen.pop(camera, [])
        if not frames:
            return []
        best = TrackBest(frame_index=frames[0].index, box_xyxy=BOX, score=0.9, quality=GOOD)
        return [
            TrackEvent(
                camera=camera,
                track=0,
                phase="left",
                started_at=frames[0].captured_at,
                ended_at=frames[-1].captured_at,
                frames=len(frames),
                best=best,
            )
        ]


def _latency_ms(frame: Frame) -> dict[str, float] | UnsetType:
    if frame.monotonic_ns is None:
        return UNSET
    return {"total": round((time.monotonic_ns() - frame.monotonic_ns) / 1e6, 3)}


def config_of(*cameras: dict[str, Any], **publish: Any) -> Config:
    """A configuration with these cameras that publishes at any free port, and without metrics."""
    return Config.model_validate(
        {
            "instance": "north",
            "cameras": cameras,
            "publish": {"endpoint": "tcp://127.0.0.1:*", **publish},
            "metrics": {"port": 0},
            "control": {"enabled": False},
        }
    )


class Daemon:
    """A service in a thread; it loads its pipeline once `go` is set, so that a subscriber misses nothing."""

    def __init__(self, config: Config, pipeline: FakePipeline) -> None:
        self.pipeline = pipeline
        self.stop = threading.Event()
        self.go = threading.Event()
        self.failure: BaseException | None = None
        self.service = Service(config, self._load, self.stop)
        self.thread = threading.Thread(target=self._run)

    def _load(self, config: Config) -> LoadedPipeline:
        self.go.wait(5)
        return LoadedPipeline(self.pipeline, {"detector": "fake"})

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:
            self.failure = error


@contextmanager
def running(
    config: Config, pipeline: FakePipeline | None = None
) -> Iterator[tuple[Daemon, zmq.Socket[bytes]]]:
    """A daemon at work and a subscriber to all its topics, connected before the first frame."""
    daemon = Daemon(config, pipeline or FakePipeline())
    daemon.thread.start()
    with capture_logs(), zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.rcvtimeo = 5000
        socket.subscribe("mien/1/")
        socket.connect(_endpoint_of(daemon))
        time.sleep(0.2)
        daemon.go.set()
        try:
            yield daemon, socket
        finally:
            daemon.stop.set()
            daemon.thread.join(10)
    assert not daemon.thread.is_alive()
    if daemon.failure is not None:
        raise daemon.failure


def _endpoint_of(daemon: Daemon) -> str:
    until_s = time.monotonic() + 5
    while not hasattr(daemon.service, "publisher"):
        assert daemon.thread.is_alive() and time.monotonic() < until_s, daemon.failure
        time.sleep(0.005)
    return daemon.service.publisher.endpoint


def messages_until(socket: zmq.Socket[bytes], ends: Callable[[Message], bool]) -> list[Message]:
    """What comes in, up to the first message for which `ends` holds."""
    messages: list[Message] = []
    while not messages or not ends(messages[-1]):
        topic, payload = socket.recv_multipart()
        messages.append((topic.decode(), json.loads(payload)))
    return messages


def is_state(camera: str, state: str) -> Callable[[Message], bool]:
    """Holds for the status message that says so."""
    return lambda message: message[0] == f"mien/1/{camera}/status" and message[1]["state"] == state


def of_topic(messages: Sequence[Message], topic: str) -> list[dict[str, Any]]:
    """The events of one topic, those sent again left out."""
    return [event for name, event in messages if name == topic and not event.get("resent")]
