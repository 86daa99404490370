"""Signals set an event, and nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: threading.Event, reload: threading.Event | None = None) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM sets `stop`; a second one ends the process at once.

    SIGHUP sets `reload`, where there is one.
    """
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    if reload is not None:
        signal.signal(signal.SIGHUP, lambda number, frame: reload.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
