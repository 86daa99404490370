"""Events in: a subscriber that notices what is lost, doubled, or begun anew.

from daemon.subscriber import Subscriber

with Subscriber("tcp://127.0.0.1:5600") as events:
    for received in events:
        if received.irregularity:
            print("irregular:", received.irregularity)
        if received.event["schema"] == "mien.track/1":
            who = received.event.get("identity") or {}
            print(received.event["camera"], received.event["phase"], who.get("name"))
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

import zmq
import zmq.asyncio

from daemon.connection import ALL_TOPICS, WatchedSocket, decoded
from daemon.keys import ClientCurve
from daemon.sequence import Irregularity, Received, SequenceWatch

__all__ = ["AsyncSubscriber", "Irregularity", "Received", "SequenceWatch", "Subscriber"]


class _Deadline:
    """A moment `timeout_s` from now; None is never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_ms(self) -> int:
        """What is left, as ZeroMQ wants it: -1 is for ever."""
        return -1 if self._at_s is None else max(0, round((self._at_s - time.monotonic()) * 1000))


class _Subscription(WatchedSocket):
    """A subscribed socket in a context of its own, and a poller for it and its monitor."""

    def __init__(
        self,
        context: zmq.Context[Any],
        poller: zmq.Poller,
        endpoint: str,
        topics: Sequence[str],
        curve: ClientCurve | None,
        hwm: int,
    ) -> None:
        self._sequence = SequenceWatch()
        self._context = context
        super().__init__(context, zmq.SUB, endpoint, hwm, curve)
        for topic in topics:
            self.socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        for each in (self.socket, self.monitor):
            poller.register(each, zmq.POLLIN)

    def close(self) -> None:
        """Gives everything back; a second time does nothing."""
        super().close()
        self._context.term()

    def _received(self, parts: Sequence[bytes]) -> Received:
        topic, event = decoded(parts)
        return Received(topic, event, self._sequence.check(topic, event))

    def _raise_refusal(self, message: list[bytes]) -> None:
        refused = self.refusal(message)
        if refused is not None:
            raise refused


class Subscriber(_Subscription):
    """Subscribed to `topics` (prefixes) at `endpoint`; use it as a context manager.

    hwm: how many events wait for a slow reader; beyond that some are lost, and told as a gap. Connecting
    succeeds whether or not a daemon is there yet. Raises UsageError for a malformed endpoint.
    """

    def __init__(
        self,
        endpoint: str,
        topics: Sequence[str] = (ALL_TOPICS,),
        *,
        curve: ClientCurve | None = None,
        hwm: int = 1000,
    ) -> None:
        self._poller = zmq.Poller()
        super().__init__(zmq.Context(), self._poller, endpoint, topics, curve, hwm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """The next event, or None where none came within `timeout_s` (None: wait for ever).

        Raises MienError for a message that is no event, and where the daemon refuses us.
        """
        deadline = _Deadline(timeout_s)
        while ready := dict(self._poller.poll(deadline.left_ms)):
            if self.socket in ready:
                return self._received(self.socket.recv_multipart())
            self._raise_refusal(self.monitor.recv_multipart())
        return None

    def __iter__(self) -> Iterator[Received]:
        return self

    def __next__(self) -> Received:
        received = self.receive()
        assert received is not None, "without a time-out there is an event"
        return received


class AsyncSubscriber(_Subscription):
    """`Subscriber` for asyncio: `async with AsyncSubscriber(...) as events: async for received in events: ...`"""

    def __init__(
        self,
        endpoint: str,
        topics: Sequence[str] = (ALL_TOPICS,),
        *,
        curve: ClientCurve | None = None,
        hwm: int = 1000,
    ) -> None:
        self._poller = zmq.asyncio.Poller()
        super().__init__(zmq.asyncio.Context(), self._poller, endpoint, topics, curve, hwm)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    async def receive(self, timeout_s: float | None = None) -> Received | None:
        """The next event, or None where none came within `timeout_s` (None: wait for ever).

        Raises MienError for a message that is no event, and where the daemon refuses us.
        """
        deadline = _Deadline(timeout_s)
        while ready := dict(await self._poller.poll(deadline.left_ms)):
            if self.socket in ready:
                return self._received(await self.socket.recv_multipart())
            self._raise_refusal(await self.monitor.recv_multipart())
        return None

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        received = await self.receive()
        assert received is not None, "without a time-out there is an event"
        return received
