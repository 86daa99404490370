"""All cameras of a daemon, as the main loop sees them: frames to take, states to tell."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from daemon.capture import Capture, StatusChange
from daemon.config import CameraConfig
from daemon.records import Frame, State

JOIN_S = 2.0
"""How long all captures together are waited for at the end."""


class Cameras:
    """The captures of all enabled cameras; a context manager that starts and ends them.

    `ready` is set whenever a frame waits or a state has changed.
    """

    def __init__(self, configs: Sequence[CameraConfig], stop: threading.Event) -> None:
        self.ready = threading.Event()
        self._stop = stop
        self._reported: queue.SimpleQueue[StatusChange] = queue.SimpleQueue()
        self._held_back: list[StatusChange] = []
        self._captures = {
            camera.name: Capture(camera, self.ready, stop, self._reported.put)
            for camera in configs
            if camera.enabled
        }
        self._states: dict[str, State] = dict.fromkeys(self._captures, "connecting")

    def __enter__(self) -> Self:
        for capture in self._captures.values():
            capture.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        until_s = time.monotonic() + JOIN_S
        for capture in self._captures.values():
            capture.join(max(0.0, until_s - time.monotonic()))

    def take_frames(self) -> list[Frame]:
        """What all cameras have ready: at most one frame each."""
        frames = (capture.slot.take() for capture in self._captures.values())
        return [frame for frame in frames if frame is not None]

    def take_changes(self) -> list[StatusChange]:
        """The states that changed since the last call; `ended` only once the last frame was taken.

        Raises what a capture thread died of, if that was an error of the program.
        """
        waiting, self._held_back = self._held_back, []
        while not self._reported.empty():
            waiting.append(self._reported.get_nowait())
        changes = [change for change in waiting if self._is_due(change)]
        for change in changes:
            if change.failure is not None:
                raise change.failure
            self._states[change.camera] = change.state
        return changes + self._silences()

    def _is_due(self, change: StatusChange) -> bool:
        due = change.state != "ended" or not self._captures[change.camera].slot.depth()
        if not due:
            self._held_back.append(change)
        return due

    def _silences(self) -> list[StatusChange]:
        changes = []
        for name, capture in self._captures.items():
            silent_s = (time.monotonic_ns() - capture.last_frame_ns) / 1e9
            silent = silent_s > capture.camera.stalled_after_s
            state = self._states[name]
            if capture.live and state == "online" and silent:
                reason = f"no frame for {capture.camera.stalled_after_s:g} s"
                changes.append(StatusChange(name, "stalled", reason, datetime.now(UTC)))
            elif state == "stalled" and not silent:
                changes.append(StatusChange(name, "online", None, datetime.now(UTC)))
        self._states.update({change.camera: change.state for change in changes})
        return changes

    @property
    def names_not_ended(self) -> list[str]:
        """The cameras that may still give frames."""
        return [name for name, state in self._states.items() if state != "ended"]

    @property
    def num_frames(self) -> int:
        """Frames that came in from all cameras so far, those passed over for `max_fps` among them."""
        return sum(capture.num_frames + capture.num_skipped for capture in self._captures.values())

    @property
    def num_dropped(self) -> Counter[str]:
        """Frames not processed so far, by reason."""
        dropped = Counter(superseded=0)
        for capture in self._captures.values():
            dropped["superseded"] += capture.slot.num_dropped
            if capture.num_skipped:
                dropped["max_fps" if capture.camera.max_fps else "unreadable"] += capture.num_skipped
        return dropped

    @property
    def queue_depth(self) -> dict[str, int]:
        """Frames waiting, by camera."""
        return {name: capture.slot.depth() for name, capture in self._captures.items()}
