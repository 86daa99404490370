"""`mien run` with a pipeline that finds one face in every frame, as a process of its own.

python -m tests.fake_daemon CONFIG [--delay S] [--hang-after BATCHES] [--fail-after BATCHES]
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from daemon.config import load_config
from daemon.pipelines import LoadedPipeline
from daemon.service import Service
from daemon.signals import stop_on_signals
from daemon.telemetry import configure_logging
from tests.wire import FakePipeline


class FragilePipeline(FakePipeline):
    """Hangs or fails once it has processed so many batches."""

    def __init__(self, delay_s: float, hang_after: int, fail_after: int) -> None:
        super().__init__(delay_s)
        self.hang_after, self.fail_after = hang_after, fail_after

    def process(self, frames):
        if len(self.batches) >= self.hang_after:
            time.sleep(1000)
        if len(self.batches) >= self.fail_after:
            raise ZeroDivisionError("a stage fails")
        return super().process(frames)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang-after", type=int, default=10**9)
    parser.add_argument("--fail-after", type=int, default=10**9)
    options = parser.parse_args(argv)
    pipeline = FragilePipeline(options.delay, options.hang_after, options.fail_after)
    configuration = load_config(options.config)
    configure_logging(configuration.log)
    stop, reload = threading.Event(), threading.Event()
    with stop_on_signals(stop, reload):
        service = Service(
            configuration,
            lambda _: LoadedPipeline(pipeline, {"detector": "fake"}),
            stop,
            config_path=options.config,
            reload=reload,
        )
        service.run()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
