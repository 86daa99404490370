"""Endpoints events are published at: which are safe, and words for why one cannot be had."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

import zmq

from engines.errors import MienError, UsageError

EVERYWHERE = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""What stands for all addresses of a machine, and the loopback address among them."""


def check_endpoint(
    endpoint: str, *, encrypted: bool = False, allow_plaintext_beyond_loopback: bool = False
) -> None:
    """Raises UsageError where events would leave the machine in the clear, MienError for an ipc in use."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp" and not (encrypted or allow_plaintext_beyond_loopback or _is_loopback(address)):
        raise UsageError(
            f"{endpoint}: would send faces and names over the network in the clear; bind to 127.0.0.1, encrypt "
            "with publish.server_key (mien keys new), or set publish.allow_plaintext_beyond_loopback: true"
        )
    # ZeroMQ takes an ipc socket over from the process that has it, without a word.
    if scheme == "ipc" and not address.startswith("@") and _has_listener(Path(address)):
        raise in_use(endpoint)


def is_ipv6(endpoint: str) -> bool:
    """Whether the address is one of IPv6, which ZeroMQ must be told of."""
    return endpoint.startswith("tcp://[")


def from_here(endpoint: str) -> str:
    """Where this machine's own subscribers reach what is bound there, which may be all of its addresses."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    return f"tcp://{EVERYWHERE[host]}:{port}" if scheme == "tcp" and host in EVERYWHERE else endpoint


def bind_failure(endpoint: str, error: zmq.ZMQError) -> MienError:
    """The words for a bind that ZeroMQ refused."""
    if error.errno == zmq.EADDRINUSE:
        return in_use(endpoint)
    if error.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return MienError(f"{endpoint}: this machine has no such address; use 127.0.0.1 or one of its own")
    return MienError(f"{endpoint}: cannot be bound ({error.strerror}); check publish.endpoint")


def in_use(endpoint: str) -> MienError:
    """Somebody else listens there."""
    return MienError(f"{endpoint}: already in use; stop the other daemon, or set another publish.endpoint")


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_listener(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
