"""Events as JSON lines: the same input gives the same bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
from msgspec import UNSET

from daemon.records import Event, FacesEvent, encode, topic_of
from daemon.whole_file import told_of, whole_file
from engines.errors import MienError

REPLAY_INSTANCE = "replay"
REPLAY_EPOCH = 0


class JsonLines:
    """Writes events to a file that is there whole or not at all; a context manager.

    Numbered as a publisher would, without what differs from run to run: `published_at` and `latency_ms`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = whole_file(path)
        self._next_seq: Counter[str] = Counter()
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._file = self._whole.__enter__().open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with told_of(self._path):
                self._file.close()
        except MienError as failure:
            kind, error = type(failure), failure
            raise
        finally:
            self._whole.__exit__(kind, error, trace)

    def publish(self, event: Event) -> Event:
        """Stamps and writes an event; returns it as it was written."""
        topic = topic_of(event)
        stamped = msgspec.structs.replace(
            event, instance=REPLAY_INSTANCE, epoch=REPLAY_EPOCH, seq=self._next_seq[topic], published_at=UNSET
        )
        if isinstance(stamped, FacesEvent):
            stamped = msgspec.structs.replace(stamped, latency_ms=UNSET)
        self._next_seq[topic] += 1
        with told_of(self._path):
            self._file.write(encode(stamped) + b"\n")
        return stamped
