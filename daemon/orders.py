"""Work that other threads want done in the main loop, between two batches."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from engines.errors import MienError

T = TypeVar("T")

PATIENCE_S = 15.0


class Orders:
    """A queue of calls; `wake` makes the main loop look."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def call(self, work: Callable[[], T], wake: Callable[[], None]) -> T:
        """Has `work` done in the main loop and gives its result, or raises what it raised.

        Raises MienError where the main loop does not get to it.
        """
        future: Future[T] = Future()
        self._waiting.put((work, future))
        wake()
        try:
            return future.result(PATIENCE_S)
        except TimeoutError:
            future.cancel()
            raise MienError("the daemon is busy or stopping and did not answer; try again") from None

    def run(self) -> None:
        """Called by the main loop. What a call raises goes to who gave it."""
        while not self._waiting.empty():
            work, future = self._waiting.get_nowait()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
