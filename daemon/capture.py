"""One camera, read in a thread of its own into its slot, connected anew whenever it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from daemon.config import CameraConfig
from daemon.records import Frame, State
from daemon.slots import FrameQueue, NewestFrame, Slot
from daemon.sources import is_live, paced, read_source
from engines.errors import MienError

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.25
ATTEMPTS_UNTIL_OFFLINE = 5


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A camera's new state. `failure` is an error of the program, which the main loop raises."""

    camera: str
    state: State
    reason: str | None
    since: datetime
    failure: Exception | None = None


class Capture:
    """Reads a camera until `stop`; tells its state through `report`, which is called from its thread."""

    def __init__(
        self,
        camera: CameraConfig,
        ready: threading.Event,
        stop: threading.Event,
        report: Callable[[StatusChange], None],
    ) -> None:
        self.camera = camera
        self.live = is_live(camera.source)
        self.slot: Slot = NewestFrame(ready) if self.live else FrameQueue(ready)
        self.num_frames = 0
        self.num_skipped = 0
        self.last_frame_ns = time.monotonic_ns()
        self._stop = stop
        self._report_change = report
        self._ready = ready
        self._next_index = 0
        self._thread = threading.Thread(target=self._run, name=f"capture-{camera.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread; one that hangs in a network call is left to end with the process."""
        self._thread.join(timeout_s)

    def _report(self, state: State, reason: str | None = None, failure: Exception | None = None) -> None:
        self._report_change(StatusChange(self.camera.name, state, reason, datetime.now(UTC), failure))
        self._ready.set()

    def _run(self) -> None:
        try:
            self._report("connecting")
            self._keep_connected() if self.live else self._replay()
        except MienError as error:
            self._report("ended", str(error))
        except Exception as error:
            self._report("ended", "internal error", error)

    def _replay(self) -> None:
        frames = read_source(self.camera, start=datetime.now(UTC))
        if self.camera.speed == "realtime":
            frames = paced(frames, self._stop.wait)
        self._deliver(replace(frame, monotonic_ns=time.monotonic_ns()) for frame in frames)
        if not self._stop.is_set():
            self._report("ended", "the source is at its end")

    def _keep_connected(self) -> None:
        pause_s, num_failures = FIRST_PAUSE_S, 0
        while not self._stop.is_set():
            reason, delivered = self._connection()
            if self._stop.is_set():
                return
            pause_s, num_failures = (FIRST_PAUSE_S, 0) if delivered else (pause_s, num_failures + 1)
            self._report("offline" if num_failures >= ATTEMPTS_UNTIL_OFFLINE else "reconnecting", reason)
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, self.camera.reconnect_max_s)

    def _connection(self) -> tuple[str, bool]:
        """One connection from its opening to its loss: why it ended, and whether it gave a frame."""
        first_index = self._next_index
        try:
            self._deliver(self._numbered_on(read_source(self.camera), first_index))
        except MienError as error:
            return str(error), self._next_index > first_index
        return "the stream ended", self._next_index > first_index

    def _numbered_on(self, frames: Iterator[Frame], first_index: int) -> Iterator[Frame]:
        for frame in frames:
            yield replace(frame, index=first_index + frame.index)

    def _deliver(self, frames: Iterator[Frame]) -> None:
        online = False
        for frame in frames:
            if self._stop.is_set():
                return
            self.last_frame_ns = time.monotonic_ns()
            if not online:
                self._report("online")
                online = True
            self.num_frames += 1
            self.num_skipped += frame.index - self._next_index
            self._next_index = frame.index + 1
            self.slot.put(frame, self._stop)
