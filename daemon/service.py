"""The daemon's life: startup, main loop, shutdown.

One thread takes what all cameras have ready, as one batch, and publishes what the pipeline makes of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from daemon.cameras import Cameras, Tally
from daemon.capture import StatusChange
from daemon.config import Config
from daemon.control import open_control
from daemon.control_answers import ControlAnswers
from daemon.metrics import Metrics, Watched, gallery_size, served
from daemon.notify import notify, watchdog_interval_s
from daemon.orders import Orders
from daemon.overseer import Overseer
from daemon.pipelines import Failure, LoadedPipeline, PartlyFailedError
from daemon.publisher import open_publisher
from daemon.records import DAEMON_CAMERA, Event, Frame, State, StatusEvent
from daemon.sources import check_source
from daemon.steering import Steering, camera_status
from daemon.telemetry import ClockWatch, Pulse
from engines.errors import MienError, UsageError

log = structlog.get_logger(__name__)

IDLE_WAIT_S = 0.05
"""How long the loop sleeps at most, so that subscribers and signals are answered at once."""

DOWN_STATES: frozenset[State] = frozenset({"reconnecting", "offline", "ended"})


class Service:
    """A daemon that runs until `stop` is set, or until the last of its sources is at its end.

    config_path: the file that a reload reads; `reload` set asks for one. Raises MienError where it cannot start.
    """

    def __init__(
        self,
        config: Config,
        load: Callable[[Config], LoadedPipeline],
        stop: threading.Event | None = None,
        *,
        config_path: Path | None = None,
        reload: threading.Event | None = None,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._load = load
        self._stop = stop or threading.Event()
        self._reload = reload or threading.Event()
        self._orders = Orders()
        self._num_failed = 0
        self._failed_in_a_row = 0
        self._pulse = Pulse()
        self._clock = ClockWatch()
        self._metrics = Metrics(config.instance)
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
        self.publisher = stack.enter_context(open_publisher(self._config.publish, self._config.instance))
        stack.enter_context(served(self._metrics, self._config.metrics))
        self._tell_of_daemon("starting")
        loaded = self._load(self._config)
        self._pipeline, self._backends = loaded.pipeline, loaded.backends
        self._cameras = stack.enter_context(
            Cameras(self._config.cameras, self._config.service.frames_at_once)
        )
        self._metrics.watch(self._watched())
        self._steering = Steering(
            self._config,
            self._config_path,
            loaded,
            self._cameras,
            self._orders,
            self._tell_of_cameras,
            self._publish,
        )
        self._overseer = stack.enter_context(Overseer(self._config.service.stage_timeout_s))
        answers = ControlAnswers(self._config, self._steering, self.status)
        self.control = open_control(self._config, answers.answer, stack)
        self._tell_of_daemon("ready")
        notify("READY=1")
        log.info("ready", endpoint=self.publisher.endpoint, engines=self._backends)

    def _watched(self) -> Watched:
        """What Prometheus is told of at each scrape."""
        path = self._config.gallery.path
        return Watched(
            cameras=self._cameras,
            num_subscriptions=lambda: self.publisher.num_subscriptions,
            backends=self._backends,
            gallery_size=lambda: gallery_size(path),
        )

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
        while not self._stop.is_set() and not cameras.have_ended:
            cameras.ready.clear()
            self._overseer.beat()
            self.publisher.answer_subscribers()
            self._orders.run()
            self._metrics.keep_only(cameras.names)
            self._reload_if_asked()
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
        try:
            events = self._pipeline.process(frames)
        except PartlyFailedError as partly:
            failed = {camera for _, cameras in partly.failures for camera in cameras}
            self._batch_done([frame for frame in frames if frame.camera not in failed], partly.events)
            self._batch_failed(partly.failures)
        except Exception as error:
            self._batch_failed([(error, [frame.camera for frame in frames])])
        else:
            self._failed_in_a_row = 0
            self._batch_done(frames, events)

    def _batch_done(self, frames: Sequence[Frame], events: Sequence[Event]) -> None:
        self._publish(events)
        for frame in frames:
            self._pulse.frame_done(frame.monotonic_ns)
            self._metrics.frame_done(frame.camera, frame.monotonic_ns)

    def _batch_failed(self, failures: Sequence[Failure]) -> None:
        """Raises the first error anew where it is one too many."""
        self._failed_in_a_row += 1
        for error, cameras in failures:
            self._num_failed += len(cameras)
            for camera in cameras:
                self._metrics.frame_failed(camera)
            log.error("batch_failed", cameras=sorted(cameras), in_a_row=self._failed_in_a_row, exc_info=error)
        if self._failed_in_a_row >= self._config.service.max_failures:
            notify(f"STATUS={self._failed_in_a_row} batches in a row failed; ending")
            raise failures[0][0]

    def _reload_if_asked(self) -> None:
        """Reads the configuration beside the main loop: engines for a new camera may take their time."""
        if self._reload.is_set():
            self._reload.clear()
            threading.Thread(target=self._reloaded, name="reload", daemon=True).start()

    def _reloaded(self) -> None:
        with suppress(MienError):  # told in the log, and the old configuration goes on
            self._steering.reload()

    def status(self) -> dict[str, Any]:
        """The daemon and its cameras as `mien ctl status` shows them; may be asked from any thread."""
        tally = self._tally()
        return {
            "instance": self._config.instance,
            "epoch": self.publisher.epoch,
            "pid": os.getpid(),
            "endpoint": self.publisher.endpoint,
            "config": str(self._config_path) if self._config_path else None,
            "gallery": str(self._config.gallery.path),
            "engines": self._backends,
            "frames_in": tally.num_in,
            "frames_processed": self._pulse.frames_processed,
            "dropped": dict(tally.dropped),
            "silent_s": round(self._overseer.silent_s, 3),
            "cameras": [
                camera_status(self._cameras, name, watched)
                for name, watched in self._cameras.states().items()
            ],
        }

    def _tally(self) -> Tally:
        """Every frame so far, in one reading: captures go on counting meanwhile."""
        tally = self._cameras.tally()
        if self._num_failed:
            tally.dropped["failed"] = self._num_failed
        return tally

    def _tell_of_cameras(self, changes: Sequence[StatusChange]) -> None:
        for change in changes:
            if change.state in DOWN_STATES:
                self._publish(self._pipeline.close_camera(change.camera))
            status = StatusEvent(
                camera=change.camera, state=change.state, reason=change.reason, since=change.since
            )
            self._publish([status])
            lost = change.state in ("stalled", "reconnecting", "offline") and not self._stop.is_set()
            write = log.warning if lost else log.info
            write("camera_" + change.state, camera=change.camera, reason=change.reason)

    def _keep_time(self) -> None:
        if self._heartbeat.is_due():
            self._beat()
        if (leapt_s := self._clock.leapt_s()) is not None:
            log.warning("clock_set", seconds=leapt_s)
        if self._watchdog.is_due():
            notify("WATCHDOG=1")

    def _beat(self) -> None:
        tally = self._tally()
        heartbeat = self._pulse.heartbeat(
            frames_in=tally.num_in,
            dropped=tally.dropped,
            queue_depth=tally.waiting,
            engines=self._backends,
        )
        self._publish([heartbeat])

    def _shutdown(self) -> None:
        notify("STOPPING=1")
        self._stop.set()
        self._cameras.stop()
        self._tell_of_daemon("stopping")
        now = datetime.now(UTC)
        names = self._cameras.names_not_ended
        self._tell_of_cameras([StatusChange(name, "offline", "the daemon stops", now) for name in names])
        self._beat()
        log.info("stopped", frames=self._pulse.frames_processed)

    def _tell_of_daemon(self, state: State) -> None:
        self._publish([StatusEvent(camera=DAEMON_CAMERA, state=state, since=datetime.now(UTC))])

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self._metrics.saw(self.publisher.publish(event))


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
