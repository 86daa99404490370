"""Reading ahead in a thread of its own: a short queue in which nothing is lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetched(items: Iterable[T], size: int = 8) -> Iterator[Iterator[T]]:
    """Gives the items in order, up to `size` of them made ahead; an error is raised where the items end.

    Leaving early ends the thread with the item it is at.
    """
    waiting: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(size)
    stop = threading.Event()

    def put(entry: tuple[T] | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    def consume() -> Iterator[T]:
        while (entry := waiting.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]

    thread = threading.Thread(target=produce, name="read ahead", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
