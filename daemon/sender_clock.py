"""When a frame was taken, after the sender's own clock (RTCP sender reports, RFC 3550, 6.4.1)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

PLAUSIBLE_S = 3600.0
"""A sender's clock that is off by more was never set, and says nothing."""

WINDOW = 500
"""Frames over which the least delay is looked for."""

DRIFT_S = 0.2
"""How far the least delay may move before the sender's two clocks are taken to drift apart."""

LEAP_NS = 1_000_000_000
"""Our own time of day was set where it moves by more against the clock that only goes on."""


class SenderClock:
    """Turns the times of one connection into times of day.

    FFmpeg reckons from the first report on, by the stream's sampling clock alone. Over weeks that one drifts
    from the time of day; the least delay between the two then moves, and is followed. When our own clock is
    set, all delays move too, which says nothing of the sender: they are then taken from there.

    monotonic_ns: the clock that nobody sets.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._ahead_ns: int | None = None
        self._delays_s: deque[float] = deque(maxlen=WINDOW)
        self._first_least_s: float | None = None
        self._correction_s = 0.0

    def captured_at(self, sent_at_s: float | None, now: datetime) -> datetime | None:
        """The time of day, UTC, of a frame the sender puts at `sent_at_s` (s since 1970); None if unknown."""
        if self._was_set(now):
            self._delays_s.clear()
            self._first_least_s = None
        if sent_at_s is None or abs(now.timestamp() - sent_at_s) > PLAUSIBLE_S:
            return None
        self._delays_s.append(now.timestamp() - sent_at_s)
        if len(self._delays_s) == WINDOW:
            self._follow(min(self._delays_s))
            self._delays_s.clear()
        return datetime.fromtimestamp(sent_at_s + self._correction_s, UTC)

    def _was_set(self, now: datetime) -> bool:
        """Whether our own time of day has leapt since the frame before."""
        before_ns, self._ahead_ns = self._ahead_ns, round(now.timestamp() * 1e9) - self._monotonic_ns()
        return before_ns is not None and abs(self._ahead_ns - before_ns) > LEAP_NS

    def _follow(self, least_s: float) -> None:
        if self._first_least_s is None:
            self._first_least_s = least_s - self._correction_s
        drift_s = least_s - self._first_least_s
        if abs(drift_s - self._correction_s) > DRIFT_S:
            self._correction_s = drift_s
