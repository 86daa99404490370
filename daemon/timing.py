"""Calls timed until there are enough of them, and what they come to."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 2
MIN_CALLS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Calls of one kind. per_second: items a second, `batch` of them in each call."""

    name: str
    batch: int
    calls: int
    p50_ms: float
    p99_ms: float
    mean_ms: float
    per_second: float


def timed(name: str, batch: int, call: Callable[[], object], seconds: float) -> Timing:
    """Times a call for so long, and at least MIN_CALLS times; the first WARM_UP do not count."""
    for _ in range(WARM_UP):
        call()
    took_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while len(took_s) < MIN_CALLS or time.perf_counter() < until_s:
        started_s = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - started_s)
    return summed_up(name, batch, took_s)


def summed_up(name: str, batch: int, took_s: Sequence[float]) -> Timing:
    """took_s: the seconds of each call."""
    p50, p99 = np.percentile(took_s, (50, 99)) * 1e3
    mean_s = sum(took_s) / len(took_s)
    return Timing(
        name=name,
        batch=batch,
        calls=len(took_s),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        mean_ms=round(mean_s * 1e3, 3),
        per_second=round(batch / mean_s, 1),
    )


def peak_resident_mb() -> float:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def gpu_used_mb() -> float | None:
    """What of the GPU's memory is taken, by all processes; None where torch uses no GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    return round(float(total - free) / 2**20, 1)
