"""What an administrator does to a running daemon: look, reload, add, remove and restart cameras."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import structlog
from pydantic import ValidationError

from daemon.cameras import Cameras, Watched
from daemon.capture import StatusChange
from daemon.config import CameraConfig, Config, load_config
from daemon.notify import notify
from daemon.orders import Orders
from daemon.pipelines import LoadedPipeline
from daemon.records import REMOVED, Event
from daemon.secrecy import redact_source
from daemon.sources import check_source
from engines.errors import MienError, UsageError

log = structlog.get_logger(__name__)

SETTINGS_OF_THE_PIPELINE = frozenset(
    {"identity", "age", "gender", "emotion", "detector_size", "min_face_px", "detect_threshold"}
    | {"identity_threshold", "roi", "stalled_after_s", "reconnect_max_s"}
)
"""What can change while a camera's connection and its tracks go on."""


class Teller(Protocol):
    """How the main loop tells of what is done here."""

    def __call__(self, changes: Sequence[StatusChange]) -> None:
        """Publishes states, and ends the tracks of cameras that are down."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload did. needs_restart: sections that differ and are read at the start only."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


@dataclass(slots=True)
class _Plan:
    """Which cameras to do what to."""

    remove: list[str] = field(default_factory=list)
    add: list[CameraConfig] = field(default_factory=list)
    restart: list[CameraConfig] = field(default_factory=list)
    change: list[CameraConfig] = field(default_factory=list)


class Steering:
    """Changes to the cameras of a running daemon: prepared in the caller's thread, done in the main loop's.

    path: the configuration file that `reload` reads; None where the daemon runs without one.
    """

    def __init__(
        self,
        config: Config,
        path: Path | None,
        loaded: LoadedPipeline,
        cameras: Cameras,
        orders: Orders,
        tell: Teller,
        publish: Callable[[Sequence[Event]], None],
    ) -> None:
        self._config = config
        self._path = path
        self._loaded = loaded
        self._cameras = cameras
        self._orders = orders
        self._tell = tell
        self._publish = publish
        self._lock = threading.Lock()

    def reload(self) -> Changes:
        """Reads the configuration file again. Raises UsageError for a wrong one; then all stays as it was."""
        with self._lock:
            if self._path is None:
                raise UsageError("the daemon runs without a configuration file; start it with --config")
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                return self._reload(load_config(self._path))
            except MienError as error:
                log.error("reload_refused", detail=str(error))
                raise
            finally:
                notify("READY=1")

    def _reload(self, config: Config) -> Changes:
        plan = self._plan([camera for camera in config.cameras if camera.enabled])
        self._carry_out(plan)
        sections = [
            name
            for name in Config.model_fields
            if name != "cameras" and getattr(config, name) != getattr(self._config, name)
        ]
        done = Changes(
            added=tuple(camera.name for camera in plan.add),
            removed=tuple(plan.remove),
            changed=tuple(camera.name for camera in plan.change),
            restarted=tuple(camera.name for camera in plan.restart),
            needs_restart=tuple(sections),
        )
        log.info(
            "reloaded", added=done.added, removed=done.removed, changed=done.changed, path=str(self._path)
        )
        return done

    def add(self, settings: Mapping[str, Any]) -> str:
        """Adds a camera until the next reload or start; returns its name. Raises UsageError for a wrong one."""
        try:
            camera = CameraConfig.model_validate(dict(settings))
        except ValidationError as error:
            raise UsageError(_first_mistake(error)) from None
        if not camera.enabled:
            raise UsageError(
                f"camera {camera.name}: enabled is false, so there is nothing to add; leave it out"
            )
        with self._lock:
            if camera.name in self._cameras.names:
                raise UsageError(f"camera {camera.name}: is there already; remove it first")
            self._carry_out(_Plan(add=[camera]))
        log.info("camera_added", camera=camera.name)
        return camera.name

    def remove(self, name: str) -> str:
        """Removes a camera until the next reload or start; raises UsageError where there is none."""
        with self._lock:
            self._known(name)
            self._carry_out(_Plan(remove=[name]))
        log.info("camera_removed", camera=name)
        return name

    def restart(self, name: str) -> str:
        """Connects a camera anew; raises UsageError where there is none."""
        with self._lock:
            self._carry_out(_Plan(restart=[self._known(name)]))
        log.info("camera_restarted", camera=name)
        return name

    def _known(self, name: str) -> CameraConfig:
        if name not in self._cameras.names:
            raise UsageError(
                f"no camera is called {name!r}; there are: {', '.join(self._cameras.names) or 'none'}"
            )
        return self._cameras.config_of(name)

    def _plan(self, wanted: Sequence[CameraConfig]) -> _Plan:
        names = {camera.name for camera in wanted}
        plan = _Plan(remove=[name for name in self._cameras.names if name not in names])
        for camera in wanted:
            if camera.name not in self._cameras.names:
                plan.add.append(camera)
                continue
            differing = _differing(self._cameras.config_of(camera.name), camera)
            if differing - SETTINGS_OF_THE_PIPELINE:
                plan.restart.append(camera)
            elif differing:
                plan.change.append(camera)
        return plan

    def _carry_out(self, plan: _Plan) -> None:
        for camera in [*plan.add, *plan.restart, *plan.change]:
            _check(camera)
            self._loaded.prepare(camera)
        self._orders.call(lambda: self._do(plan), self._cameras.ready.set)

    def _do(self, plan: _Plan) -> None:
        now = datetime.now(UTC)
        pipeline = self._loaded.pipeline
        for name in plan.remove:
            self._cameras.remove(name)
            self._tell([StatusChange(name, "ended", REMOVED, now)])
        for camera in plan.restart:
            self._publish(pipeline.close_camera(camera.name))
        for camera in [*plan.add, *plan.restart, *plan.change]:
            self._publish(pipeline.add_camera(camera))
        for camera in [*plan.add, *plan.restart]:
            self._cameras.add(camera)
        for camera in plan.change:
            self._cameras.change(camera)


def _check(camera: CameraConfig) -> None:
    try:
        check_source(camera.source)
    except MienError as error:
        raise UsageError(f"camera {camera.name}: {error}") from None


def _differing(one: CameraConfig, other: CameraConfig) -> set[str]:
    return {key for key in CameraConfig.model_fields if getattr(one, key) != getattr(other, key)}


def _first_mistake(error: ValidationError) -> str:
    """The first mistake in a camera's settings; values are not repeated, since one may hold a password."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "camera"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}"


def camera_status(cameras: Cameras, name: str, watched: Watched) -> dict[str, Any]:
    """One camera as `mien ctl status` shows it."""
    counts = cameras.counts(name)
    return {
        "name": name,
        "source": redact_source(watched.capture.camera.source),
        "state": watched.state,
        "reason": watched.reason,
        "since": watched.since.isoformat(),
        "frames_in": counts.num_in,
        "taken": counts.num_taken,
        "dropped": dict(counts.dropped),
        "waiting": counts.waiting,
        "connections": counts.num_connections,
    }
