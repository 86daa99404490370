"""Events out: ZeroMQ XPUB, `[topic, payload]`, numbered without gaps.

A slow subscriber loses events beyond the high-water mark, sees it by `seq`, and slows nobody. Whoever
subscribes is sent the last status of every camera that was not removed; since XPUB cannot address one
subscriber, all that listen to the topic get it, marked `resent`. With CURVE keys, only those on the allow-list
are heard and spoken to. Not thread-safe: one thread publishes and answers.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Protocol, Self

import msgspec
import zmq

from daemon.config import PublishConfig
from daemon.endpoints import bind_failure, check_endpoint, is_ipv6
from daemon.keys import ServerCurve, load_server
from daemon.records import Event, StatusEvent, encode, is_gone, topic_of

LINGER_MS = 500
"""How long closing waits for the last events to leave."""

UNSUBSCRIBE, SUBSCRIBE = 0, 1
"""First byte of the message an XPUB socket receives when a subscription ends or begins."""

MAX_REQUEST_BYTES = 1024
"""A subscriber that sends a longer message is cut off."""

PING_MS = 5000
DEAD_AFTER_MS = 15_000
"""A peer that answers no ping for so long, as when its machine lost power, is let go with all kept for it."""


class EventSink(Protocol):
    """Where events go."""

    def publish(self, event: Event) -> Event:
        """Stamps and sends an event; returns it as it went out."""


def new_epoch() -> int:
    """A number that grows from start to start: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def open_publisher(config: PublishConfig, instance: str) -> Publisher:
    """The publisher that the configuration asks for; raises as `Publisher` does."""
    return Publisher(
        config.endpoint,
        instance=instance,
        hwm=config.hwm,
        curve=load_server(config.server_key, config.allowed_clients),
        allow_plaintext_beyond_loopback=config.allow_plaintext_beyond_loopback,
    )


class PubSocket:
    """A bound XPUB socket and who subscribes to it; `close` gives everything back.

    hwm: how many messages are kept for a slow subscriber. Raises UsageError for an endpoint beyond loopback in
    the clear that nobody allowed, MienError for one that is in use or cannot be bound. `endpoint` is the one
    bound, with the port that `:*` was given.
    """

    def __init__(
        self, endpoint: str, hwm: int, curve: ServerCurve | None, *, allow_plaintext_beyond_loopback: bool
    ) -> None:
        check_endpoint(
            endpoint,
            encrypted=curve is not None,
            allow_plaintext_beyond_loopback=allow_plaintext_beyond_loopback,
        )
        self._subscriptions: Counter[bytes] = Counter()
        with ExitStack() as stack:
            context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
            if curve is not None:
                stack.callback(curve.guarded(context).stop)
            self.socket = stack.enter_context(context.socket(zmq.XPUB))
            _set_up(self.socket, hwm)
            self.socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))
            if curve is not None:
                curve.secure(self.socket)
            try:
                self.socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise bind_failure(endpoint, error) from None
            self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Waits LINGER_MS at most for the last messages to leave."""
        self._resources.close()

    def send(self, topic: str, payload: bytes) -> None:
        """Never waits: a subscriber that cannot take it loses it."""
        self.socket.send_multipart([topic.encode(), payload], zmq.DONTWAIT)

    def new_subscriptions(self) -> list[str]:
        """The topic prefixes that were subscribed to since the last call."""
        begun = []
        while (message := self._received()) is not None:
            if message[:1] == bytes([SUBSCRIBE]):
                self._subscriptions[message[1:]] += 1
                begun.append(message[1:].decode(errors="replace"))
            elif message[:1] == bytes([UNSUBSCRIBE]):
                self._subscriptions -= Counter({message[1:]: 1})
        return begun

    @property
    def num_subscriptions(self) -> int:
        """How many live; a subscriber to two prefixes has two."""
        return self._subscriptions.total()

    def _received(self) -> bytes | None:
        try:
            return self.socket.recv_multipart(zmq.DONTWAIT)[0]
        except zmq.Again:
            return None


def _set_up(socket: zmq.Socket[bytes], hwm: int) -> None:
    socket.setsockopt(zmq.XPUB_VERBOSER, 1)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_AFTER_MS)


class Publisher:
    """Binds `endpoint` when made, and raises as `PubSocket` does; use it as a context manager."""

    def __init__(
        self,
        endpoint: str,
        *,
        instance: str,
        hwm: int = 1000,
        epoch: int | None = None,
        curve: ServerCurve | None = None,
        allow_plaintext_beyond_loopback: bool = False,
    ) -> None:
        self.instance = instance
        self.epoch = new_epoch() if epoch is None else epoch
        self._next_seq: Counter[str] = Counter()
        self._last_status: dict[str, StatusEvent] = {}
        self._socket = PubSocket(
            endpoint, hwm, curve, allow_plaintext_beyond_loopback=allow_plaintext_beyond_loopback
        )
        self.endpoint = self._socket.endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

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
            if is_gone(stamped.state, stamped.reason):
                del self._last_status[topic]
        self._socket.send(topic, encode(stamped))
        return stamped

    def answer_subscribers(self) -> int:
        """Sends the last statuses to those who subscribed since the last call; returns how many did.

        Each status goes out once, however many came: all who listen hear it.
        """
        prefixes = tuple(self._socket.new_subscriptions())
        for topic, status in self._last_status.items():
            if prefixes and topic.startswith(prefixes):
                self._socket.send(topic, encode(msgspec.structs.replace(status, resent=True)))
        return len(prefixes)

    @property
    def num_subscriptions(self) -> int:
        """How many live; a subscriber to two prefixes has two."""
        return self._socket.num_subscriptions
