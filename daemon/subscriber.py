"""Events in: a subscriber that notices what is lost, doubled, or begun anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import zmq

from engines.errors import MienError, UsageError

ALL_TOPICS = "mien/1/"


@dataclass(frozen=True, slots=True)
class Irregularity:
    """What a topic's numbers tell: `num_missing` events lost, one doubled, or the daemon restarted."""

    kind: Literal["gap", "duplicate", "restart"]
    topic: str
    num_missing: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """One event as plain JSON values, and what its number tells."""

    topic: str
    event: dict[str, Any]
    irregularity: Irregularity | None


class SequenceWatch:
    """Follows `seq` per instance and topic.

    The first event of a topic sets the count: whoever comes late lost nothing. An event sent again (`resent`)
    is no duplicate.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, int]] = {}

    def check(self, topic: str, event: dict[str, Any]) -> Irregularity | None:
        """What this event tells, given those before it."""
        key = (event["instance"], topic)
        epoch, seq = event["epoch"], event["seq"]
        last_epoch, last_seq = self._last.get(key, (epoch, seq - 1))
        if epoch != last_epoch:
            self._last[key] = (epoch, seq)
            return Irregularity("restart", topic, num_missing=seq)
        if seq <= last_seq:
            return None if event.get("resent") else Irregularity("duplicate", topic)
        self._last[key] = (epoch, seq)
        num_missing = seq - last_seq - 1
        return Irregularity("gap", topic, num_missing) if num_missing else None


class Subscriber:
    """Subscribed to `topics` (prefixes) at `endpoint`; use it as a context manager.

    Connecting succeeds whether or not a daemon is there yet. Raises UsageError for a malformed endpoint.
    """

    def __init__(self, endpoint: str, topics: Sequence[str] = (ALL_TOPICS,)) -> None:
        self._watch = SequenceWatch()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"{endpoint}: cannot be connected to ({error.strerror}); it looks like tcp://HOST:PORT or ipc://PATH"
            ) from None
        for topic in topics:
            self._socket.setsockopt_string(zmq.SUBSCRIBE, topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """The next event, or None where none came within `timeout_s` (None: wait for ever).

        Raises MienError for a message that is no event: then something else publishes there.
        """
        if not self._socket.poll(None if timeout_s is None else round(timeout_s * 1000)):
            return None
        topic, event = _decoded(self._socket.recv_multipart())
        return Received(topic, event, self._watch.check(topic, event))

    def __iter__(self) -> Iterator[Received]:
        while True:
            received = self.receive()
            assert received is not None
            yield received


def _decoded(parts: list[bytes]) -> tuple[str, dict[str, Any]]:
    try:
        topic, payload = parts
        event = msgspec.json.decode(payload, type=dict[str, Any])
        if {"schema", "instance", "epoch", "seq", "camera"} <= event.keys():
            return topic.decode(), event
    except (ValueError, msgspec.DecodeError):
        pass
    raise MienError("received a message that is no Mien event; check that the endpoint is a Mien daemon's")
