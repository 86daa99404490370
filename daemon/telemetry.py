"""What the daemon tells of itself: logs as events, and the counts of the heartbeat."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import structlog
from structlog.typing import EventDict, Processor

from daemon.config import LogConfig
from daemon.printable import printable
from daemon.records import DAEMON_CAMERA, HeartbeatEvent, LatencySummary, round_ms
from daemon.secrecy import redact_url


def configure_logging(config: LogConfig) -> None:
    """Sets structlog up, once, at the entry point: lines for people or JSON, on stderr, no credentials."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(spelt_out)
        processors.append(without_secrets(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())))
    else:
        processors.append(structlog.processors.format_exc_info)
        processors.append(without_secrets(structlog.processors.JSONRenderer()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


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
