"""Prometheus metrics of a running daemon, on loopback unless the configuration says otherwise.

For each camera, at any moment: frames in = frames processed + frames dropped + frames in flight.
"""

from __future__ import annotations

import errno
import time
from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import structlog
from msgspec import UnsetType
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.config import MetricsConfig
from daemon.gallery import Gallery, NoGalleryError
from daemon.records import Event, FacesEvent, TrackEvent, kind_of
from engines.errors import MienError

log = structlog.get_logger(__name__)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
REQUEST_TIMEOUT_S = 10
"""A client that asks nothing for so long is hung up on."""


class FrameCounts(Protocol):
    """Frames of one camera from the start: num_in = num_taken + the sum of dropped + waiting."""

    @property
    def num_in(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def num_connections(self) -> int: ...


class CameraState(Protocol):
    """What a camera is doing, such as `online`."""

    @property
    def state(self) -> str: ...


class CameraSource(Protocol):
    """The cameras, as `Cameras` tells of them from any thread."""

    def states(self) -> Mapping[str, CameraState]: ...
    def counts(self, name: str) -> FrameCounts: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """What is asked at each scrape. gallery_size: people and looks, None where it cannot be read."""

    cameras: CameraSource
    num_subscriptions: Callable[[], int]
    backends: Mapping[str, str]
    gallery_size: Callable[[], tuple[int, int] | None]


class Metrics:
    """Counts what the main loop tells of; the rest is asked of `watch`ed parts when Prometheus asks."""

    def __init__(self, instance: str = "mien") -> None:
        self.registry = CollectorRegistry()
        self._watched: Watched | None = None
        self._started_s = time.monotonic()
        self._processed: Counts[str] = Counts()
        self._failed: Counts[str] = Counts()
        self._faces = Counter("mien_faces", "Faces told of.", ["camera"], registry=self.registry)
        self._tracks = Counter(
            "mien_tracks", "Turns in tracks' lives.", ["camera", "phase"], registry=self.registry
        )
        self._events = Counter("mien_events", "Events published.", ["kind"], registry=self.registry)
        self._stages = Histogram(
            "mien_stage_seconds",
            "How long the stages took, for frames with a face.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._latency = Histogram(
            "mien_latency_seconds",
            "From a frame's arrival to its publication.",
            ["camera"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._instance = instance
        ProcessCollector(registry=self.registry)
        self.registry.register(_OnDemand(self._asked))

    def watch(self, watched: Watched) -> None:
        """From now on these are asked at each scrape."""
        self._watched = watched

    def saw(self, event: Event) -> None:
        """Counts an event that went out."""
        self._events.labels(kind_of(event)).inc()
        if isinstance(event, TrackEvent):
            self._tracks.labels(event.camera, event.phase).inc()
        if isinstance(event, FacesEvent):
            self._faces.labels(event.camera).inc(len(event.faces))
            if not isinstance(event.latency_ms, UnsetType):
                for stage, ms in event.latency_ms.items():
                    self._stages.labels(stage).observe(ms / 1000)

    def frame_done(self, camera: str, arrival_ns: int | None) -> None:
        """Counts a processed frame; `arrival_ns` is on the monotonic clock, None where it has none."""
        self._processed[camera] += 1
        if arrival_ns is not None:
            self._latency.labels(camera).observe((time.monotonic_ns() - arrival_ns) / 1e9)

    def frame_failed(self, camera: str) -> None:
        """Counts a frame that was taken and could not be processed: it is dropped, by reason `failed`."""
        self._failed[camera] += 1

    def keep_only(self, cameras: Collection[str]) -> None:
        """Forgets what was counted of cameras that are no more: one added under such a name counts from 0."""
        for camera in (self._processed.keys() | self._failed.keys()) - set(cameras):
            del self._processed[camera], self._failed[camera]

    def _asked(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("mien_info", "The daemon's name and version.", labels=["name", "version"])
        info.add_metric([self._instance, version("mien")], 1)
        yield info
        yield GaugeMetricFamily(
            "mien_uptime_seconds", "Since the start.", value=time.monotonic() - self._started_s
        )
        watched = self._watched
        if watched is None:
            return
        yield GaugeMetricFamily(
            "mien_subscribers", "Live subscriptions, one a topic prefix.", value=watched.num_subscriptions()
        )
        backends = GaugeMetricFamily("mien_engine", "The backend of each model.", labels=["model", "backend"])
        for model, backend in watched.backends.items():
            backends.add_metric([model, backend], 1)
        yield backends
        yield from _gallery(watched.gallery_size())
        yield from self._frames(watched.cameras)

    def _frames(self, cameras: CameraSource) -> Iterator[Metric]:
        arrived = CounterMetricFamily("mien_frames_in", "Frames that arrived.", labels=["camera"])
        processed = CounterMetricFamily("mien_frames_processed", "Frames processed.", labels=["camera"])
        dropped = CounterMetricFamily(
            "mien_frames_dropped", "Frames not processed, by reason.", labels=["camera", "reason"]
        )
        flying = GaugeMetricFamily(
            "mien_frames_in_flight", "Frames arrived, not yet processed or dropped.", labels=["camera"]
        )
        depth = GaugeMetricFamily("mien_queue_depth", "Frames that wait.", labels=["camera"])
        reconnects = CounterMetricFamily("mien_reconnects", "Connections after the first.", labels=["camera"])
        state = GaugeMetricFamily("mien_camera_state", "1 for the state of now.", labels=["camera", "state"])
        for name, camera in cameras.states().items():
            # Read before the counts: what is processed was counted as arrived long before.
            num_processed, num_failed = self._processed[name], self._failed[name]
            try:
                counts = cameras.counts(name)
            except KeyError:
                continue  # removed in this very moment
            drops = dict(counts.dropped) | ({"failed": num_failed} if num_failed else {})
            arrived.add_metric([name], counts.num_in)
            processed.add_metric([name], num_processed)
            for reason, num in drops.items():
                dropped.add_metric([name, reason], num)
            flying.add_metric([name], counts.num_in - num_processed - sum(drops.values()))
            depth.add_metric([name], counts.waiting)
            reconnects.add_metric([name], max(counts.num_connections - 1, 0))
            state.add_metric([name, camera.state], 1)
        yield from (arrived, processed, dropped, flying, depth, reconnects, state)


class _OnDemand(Collector):
    """A collector that is a function."""

    def __init__(self, ask: Callable[[], Iterator[Metric]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        return self._ask()


def _gallery(size: tuple[int, int] | None) -> Iterator[Metric]:
    if size is not None:
        yield GaugeMetricFamily("mien_gallery_people", "People enrolled.", value=size[0])
        yield GaugeMetricFamily("mien_gallery_looks", "Images enrolled.", value=size[1])


def gallery_size(path: Path) -> tuple[int, int] | None:
    """People and looks in a gallery file; None where it cannot be read, (0, 0) where there is none yet."""
    try:
        with Gallery(path, create=False) as gallery:
            people = gallery.people()
    except NoGalleryError:
        return 0, 0
    except MienError:
        return None
    return len(people), sum(person.num_looks for person in people)


@contextmanager
def served(metrics: Metrics, config: MetricsConfig) -> Iterator[str | None]:
    """Answers Prometheus at http://HOST:PORT/metrics; yields that address, None where metrics are off.

    Raises MienError where the port is in use or the host is none of this machine.
    """
    if config.port == 0:
        yield None
        return
    try:
        server, thread = start_http_server(config.port, config.host, metrics.registry)
    except OSError as error:
        raise _bind_failure(config, error) from None
    answering: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("Bounded", (answering,), {"timeout": REQUEST_TIMEOUT_S})
    address = f"http://{config.host}:{config.port}/metrics"
    log.info("metrics_served", address=address)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bind_failure(config: MetricsConfig, error: OSError) -> MienError:
    where = f"metrics at {config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return MienError(
            f"{where}: already in use; stop the other daemon, or set another metrics.port (0: off)"
        )
    if error.errno == errno.EACCES:
        return MienError(f"{where}: not permitted; set a metrics.port above 1023")
    return MienError(
        f"{where}: cannot be bound ({error.strerror}); set metrics.host to 127.0.0.1 or one of its own"
    )
