"""Where a capture thread leaves frames for the one inference thread.

Live: only the newest frame counts, and what it replaces is counted as dropped. Replay: a short queue that
makes the reader wait, so that nothing is lost. Both set `ready` when there is something to take, and count
under one lock, so that what came in is at any moment what was taken, dropped and waits.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from daemon.records import Frame


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """Frames of one slot: num_in = num_taken + num_dropped + waiting."""

    num_in: int
    num_taken: int
    num_dropped: int
    waiting: int


class Slot(Protocol):
    """One camera's way from its capture thread to the inference thread."""

    num_dropped: int

    def put(self, frame: Frame, stop: threading.Event) -> None:
        """Called by the capture thread."""

    def take(self) -> Frame | None:
        """Called by the inference thread; None where nothing waits."""

    def depth(self) -> int:
        """How many frames wait."""

    def counts(self) -> SlotCounts:
        """What went through so far."""


class NewestFrame:
    """Holds one frame, the newest; `put` never waits."""

    def __init__(self, ready: threading.Event) -> None:
        self._ready = ready
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._dropped_since_taken = 0
        self._num_in = 0
        self.num_dropped = 0

    def put(self, frame: Frame, stop: threading.Event) -> None:
        with self._lock:
            self._num_in += 1
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

    def counts(self) -> SlotCounts:
        with self._lock:
            waiting = self.depth()
            taken = self._num_in - self.num_dropped - waiting
            return SlotCounts(self._num_in, taken, self.num_dropped, waiting)


class FrameQueue:
    """Holds up to `size` frames in order; `put` waits for room, or until `stop`."""

    def __init__(self, ready: threading.Event, size: int = 4) -> None:
        self._ready = ready
        self._size = size
        self._frames: deque[Frame] = deque()
        self._room = threading.Condition()
        self._num_in = 0
        self.num_dropped = 0

    def put(self, frame: Frame, stop: threading.Event) -> None:
        with self._room:
            while len(self._frames) >= self._size:
                self._room.wait(0.1)
                if stop.is_set():
                    return
            self._num_in += 1
            self._frames.append(frame)
        self._ready.set()

    def take(self) -> Frame | None:
        with self._room:
            if not self._frames:
                return None
            self._room.notify()
            return self._frames.popleft()

    def depth(self) -> int:
        return len(self._frames)

    def counts(self) -> SlotCounts:
        with self._room:
            waiting = self.depth()
            return SlotCounts(self._num_in, self._num_in - waiting, 0, waiting)
