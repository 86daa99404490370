"""Many daemons as one endpoint: XSUB in, XPUB out, events passed on byte for byte.

The relay keeps the last status of every camera of every daemon itself and sends it to whoever subscribes, as
a daemon does. It subscribes to everything once, so what its own subscribers do is no load on the daemons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import structlog
import zmq

from daemon.connection import ALL_TOPICS, WatchedSocket, decoded
from daemon.keys import ClientCurve, ServerCurve
from daemon.publisher import SUBSCRIBE, PubSocket
from daemon.records import is_gone
from engines.errors import MienError

log = structlog.get_logger(__name__)

FORGET_AFTER_S = 60.0
"""A daemon not heard of for so long has its statuses forgotten; its heartbeat is far more frequent."""

RETRY_S = 2.0
"""How long after a refusal a daemon is asked again: ZeroMQ by itself gives up."""

MAX_INSTANCES = 1000
MAX_CAMERAS = 256
BATCH = 500
"""Events passed on before new subscribers are looked at."""

NUMBERED = ("/status", "/heartbeat")
"""Topics whose events the relay reads; it looks at the others' topic only."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A daemon, or another relay, to take events from."""

    endpoint: str
    curve: ClientCurve | None = None


@dataclass(slots=True)
class _Known:
    """A daemon: its epoch, when it was last heard of, and its last status by topic."""

    epoch: int
    heard_s: float
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)


class LastStatuses:
    """The last status by instance and topic. Times are on the monotonic clock, in seconds.

    Bounded: whoever invents instances or cameras makes the oldest forgotten.
    """

    def __init__(self) -> None:
        self._daemons: dict[str, _Known] = {}

    def hear(self, topic: str, event: dict[str, Any], now_s: float) -> None:
        """Takes a status or heartbeat in; a new epoch makes those of the old one void."""
        known = self._daemons.get(event["instance"])
        if known is None or known.epoch != event["epoch"]:
            known = self._daemons[event["instance"]] = _Known(event["epoch"], now_s)
            _trim(self._daemons, MAX_INSTANCES)
        known.heard_s = now_s
        if topic.endswith("/status"):
            known.statuses[topic] = event
            if is_gone(event.get("state"), event.get("reason")):
                del known.statuses[topic]
            _trim(known.statuses, MAX_CAMERAS)

    def forget_silent(self, now_s: float) -> list[str]:
        """The instances silent for FORGET_AFTER_S, which are now forgotten."""
        silent = [name for name, known in self._daemons.items() if now_s - known.heard_s > FORGET_AFTER_S]
        for name in silent:
            del self._daemons[name]
        return silent

    def of(self, prefixes: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
        """Topic and status, for the topics with one of these prefixes."""
        return [
            (topic, status)
            for known in self._daemons.values()
            for topic, status in known.statuses.items()
            if topic.startswith(prefixes)
        ]


def _trim(things: dict[str, Any], most: int) -> None:
    if len(things) > most:
        del things[next(iter(things))]


class Relay:
    """Binds `endpoint` when made, and raises as `PubSocket` does; use it as a context manager.

    Raises UsageError for a malformed upstream. An upstream that is not there yet is waited for.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        endpoint: str,
        *,
        hwm: int = 1000,
        curve: ServerCurve | None = None,
        allow_plaintext_beyond_loopback: bool = False,
    ) -> None:
        self.num_passed = 0
        self.num_malformed = 0
        self._statuses = LastStatuses()
        with ExitStack() as stack:
            self._out = PubSocket(
                endpoint, hwm, curve, allow_plaintext_beyond_loopback=allow_plaintext_beyond_loopback
            )
            stack.callback(self._out.close)
            context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
            self._links = [
                stack.enter_context(closing(_Link(context, upstream, hwm))) for upstream in upstreams
            ]
            self._resources = stack.pop_all()
        self.endpoint = self._out.endpoint
        self._poller = zmq.Poller()
        for socket in (self._out.socket, *(s for link in self._links for s in (link.socket, link.monitor))):
            self._poller.register(socket, zmq.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def run(self, stop: threading.Event, poll_s: float = 0.2) -> None:
        """Passes events on until `stop`."""
        log.info("relay_ready", endpoint=self.endpoint, upstreams=len(self._links))
        while not stop.is_set():
            self._poller.poll(round(poll_s * 1000))
            now_s = time.monotonic()
            for link in self._links:
                link.look_after(now_s)
                self._pass_on(link, now_s)
            self._answer_subscribers()
            for instance in self._statuses.forget_silent(now_s):
                log.warning("instance_silent", instance=instance, seconds=FORGET_AFTER_S)
        log.info("relay_stopped", passed=self.num_passed, malformed=self.num_malformed)

    def _pass_on(self, link: _Link, now_s: float) -> None:
        for _ in range(BATCH):
            parts = link.received()
            if parts is None:
                return
            try:
                topic = _topic(parts)
                if topic.endswith(NUMBERED):
                    self._statuses.hear(*decoded(parts), now_s)
            except MienError as error:
                self._tell_malformed(link.endpoint, error)
                continue
            self._out.send(topic, parts[1])
            self.num_passed += 1

    def _tell_malformed(self, endpoint: str, error: MienError) -> None:
        self.num_malformed += 1
        if self.num_malformed & (self.num_malformed - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...: never a flood
            log.warning("message_malformed", upstream=endpoint, detail=str(error), so_far=self.num_malformed)

    def _answer_subscribers(self) -> None:
        prefixes = tuple(self._out.new_subscriptions())
        if prefixes:
            for topic, status in self._statuses.of(prefixes):
                self._out.send(topic, msgspec.json.encode(status | {"resent": True}))


class _Link(WatchedSocket):
    """The connection to one upstream, begun anew where ZeroMQ has given it up."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], upstream: Upstream, hwm: int) -> None:
        self._retry_s: float | None = None
        self._told = ""
        super().__init__(context, zmq.XSUB, upstream.endpoint, hwm, upstream.curve)
        self.socket.send(bytes([SUBSCRIBE]) + ALL_TOPICS.encode())

    def received(self) -> list[bytes] | None:
        """The next message; None where none waits."""
        try:
            parts: list[bytes] = self.socket.recv_multipart(zmq.DONTWAIT)
            return parts
        except zmq.Again:
            return None

    def look_after(self, now_s: float) -> None:
        """Notices a refusal, tells of it once, and connects again after a while."""
        while self.monitor.poll(0):
            refused = self.refusal(self.monitor.recv_multipart())
            if refused is not None:
                self._retry_s = now_s + RETRY_S
                if self._told != str(refused):
                    self._told = str(refused)
                    log.warning("upstream_refused", upstream=self.endpoint, detail=self._told)
        if self._retry_s is not None and now_s >= self._retry_s:
            self._retry_s = None
            with suppress(zmq.ZMQError):  # ZeroMQ may have let it go by itself
                self.socket.disconnect(self.endpoint)
            self.connect()


def _topic(parts: Sequence[bytes]) -> str:
    try:
        topic = parts[0].decode()
    except UnicodeDecodeError:
        topic = ""
    if (
        len(parts) != 2
        or topic.count("/") != 3
        or not topic.startswith(ALL_TOPICS)
        or not topic.isprintable()
    ):
        raise MienError(
            "received a message that is no Mien event; check that the endpoint is a Mien daemon's"
        )
    return topic
