"""Sees to it that a main loop that hangs does not hang for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

import structlog

from daemon.notify import notify

log = structlog.get_logger(__name__)

EXIT_HUNG = 70
"""What the process exits with, for its supervisor to start it anew (EX_SOFTWARE of sysexits.h)."""


class Overseer:
    """Watches the thread it is entered in, which calls `beat` whenever it gets on.

    Where it does not for `timeout_s`, the stage it hangs in is logged, and the process ends at once: a
    thread that hangs inside a library cannot be freed in any other way.
    """

    def __init__(self, timeout_s: float, end: Callable[[int], object] = os._exit) -> None:
        self._timeout_s = timeout_s
        self._end = end
        self._done = threading.Event()
        self._beaten_s = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="overseer", daemon=True)

    def __enter__(self) -> Self:
        self._watched = threading.get_ident()
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """The watched thread gets on."""
        self._beaten_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._beaten_s

    def _watch(self) -> None:
        while not self._done.wait(min(self._timeout_s / 4, 1.0)):
            if self.silent_s > self._timeout_s:
                stage = stage_of(sys._current_frames().get(self._watched))
                log.error("stage_hangs", stage=stage, seconds=round(self.silent_s, 1))
                notify(f"STATUS=hangs in {stage}; ending")
                faulthandler.dump_traceback(all_threads=True)
                self._end(EXIT_HUNG)
                return


def stage_of(frame: FrameType | None) -> str:
    """Which stage of the pipeline a thread is in, by the function of daemon/pipeline.py on its stack."""
    innermost = frame
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith("daemon/pipeline.py") and code.co_name != "process":
            return code.co_name.lstrip("_")
        frame = frame.f_back
    return innermost.f_code.co_name if innermost is not None else "unknown"
