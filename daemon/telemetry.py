"""What the daemon tells of itself: logs as events, and the counts of the heartbeat."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections import Counter
from typing import Any, TextIO, cast

import numpy as np
import structlog
from structlog.typing import EventDict, Processor

from daemon.config import LogConfig
from daemon.printable import printable
from daemon.records import DAEMON_CAMERA, HeartbeatEvent, LatencySummary, round_ms
from daemon.secrecy import redact_url

CLOCK_LEAP_S = 1.0
"""A time of day that moves by more at once was set; what keeps it true moves it by milliseconds."""


def configure_logging(config: LogConfig) -> None:
    """Sets structlog up, once, at the entry point: lines for people or JSON, on stderr, no credentials."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    stream = PatientStream(sys.stderr)
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        stream.tell_of_losses,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(spelt_out)
        # Plainly: rich's tracebacks show variables, cut short, and the half of a password is not seen to be one.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        processors.append(without_secrets(renderer))
    else:
        processors.append(structlog.processors.format_exc_info)
        processors.append(without_secrets(structlog.processors.JSONRenderer()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, stream)),
    )


class PatientStream(io.TextIOBase):
    """A stream that loses lines where they cannot be written, as on a full disk, instead of ending the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_lost = 0

    def write(self, text: str) -> int:
        """Writes, or counts as lost what cannot be written."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._num_lost += 1
        return len(text)

    def tell_of_losses(self, logger: Any, method: str, event_dict: EventDict) -> EventDict:
        """Adds to a log line how many before it were lost, since the start."""
        if self._num_lost:
            event_dict["lines_lost"] = self._num_lost
        return event_dict


class ClockWatch:
    """Notices that the time of day was set: nothing here relies on it, but events and logs bear it."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def leapt_s(self) -> float | None:
        """By how many seconds the clock was set since the last call; None where it went on as it should."""
        before_s, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        leap_s = self._ahead_s - before_s
        return round(leap_s, 3) if abs(leap_s) > CLOCK_LEAP_S else None


def spelt_out(logger: Any, method: str, event_dict: EventDict) -> EventDict:
    """Text that would move the cursor or break the line as escapes; JSON has its own."""
    return {
        key: printable(value) if isinstance(value, str) and key != "exception" else value
        for key, value in event_dict.items()
    }


def without_secrets(render: Processor) -> Processor:
    """The renderer, with credentials of URLs hidden in what it renders, tracebacks included."""

    def rendered(logger: Any, method: str, event_dict: EventDict) -> str:
        return redact_url(str(render(logger, method, event_dict)))

    return rendered


class Pulse:
    """Counts from the daemon's start, and the latencies since the last heartbeat."""

    def __init__(self) -> None:
        self._started_ns = time.monotonic_ns()
        self.frames_processed = 0
        self._latencies_ms: list[float] = []

    def frame_done(self, arrival_ns: int | None) -> None:
        """Counts a processed frame; `arrival_ns` is on the monotonic clock, None where it has none."""
        self.frames_processed += 1
        if arrival_ns is not None:
            self._latencies_ms.append((time.monotonic_ns() - arrival_ns) / 1e6)

    def heartbeat(
        self,
        *,
        frames_in: int,
        dropped: Counter[str],
        queue_depth: dict[str, int],
        engines: dict[str, str],
    ) -> HeartbeatEvent:
        """The event of now, unstamped; the next one's latencies begin after it."""
        latencies_ms, self._latencies_ms = self._latencies_ms, []
        return HeartbeatEvent(
            camera=DAEMON_CAMERA,
            uptime_s=round((time.monotonic_ns() - self._started_ns) / 1e9, 3),
            frames_in=frames_in,
            frames_processed=self.frames_processed,
            dropped=dict(dropped),
            latency_ms=_summary(latencies_ms),
            queue_depth=queue_depth,
            engines=engines,
        )


def _summary(latencies_ms: list[float]) -> LatencySummary | None:
    if not latencies_ms:
        return None
    p50, p99 = np.percentile(latencies_ms, (50, 99))
    return LatencySummary(p50=round_ms(p50), p99=round_ms(p99))
