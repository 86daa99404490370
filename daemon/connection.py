"""The side of a connection that takes events: a watched socket, what an event is, and being refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from daemon.endpoints import is_ipv6
from daemon.keys import ClientCurve
from engines.errors import MienError, UsageError

ALL_TOPICS = "mien/1/"
MAX_EVENT_BYTES = 16 * 1024 * 1024
PING_MS = 5000
DEAD_AFTER_MS = 15_000
RECONNECT_MS = 100
RECONNECT_MAX_MS = 1000
MAX_HANG_UPS = 10
"""So often in a row a daemon may hang up while we greet it: one that stops does so once."""


class Header(msgspec.Struct, frozen=True):
    """What every event has, whatever later versions add."""

    schema: str
    instance: str
    epoch: int
    seq: int
    camera: str


def decoded(parts: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
    """Topic and event of a message; raises MienError for one that is no event."""
    try:
        topic, payload = parts[0].decode(), parts[1]
        event = msgspec.json.decode(payload, type=dict[str, Any])
        header = msgspec.convert(event, Header)
        kind = header.schema.removeprefix("mien.").partition("/")[0]
        if (
            len(parts) == 2
            and topic == f"mien/1/{header.camera}/{kind}"
            and min(header.epoch, header.seq) >= 0
        ):
            return topic, event
    except (ValueError, IndexError, RecursionError):
        pass
    raise MienError("received a message that is no Mien event; check that the endpoint is a Mien daemon's")


class WatchedSocket:
    """A socket connected to a daemon or relay, and its monitor, which tells of refusals.

    kind: zmq.SUB or zmq.XSUB. Connecting succeeds whether or not a daemon is there yet. Raises UsageError for a
    malformed endpoint.
    """

    def __init__(
        self, context: zmq.Context[Any], kind: int, endpoint: str, hwm: int, curve: ClientCurve | None
    ) -> None:
        self.endpoint = endpoint
        self._refusals = Refusals(endpoint)
        self.socket: Any = context.socket(kind)  # of asyncio or not, as its context is
        self.monitor: Any = self.socket.get_monitor_socket(Refusals.EVENTS)
        try:
            _set_up(self.socket, endpoint, hwm, curve)
            self.connect()
        except BaseException:
            self.close()
            raise

    def connect(self) -> None:
        """Connects, or does so again where ZeroMQ has given it up."""
        try:
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise UsageError(
                f"{self.endpoint}: cannot be connected to ({error.strerror});"
                " it looks like tcp://HOST:PORT or ipc://PATH"
            ) from None

    def refusal(self, message: list[bytes]) -> MienError | None:
        """What a message of the monitor means, where it is a refusal."""
        return self._refusals.told(message)

    def close(self) -> None:
        """Gives both sockets back; a second time does nothing."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(0)
            self.socket.close(0)


def _set_up(socket: zmq.Socket[Any], endpoint: str, hwm: int, curve: ClientCurve | None) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_EVENT_BYTES)
    # A daemon whose machine lost power is noticed, and connected to when it is back.
    socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_AFTER_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if curve is not None:
        curve.secure(socket)


class Refusals:
    """What a socket's monitor tells, as far as it is that the daemon wants nothing of us."""

    EVENTS = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
    )

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._num_hung_up = 0

    def told(self, message: list[bytes]) -> MienError | None:
        """The refusal that one message of the monitor means, or None."""
        event = parse_monitor_message(message)["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            words = "refused this key; put its .key file into the daemon's publish.allowed_clients"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            words = "does not speak as we do; is it encrypted, and this side is not, or conversely?"
        elif self._hung_up_again(event):
            words = (
                "hangs up on us each time; check that the server's key is this daemon's, and that it has one"
            )
        else:
            return None
        return MienError(f"{self._endpoint}: {words}")

    def _hung_up_again(self, event: int) -> bool:
        hung_up = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._num_hung_up = self._num_hung_up + 1 if hung_up else 0
        if self._num_hung_up < MAX_HANG_UPS:
            return False
        self._num_hung_up = 0
        return True
