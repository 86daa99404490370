"""Events out: ZeroMQ XPUB, `[topic, payload]`, numbered without gaps.

A slow subscriber loses events beyond the high-water mark, sees it by `seq`, and slows nobody. Whoever
subscribes is sent the last status of every camera; since XPUB cannot address one subscriber, all that listen
to the topic get it, marked `resent`. Not thread-safe: one thread publishes and answers.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

import msgspec
import zmq

from daemon.endpoints import bind_failure, check_endpoint
from daemon.records import Event, StatusEvent, encode, topic_of

LINGER_MS = 500
"""How long closing waits for the last events to leave."""

SUBSCRIBE = 1
"""First byte of the message an XPUB socket receives for a subscription."""


class EventSink(Protocol):
    """Where events go."""

    def publish(self, event: Event) -> Event:
        """Stamps and sends an event; returns it as it went out."""


def new_epoch() -> int:
    """A number that grows from start to start: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Publisher:
    """Binds `endpoint` when made; use it as a context manager.

    Raises UsageError for an endpoint beyond loopback that the configuration does not allow, MienError for one
    that is in use or cannot be bound. `endpoint` is then the one bound, with the port that `:*` was given.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        instance: str,
        hwm: int = 1000,
        epoch: int | None = None,
        allow_plaintext_beyond_loopback: bool = False,
    ) -> None:
        check_endpoint(endpoint, allow_plaintext_beyond_loopback=allow_plaintext_beyond_loopback)
        self.instance = instance
        self.epoch = new_epoch() if epoch is None else epoch
        self._next_seq: Counter[str] = Counter()
        self._last_status: dict[str, StatusEvent] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._bound(endpoint, hwm)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _bound(self, endpoint: str, hwm: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        socket.setsockopt(zmq.SNDHWM, hwm)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            self._context.term()
            raise bind_failure(endpoint, error) from None
        return socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._context.term()

    def publish(self, event: Event) -> Event:
        """Stamps an event with instance, epoch, seq and time, sends it, and returns it as it went out."""
        topic = topic_of(event)
        stamped = msgspec.structs.replace(
            event,
            instance=self.instance,
            epoch=self.epoch,
            seq=self._next_seq[topic],
            published_at=datetime.now(UTC),
        )
        self._next_seq[topic] += 1
        if isinstance(stamped, StatusEvent):
            self._last_status[topic] = stamped
        self._send(topic, stamped)
        return stamped

    def answer_subscribers(self) -> int:
        """Sends the last statuses to those who subscribed since the last call; returns how many did."""
        num_new = 0
        while (message := self._received()) is not None:
            if not message or message[0] != SUBSCRIBE:
                continue
            num_new += 1
            prefix = message[1:].decode(errors="replace")
            for topic, status in self._last_status.items():
                if topic.startswith(prefix):
                    self._send(topic, msgspec.structs.replace(status, resent=True))
        return num_new

    def _received(self) -> bytes | None:
        try:
            return self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def _send(self, topic: str, event: Event) -> None:
        self._socket.send_multipart([topic.encode(), encode(event)], zmq.DONTWAIT)
