"""The daemon's life: startup, main loop, shutdown.

One thread takes what all cameras have ready, as one batch, and publishes what the pipeline makes of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import structlog

from daemon.cameras import Cameras
from daemon.capture import StatusChange
from daemon.config import Config
from daemon.notify import notify, watchdog_interval_s
from daemon.pipelines import LoadedPipeline
from daemon.publisher import Publisher
from daemon.records import DAEMON_CAMERA, Event, Frame, State, StatusEvent
from daemon.sources import check_source
from daemon.telemetry import Pulse
from engines.errors import MienError, UsageError

log = structlog.get_logger(__name__)

IDLE_WAIT_S = 0.05
"""How long the loop sleeps at most, so that subscribers and signals are answered at once."""

DOWN_STATES: frozenset[State] = frozenset({"reconnecting", "offline", "ended"})


class Service:
    """A daemon that runs until `stop` is set, or until the last of its sources is at its end.

    Raises MienError where it cannot start.
    """

    def __init__(
        self, config: Config, load: Callable[[Config], LoadedPipeline], stop: threading.Event | None = None
    ) -> None:
        self._config = config
        self._load = load
        self._stop = stop or threading.Event()
        self._pulse = Pulse()
        # Alive is what systemd hears at this interval; a main loop that hangs falls silent.
        self._heartbeat = _Interval(config.publish.heartbeat_s)
        self._watchdog = _Interval(watchdog_interval_s())

    def run(self) -> None:
        """Starts, works, and stops in the reverse order."""
        with ExitStack() as stack:
            self._startup(stack)
            try:
                self._main_loop()
            finally:
                self._shutdown()

    def _startup(self, stack: ExitStack) -> None:
        self._check_sources()
        self.publisher = stack.enter_context(_open_publisher(self._config))
        self._tell_of_daemon("starting")
        loaded = self._load(self._config)
        self._pipeline, self._backends = loaded.pipeline, loaded.backends
        self._cameras = stack.enter_context(Cameras(self._config.cameras, self._stop))
        self._tell_of_daemon("ready")
        notify("READY=1")
        log.info("ready", endpoint=self.publisher.endpoint, engines=self._backends)

    def _check_sources(self) -> None:
        enabled = [camera for camera in self._config.cameras if camera.enabled]
        if not enabled:
            raise UsageError("no camera is configured and enabled; add one under `cameras:` in the config")
        for camera in enabled:
            try:
                check_source(camera.source)
            except MienError as error:
                raise MienError(f"camera {camera.name}: {error}") from None

    def _main_loop(self) -> None:
        cameras = self._cameras
        while not self._stop.is_set() and cameras.names_not_ended:
            cameras.ready.clear()
            self.publisher.answer_subscribers()
            frames = cameras.take_frames()
            ups, downs = _ups_and_downs(cameras.take_changes())
            self._tell_of_cameras(ups)
            self._process(frames)
            self._tell_of_cameras(downs)
            self._keep_time()
            if not frames:
                cameras.ready.wait(IDLE_WAIT_S)

    def _process(self, frames: Sequence[Frame]) -> None:
        if not frames:
            return
        self._publish(self._pipeline.process(frames))
        for frame in frames:
            self._pulse.frame_done(frame.monotonic_ns)

    def _tell_of_cameras(self, changes: Sequence[StatusChange]) -> None:
        for change in changes:
            if change.state in DOWN_STATES:
                self._publish(self._pipeline.close_camera(change.camera))
            self.publisher.publish(
                StatusEvent(
                    camera=change.camera, state=change.state, reason=change.reason, since=change.since
                )
            )
            lost = change.state in ("stalled", "reconnecting", "offline") and not self._stop.is_set()
            write = log.warning if lost else log.info
            write("camera_" + change.state, camera=change.camera, reason=change.reason)

    def _keep_time(self) -> None:
        if self._heartbeat.is_due():
            self._beat()
        if self._watchdog.is_due():
            notify("WATCHDOG=1")

    def _beat(self) -> None:
        heartbeat = self._pulse.heartbeat(
            frames_in=self._cameras.num_frames,
            dropped=self._cameras.num_dropped,
            queue_depth=self._cameras.queue_depth,
            engines=self._backends,
        )
        self.publisher.publish(heartbeat)

    def _shutdown(self) -> None:
        notify("STOPPING=1")
        self._stop.set()
        self._tell_of_daemon("stopping")
        now = datetime.now(UTC)
        names = self._cameras.names_not_ended
        self._tell_of_cameras([StatusChange(name, "offline", "the daemon stops", now) for name in names])
        self._beat()
        log.info("stopped", frames=self._pulse.frames_processed)

    def _tell_of_daemon(self, state: State) -> None:
        self.publisher.publish(StatusEvent(camera=DAEMON_CAMERA, state=state, since=datetime.now(UTC)))

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self.publisher.publish(event)


class _Interval:
    """Due once every `interval_s`, the first time after one; never where that is None."""

    def __init__(self, interval_s: float | None) -> None:
        self._interval_s = interval_s
        self._due_s = time.monotonic() + (interval_s or 0.0)

    def is_due(self) -> bool:
        now_s = time.monotonic()
        if self._interval_s is None or now_s < self._due_s:
            return False
        self._due_s = max(self._due_s + self._interval_s, now_s)
        return True


def _ups_and_downs(
    changes: Sequence[StatusChange],
) -> tuple[list[StatusChange], list[StatusChange]]:
    """Changes to tell before the frames taken with them, and those of cameras now down, to tell after."""
    final = {change.camera: change.state for change in changes}
    ups = [change for change in changes if final[change.camera] not in DOWN_STATES]
    downs = [change for change in changes if final[change.camera] in DOWN_STATES]
    return ups, downs


def _open_publisher(config: Config) -> Publisher:
    return Publisher(
        config.publish.endpoint,
        instance=config.instance,
        hwm=config.publish.hwm,
        allow_plaintext_beyond_loopback=config.publish.allow_plaintext_beyond_loopback,
    )
