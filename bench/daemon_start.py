"""A real daemon on one 1280x720 camera with nine faces: start to first event, frames a second, resident memory.

    python -m bench.daemon_start --video three_faces_1080x360.mp4 [--precision int8] [--seconds 20]

Makes the wall of nine faces as a video, starts `mien run` on it (engines are built in a first start that does not
count), listens as a subscriber does, and reads the daemon's memory from /proc. `realtime` tells whether it keeps up
with 25 frames a second, `max` how far it could go; both with decoding, in the default mode.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.wall import write_wall
from daemon.subscriber import Subscriber
from engines import machine
from engines.errors import MienError

CLIP_S = 4.0
PATIENCE_S = 180.0


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "wall.mp4"
            write_wall(options.video, clip, CLIP_S)
            run_once(options, clip, "realtime", seconds=1.0)  # builds what is missing
            found = {speed: run_once(options, clip, speed, options.seconds) for speed in ("realtime", "max")}
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    told = {"machine": machine.described(("openvino", "mien")), "precision": options.precision} | found
    print(json.dumps(told, indent=1))
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def run_once(options: argparse.Namespace, clip: Path, speed: str, seconds: float) -> dict[str, float]:
    """Starts a daemon, watches its events for so long, and stops it."""
    folder = clip.parent
    endpoint = f"ipc://{folder}/events-{speed}"
    config = folder / f"{speed}.yaml"
    config.write_text(configuration(clip, endpoint, speed, options), encoding="utf-8")
    command = [sys.executable, "-c", "from daemon.cli import main; main()", "run", "--config", str(config)]
    with Subscriber(endpoint, ["mien/1/wall/faces"]) as events, subprocess.Popen(command) as daemon:
        try:
            return watched(daemon.pid, events, time.monotonic(), seconds)
        finally:
            daemon.terminate()
            daemon.wait(timeout=30)


def configuration(clip: Path, endpoint: str, speed: str, options: argparse.Namespace) -> str:
    """In JSON, which YAML takes; no gallery, control socket or metrics port of the user's own is touched."""
    return json.dumps(
        {
            "cameras": [{"name": "wall", "source": str(clip), "loop": True, "speed": speed}],
            "engines": {"backend": "openvino", "precision": options.precision, "threads": options.threads},
            "publish": {"endpoint": endpoint},
            "gallery": {"path": str(clip.parent / "gallery.sqlite")},
            "control": {"enabled": False},
            "metrics": {"port": 0},
            "log": {"level": "warning"},
        }
    )


def watched(pid: int, events: Subscriber, started_s: float, seconds: float) -> dict[str, float]:
    """Seconds to the first event, then frames a second and memory over `seconds`."""
    if events.receive(timeout_s=PATIENCE_S) is None:
        raise MienError(f"the daemon told of no face within {PATIENCE_S:g} s")
    first_s = time.monotonic() - started_s
    until_s = time.monotonic() + seconds
    latencies: list[float] = []
    faces = 0
    while time.monotonic() < until_s:
        received = events.receive(timeout_s=5.0)
        if received is not None:
            latencies.append(received.event["latency_ms"]["total"])
            faces += len(received.event["faces"])
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    mb = {line.partition(":")[0]: int(line.split()[1]) / 1024 for line in status.splitlines() if "kB" in line}
    figures = {
        "first_event_s": first_s,
        "frames_per_s": len(latencies) / seconds,
        "faces_per_frame": faces / max(1, len(latencies)),
        "latency_p50_ms": float(np.percentile(latencies or [0], 50)),
        "latency_p99_ms": float(np.percentile(latencies or [0], 99)),
        "resident_mb": mb["VmRSS"],
        "peak_mb": mb["VmHWM"],
    }
    return {name: round(value, 2) for name, value in figures.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.daemon_start", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--video", type=Path, required=True, help="a clip of three faces side by side")
    parser.add_argument("--precision", default="auto", help="auto, f32, bf16 or int8")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
