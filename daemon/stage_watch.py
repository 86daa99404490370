"""How long the stages of one batch took."""

from __future__ import annotations

import time

from msgspec import UNSET, UnsetType

from daemon.records import round_ms


class StageWatch:
    """Starts when made; `lap` ends a stage."""

    def __init__(self) -> None:
        self._started_ns = self._lap_ns = time.monotonic_ns()
        self._stages_ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the lap before belongs to this stage."""
        now_ns = time.monotonic_ns()
        self._stages_ms[stage] = round_ms((now_ns - self._lap_ns) / 1e6)
        self._lap_ns = now_ns

    def latency_ms(self, arrived_ns: int | None) -> dict[str, float] | UnsetType:
        """Milliseconds by stage, what a frame waited before, and its total so far; UNSET for one of a file.

        arrived_ns: on the monotonic clock.
        """
        if arrived_ns is None:
            return UNSET
        waited_ms = round_ms((self._started_ns - arrived_ns) / 1e6)
        total_ms = round_ms((time.monotonic_ns() - arrived_ns) / 1e6)
        return {"wait": waited_ms, **self._stages_ms, "total": total_ms}
