"""`make soak`: the long form of the tests that make things go wrong; an hour at most.

    python -m tests.soak [--short] [--only NAME ...] [--out soak.json]

Prints a table and writes JSON. Needs GStreamer's RTSP server: see tests/rtsp_server.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak import scenarios, streams
from tests.test_gallery_under_fire import kill_during_enrolment
from tests.test_machine_trouble import kill_during_replay

BUDGET_S = 50 * 60


def plan(short: bool) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """The scenarios by name, each given a folder of its own."""
    return {
        "killed": lambda folder: streams.killed_and_back(folder, rounds=1 if short else 5),
        "frozen": lambda folder: streams.frozen(folder, rounds=1 if short else 3),
        "resized": lambda folder: streams.resized(folder, rounds=1 if short else 4),
        "damaged": lambda folder: streams.damaged(folder, seconds=5 if short else 60),
        "reconnects": lambda folder: streams.reconnects(folder, num=10 if short else 200),
        "enrolled": lambda folder: scenarios.enrolled(folder, rounds=1 if short else 10),
        "kill_9": lambda folder: {
            "kills": (kills := 3 if short else 50),
            "people": kill_during_enrolment(folder / "gallery.sqlite", kills),
        },
        "kill_9_replay": lambda folder: {
            "kills": (kills := 3 if short else 50),
            "finished_before": kill_during_replay(folder / "replay", kills),
        },
        "fuzzed_files": lambda folder: scenarios.fuzzed(folder, num=200 if short else 10_000),
        "many": lambda folder: scenarios.many(folder, num_cameras=16, seconds=10 if short else 60),
        "soak": lambda folder: scenarios.many(folder, num_cameras=4, seconds=10 if short else 1200),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--short", action="store_true", help="each scenario for seconds only")
    parser.add_argument("--only", nargs="*", help="these scenarios")
    parser.add_argument("--out", type=Path, default=Path("out/soak.json"))
    options = parser.parse_args(argv)
    started_s = time.monotonic()
    results: dict[str, Any] = {"cores": os.cpu_count(), "short": options.short}
    failed = False
    for name, run in plan(options.short).items():
        if options.only and name not in options.only:
            continue
        if time.monotonic() - started_s > BUDGET_S:
            results[name] = {"skipped": "out of time"}
            continue
        with tempfile.TemporaryDirectory(prefix="mien-soak-") as folder:
            began_s = time.monotonic()
            try:
                results[name] = run(Path(folder))
            except AssertionError as error:
                results[name], failed = {"failed": str(error)[:2000]}, True
            results[name]["took_s"] = round(time.monotonic() - began_s, 1)
        show(name, results[name])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return int(failed)


def show(name: str, result: dict[str, Any]) -> None:
    """One scenario as rows of a table."""
    for number, (key, value) in enumerate(result.items()):
        print(f"{name if not number else '':14}{key:22}{value}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
