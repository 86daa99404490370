"""One camera, read in a thread of its own into its slot, connected anew whenever it is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from daemon.config import CameraConfig
from daemon.decoding import HardwareRefusedError, sign_of_life
from daemon.records import Frame, State
from daemon.slots import FrameQueue, NewestFrame, Slot
from daemon.sources import is_live, paced, read_source
from engines.errors import MienError

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.25
ATTEMPTS_UNTIL_OFFLINE = 5
SOFTWARE_INSTEAD = "hardware decoding was refused"


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A camera's new state. `failure` is an error of the program, which the main loop raises."""

    camera: str
    state: State
    reason: str | None
    since: datetime
    failure: Exception | None = None


class Capture:
    """Reads a camera until `stop`; tells its state through `report`, which is called from its thread.

    first_index: the number of its first frame, for a camera that is read anew. `last_frame_ns`: when the last
    picture was decoded, be it one that `max_fps` leaves out.
    """

    def __init__(
        self,
        camera: CameraConfig,
        ready: threading.Event,
        stop: threading.Event,
        report: Callable[[StatusChange], None],
        first_index: int = 0,
    ) -> None:
        self.camera = camera
        self.live = is_live(camera.source)
        self.slot: Slot = NewestFrame(ready) if self.live else FrameQueue(ready)
        self.num_skipped = 0
        self.num_connections = 0
        self.last_frame_ns = time.monotonic_ns()
        self.stop = stop
        self.next_index = first_index
        self._first_index = first_index
        self._report_change = report
        self._ready = ready
        self._software: dict[str, None] = {}
        self._thread = threading.Thread(target=self._run, name=f"capture-{camera.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread; returns whether it has ended. One that hangs in a call ends with the process."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _report(self, state: State, reason: str | None = None, failure: Exception | None = None) -> None:
        self._report_change(StatusChange(self.camera.name, state, reason, datetime.now(UTC), failure))
        self._ready.set()

    def _run(self) -> None:
        sign_of_life.set(self._note_life)
        try:
            self._report("connecting")
            self._keep_connected() if self.live else self._replay()
        except MienError as error:
            self._report("ended", str(error))
        except Exception as error:
            self._report("ended", "internal error", error)

    def _note_life(self) -> None:
        self.last_frame_ns = time.monotonic_ns()

    def _replay(self) -> None:
        frames = read_source(self.camera, start=datetime.now(UTC))
        if self.camera.speed == "realtime":
            frames = paced(frames, self.stop.wait)
        numbered = self._numbered_on(frames, self._first_index)
        self._deliver(replace(frame, monotonic_ns=time.monotonic_ns()) for frame in numbered)
        if not self.stop.is_set():
            self._report("ended", "the source is at its end")

    def _keep_connected(self) -> None:
        pause_s, num_failures = FIRST_PAUSE_S, 0
        while not self.stop.is_set():
            reason, delivered = self._connection()
            if self.stop.is_set():
                return
            if reason is SOFTWARE_INSTEAD:
                continue
            pause_s, num_failures = (FIRST_PAUSE_S, 0) if delivered else (pause_s, num_failures + 1)
            self._report("offline" if num_failures >= ATTEMPTS_UNTIL_OFFLINE else "reconnecting", reason)
            # Cameras that were lost together do not all come back in the same moment.
            self.stop.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self.camera.reconnect_max_s)

    def _connection(self) -> tuple[str, bool]:
        """Reads one connection to its end; returns why it ended, and whether it gave a frame."""
        first_index = self.next_index
        self.num_connections += 1
        camera = self.camera.model_copy(update=self._software)
        try:
            self._deliver(self._numbered_on(read_source(camera), first_index))
        except MienError as error:
            if isinstance(error, HardwareRefusedError) and not self._software:
                log.warning("hardware_decode_refused", camera=self.camera.name, detail=str(error))
                self._software = {"hardware_decode": None}
                return SOFTWARE_INSTEAD, False
            return str(error), self.next_index > first_index
        return "the stream ended", self.next_index > first_index

    def _numbered_on(self, frames: Iterator[Frame], first_index: int) -> Iterator[Frame]:
        for frame in frames:
            yield replace(frame, index=first_index + frame.index)

    def _deliver(self, frames: Iterator[Frame]) -> None:
        online = False
        for frame in frames:
            if self.stop.is_set():
                return
            if not online:
                self._report("online")
                online = True
            self.num_skipped += frame.index - self.next_index
            self.next_index = frame.index + 1
            self.slot.put(frame, self.stop)
