"""Word to systemd: ready, alive, stopping. Silent where the daemon was not started by it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Sends `state`, such as `READY=1`, to the socket systemd named (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading "@" stands for the zero byte of Linux' abstract sockets.
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A full queue or a socket that is gone must not hold the daemon up; the next word comes soon.
        sender.setblocking(False)
        with suppress(OSError):
            sender.sendto(state.encode(), target)


def watchdog_interval_s() -> float | None:
    """How often systemd wants to hear that the daemon lives: half of its time-out; None where it does not."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
