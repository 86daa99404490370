"""The control socket: a Unix socket, one JSON object a line, for the daemon's own user and root.

What is said through it: daemon/control_requests.py.
"""

from __future__ import annotations

import grp
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog

from daemon.config import Config, default_state_dir
from daemon.control_requests import Answer, AnyRequest
from engines.errors import MienError, UsageError

log = structlog.get_logger(__name__)

MAX_LINE = 64 * 2**20
"""Bytes of a request: a gallery to be restored fits in."""

PATIENCE_S = 30.0
MAX_CLIENTS = 16


def default_paths(instance: str) -> list[Path]:
    """Where a daemon of this name may listen: the unit's runtime folder, the user's, or among its data."""
    folders = [Path(folder) for folder in os.environ.get("RUNTIME_DIRECTORY", "").split(":") if folder]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime) / "mien")
    return [folder / f"{instance}.sock" for folder in [*folders, default_state_dir()]]


def open_control(
    config: Config, answer: Callable[[AnyRequest], Any], stack: ExitStack
) -> ControlServer | None:
    """The control socket, closed with `stack`; None where it is switched off, or its usual place is taken.

    Raises MienError where the place or the group that the configuration names cannot be had.
    """
    if not config.control.enabled:
        return None
    path = config.control.path or default_paths(config.instance)[0]
    try:
        return stack.enter_context(ControlServer(path, answer, config.control.group))
    except MienError as error:
        if config.control.path or config.control.group:
            raise
        log.warning("no_control_socket", detail=str(error))
        return None


class ControlServer:
    """Listens at `path` when made, in a thread; use it as a context manager.

    group: whose members may connect, too. Raises MienError where the socket cannot be had.
    """

    def __init__(self, path: Path, answer: Callable[[AnyRequest], Any], group: str | None = None) -> None:
        self.path = path
        self._answer = answer
        self._clear_the_way()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._server = _Server(str(path), self._handle, group)
        except (OSError, KeyError) as error:
            words = getattr(error, "strerror", None) or error
            raise MienError(
                f"{path}: cannot listen there ({words}); set control.path or control.group"
            ) from None
        self._inode = path.stat().st_ino
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="control", daemon=True
        )

    def _clear_the_way(self) -> None:
        """Takes away what a daemon that was killed left behind."""
        if not self.path.is_socket():
            return
        with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError, FileNotFoundError):
            probe.settimeout(1)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink(missing_ok=True)
                return
            except OSError as error:
                raise MienError(f"{self.path}: cannot be used ({error.strerror}); set control.path") from None
            raise MienError(f"{self.path}: another daemon answers there; give this one another `instance`")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def _handle(self, line: bytes, peer: str) -> bytes:
        try:
            request = msgspec.json.decode(line, type=AnyRequest)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            return _encoded(Answer(False, error=f"not a request: {error}", exit_code=UsageError.exit_code))
        what = str(request.__struct_config__.tag)
        try:
            result = self._answer(request)
            log.info("control", request=what, peer=peer)
            return _encoded(Answer(True, result))
        except MienError as error:
            log.info("control_refused", request=what, peer=peer, detail=str(error))
            return _encoded(Answer(False, error=str(error), exit_code=error.exit_code))
        except Exception:
            log.exception("control_failed", request=what, peer=peer)
            return _encoded(Answer(False, error="failed inside the daemon; see its log", exit_code=1))


def _encoded(answer: Answer) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread a client, at most MAX_CLIENTS; strangers are turned away."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, handle: Callable[[bytes, str], bytes], group: str | None) -> None:
        self.handle_line = handle
        self._group = None if group is None else grp.getgrnam(group).gr_gid
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(path, _Client)

    def server_bind(self) -> None:
        # The mode of the socket before it is bound is that of the file it makes, so nobody gets in between.
        os.fchmod(self.socket.fileno(), 0o600)
        super().server_bind()
        path = str(self.server_address)
        if self._group is not None:
            try:
                os.chown(path, -1, self._group)
                Path(path).chmod(0o660)
            except OSError:
                Path(path).unlink(missing_ok=True)
                raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        uid = peer_of(request)[1]
        # With a group, the file's mode has let in its members only.
        return uid in (0, os.geteuid()) or self._group is not None

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Client(socketserver.StreamRequestHandler):
    timeout = PATIENCE_S

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        pid, uid, _ = peer_of(self.connection)
        while line := self.rfile.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                self.wfile.write(_encoded(Answer(False, error="the request is too long", exit_code=2)))
                return
            self.wfile.write(server.handle_line(line, f"uid {uid}, pid {pid}"))


def peer_of(connection: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end, as the kernel knows them (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid, gid
