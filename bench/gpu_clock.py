"""Time, memory and peaks of a device; the same on a CPU, so that the script is tried where there is no GPU."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

Call = Callable[[], object]
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of a call that is waited for; device_ms: its share of calls that are not, one after the other."""

    p50_ms: float
    p99_ms: float
    device_ms: float
    calls: int

    def record(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Call, device: str, seconds: float = 1.0, least: int = 10) -> Timing:
    """Half of the time waiting for each call, half for all of them together."""
    for _ in range(WARM_UP):
        call()
    wait(device)
    taken_ms: list[float] = []
    until = time.perf_counter() + seconds / 2
    while len(taken_ms) < least or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        wait(device)
        taken_ms.append((time.perf_counter() - started) * 1e3)
    count = max(least, round(seconds / 2 / (float(np.mean(taken_ms)) / 1e3)))
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait(device)
    device_ms = (time.perf_counter() - started) / count * 1e3
    p50, p99 = np.percentile(taken_ms, [50, 99])
    return Timing(float(p50), float(p99), device_ms, len(taken_ms))


def used_mib(device: str) -> float:
    """Memory of the whole device that is taken, or the most this process has had resident."""
    if device == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peaks(device: str, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """What the device reaches: tera-operations a second of a matrix product, GB a second of a copy."""
    side, size = (8192, 1 << 30) if device == "cuda" else (512, 1 << 26)
    a = torch.randn((side, side), device=device).to(dtype)
    product = timed(lambda: a @ a, device, seconds)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, seconds)
    return {
        "tflops": round(2 * side**3 / product.device_ms / 1e9, 2),
        "gb_s": round(2 * size / copy.device_ms / 1e6, 1),
    }


def busy_ms(call: Call, rounds: int = 10) -> float | None:
    """Milliseconds a call keeps the GPU's kernels and copies busy; None where the profiler cannot tell."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(rounds):
                call()
            torch.cuda.synchronize()
        total_us = sum(row.self_device_time_total for row in seen.key_averages())
    except Exception:  # the row has other figures
        return None
    return round(total_us / rounds / 1e3, 4) or None
