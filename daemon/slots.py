"""Where a capture thread leaves frames for the one inference thread.

Live: only the newest frame counts, and what it replaces is counted as dropped. Replay: a short queue that
makes the reader wait, so that nothing is lost. Both set `ready` when there is something to take.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from typing import Protocol

from daemon.records import Frame


class Slot(Protocol):
    """One camera's way from its capture thread to the inference thread."""

    num_dropped: int

    def put(self, frame: Frame, stop: threading.Event) -> None:
        """Called by the capture thread."""

    def take(self) -> Frame | None:
        """Called by the inference thread; None where nothing waits."""

    def depth(self) -> int:
        """How many frames wait."""


class NewestFrame:
    """Holds one frame, the newest; `put` never waits."""

    def __init__(self, ready: threading.Event) -> None:
        self._ready = ready
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._dropped_since_taken = 0
        self.num_dropped = 0

    def put(self, frame: Frame, stop: threading.Event) -> None:
        with self._lock:
            if self._frame is not None:
                self._dropped_since_taken += 1
                self.num_dropped += 1
            self._frame = frame
        self._ready.set()

    def take(self) -> Frame | None:
        """The newest frame, told how many were dropped before it."""
        with self._lock:
            frame, self._frame = self._frame, None
            dropped, self._dropped_since_taken = self._dropped_since_taken, 0
        return frame and replace(frame, dropped=frame.dropped + dropped)

    def depth(self) -> int:
        return int(self._frame is not None)


class FrameQueue:
    """Holds up to `size` frames in order; `put` waits for room, or until `stop`."""

    def __init__(self, ready: threading.Event, size: int = 4) -> None:
        self._ready = ready
        self._queue: queue.Queue[Frame] = queue.Queue(size)
        self.num_dropped = 0

    def put(self, frame: Frame, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._queue.put(frame, timeout=0.1)
            except queue.Full:
                continue
            self._ready.set()
            return

    def take(self) -> Frame | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def depth(self) -> int:
        return self._queue.qsize()
