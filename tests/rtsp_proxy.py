"""A man in the middle of RTSP over TCP: passes on, damages packets, or holds all of them back."""

from __future__ import annotations

import random
import select
import socket
import threading
from contextlib import suppress

DOLLAR = 0x24
"""Begins a packet among the lines of RTSP (RFC 2326, 10.12): channel, length, payload."""

RTP_HEADER = 12


class RtspProxy:
    """Listens on a port of its own; use it as a context manager.

    damage: the share of video packets in which bytes are turned over. frozen: while set, nothing passes.
    """

    def __init__(self, server_port: int, damage: float = 0.0) -> None:
        self.damage = damage
        self.frozen = threading.Event()
        self.num_damaged = 0
        self._server_port = server_port
        self._random = random.Random(0)
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> RtspProxy:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Ends all connections."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._done.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                pump = threading.Thread(target=self._pump, args=(client, server))
                self._threads.append(pump)
                pump.start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        waiting = b""
        with client, server:
            while not self._done.is_set():
                if self.frozen.is_set():
                    self._done.wait(0.02)
                    continue
                ready, _, _ = select.select([client, server], [], [], 0.05)
                try:
                    for each in ready:
                        chunk = each.recv(65536)
                        if not chunk:
                            return
                        if each is client:
                            server.sendall(chunk)
                        else:
                            whole, waiting = self._packets(waiting + chunk)
                            client.sendall(whole)
                except OSError:
                    return

    def _packets(self, content: bytes) -> tuple[bytes, bytes]:
        """What can be passed on, some of it damaged, and the beginning of a packet that is not here yet."""
        passed = bytearray()
        while content:
            if content[0] != DOLLAR:
                end = content.find(b"$")
                end = len(content) if end < 0 else end
                passed += content[:end]
                content = content[end:]
                continue
            if len(content) < 4 or len(content) < (size := 4 + int.from_bytes(content[2:4], "big")):
                break
            passed += self._damaged(bytearray(content[:size]))
            content = content[size:]
        return bytes(passed), content

    def _damaged(self, packet: bytearray) -> bytearray:
        is_video = packet[1] % 2 == 0 and len(packet) > 4 + RTP_HEADER + 8
        if is_video and self._random.random() < self.damage:
            self.num_damaged += 1
            for _ in range(8):
                packet[self._random.randrange(4 + RTP_HEADER, len(packet))] = self._random.randrange(256)
        return packet
