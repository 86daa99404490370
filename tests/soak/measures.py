"""What the soak measures: a process's footprint, latencies and rates of events."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

Event = dict[str, Any]


def footprint(pid: int) -> dict[str, float]:
    """Resident memory in MiB, threads and open files of a process; the least of a second, so that a connection
    which is about to end does not count.
    """
    taken = []
    for _ in range(10):
        taken.append(_footprint(pid))
        time.sleep(0.1)
    return {key: min(each[key] for each in taken) for key in taken[0]}


def _footprint(pid: int) -> dict[str, float]:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return {
        "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What a footprint has become."""
    return {
        "rss_ratio": round(after["rss_mib"] / before["rss_mib"], 3),
        "rss_mib": after["rss_mib"],
        "threads": after["threads"],
        "threads_more": after["threads"] - before["threads"],
        "files_more": after["files"] - before["files"],
    }


def cpu_s(pid: int) -> float:
    """Processor time a process has had, in seconds (proc(5), /proc/PID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def p99_ms(events: list[Event]) -> float:
    """Capture to publish, of faces events."""
    totals = [event["latency_ms"]["total"] for event in events if "latency_ms" in event]
    return round(float(np.percentile(totals, 99)), 1) if totals else float("nan")


def rate(events: list[Event]) -> float:
    """Events a second between the first and the last."""
    if len(events) < 2:
        return 0.0
    first, last = (datetime.fromisoformat(events[i]["published_at"]) for i in (0, -1))
    return round((len(events) - 1) / max((last - first).total_seconds(), 1e-9), 2)


def accounts(heartbeat: Event) -> bool:
    """Whether in = processed + dropped + waiting."""
    gone = sum(heartbeat["dropped"].values()) + sum(heartbeat["queue_depth"].values())
    return bool(heartbeat["frames_in"] == heartbeat["frames_processed"] + gone)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._started_s, 2)
