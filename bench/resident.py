"""One system alone on the wall of nine faces: prints its memory and its start as one line of JSON.

python -m bench.resident NAME --video FILE [--teachers FOLDER]
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

FRAMES = 60
HELD = 4  # pictures in memory: few, for their own size is no system's


def main(argv: list[str] | None = None) -> int:
    began = time.time()
    parser = argparse.ArgumentParser(prog="python -m bench.resident", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--teachers", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--started", type=float, default=began, help="seconds since 1970 when it was started")
    options = parser.parse_args(argv)
    from bench.systems import load
    from bench.wall import first_walls, timed_on
    from engines.errors import MienError

    try:
        made = time.time()
        walls = first_walls(options.video, HELD)
        frames = timed_on(walls)
        made = time.time() - made
        run = load(options.name, options.teachers, options.threads, walls[0].image.shape)
        run(next(frames))
        first_s = time.time() - options.started - made
        for frame in islice(frames, FRAMES):
            run(frame)
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kib = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    found = {"rss_mb": int(kib["VmRSS"]) / 1024, "peak_mb": int(kib["VmHWM"]) / 1024, "first_s": first_s}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
