"""CURVE keys: made, read, and asked for, so that events leave the machine only encrypted and to friends.

A daemon or relay has a key pair and a folder with the public keys of those who may subscribe; a subscriber
has a key pair and the daemon's public key. Files are ZeroMQ certificates: NAME.key and NAME.key_secret.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import zmq
from zmq.auth import load_certificate
from zmq.auth.thread import ThreadAuthenticator

from engines.errors import MienError, UsageError

log = structlog.get_logger(__name__)

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
Z85_KEY = re.compile(rb"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
ZAP_DOMAIN = "mien"
MAX_REFUSED_TOLD = 1000
"""How many refused keys are remembered, so that each is logged once."""


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a subscriber shows, and whom it expects: all keys 40 bytes of Z85."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Sets a socket up; to be called before it connects."""
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret
        socket.curve_serverkey = self.server


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """A daemon's or relay's secret key, and the folder of those who may subscribe."""

    secret: bytes = field(repr=False)
    allowed: Path

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Sets a socket up; to be called before it binds, and after `guarded` was."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret
        socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        # Without this, ZeroMQ lets everybody in where nobody answers for the list.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def guarded(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """A thread that answers ZeroMQ who may come in; stop it before the context ends."""
        guard = ThreadAuthenticator(context)
        guard.start()
        guard.configure_curve_callback(ZAP_DOMAIN, AllowList(self.allowed))
        return guard


class AllowList:
    """The public keys in a folder, read at each connection: a key added or taken away counts at once.

    Who is connected stays so until they connect anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused: set[bytes] = set()
        self._unreadable: set[str] = set()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this public key may come in. Never raises: the guard's thread must go on."""
        try:
            allowed = key in self._keys()
        except OSError as error:
            log.error("allow_list_not_read", folder=str(self._folder), detail=str(error))
            return False
        if not allowed and key not in self._refused and len(self._refused) < MAX_REFUSED_TOLD:
            self._refused.add(key)
            log.warning("subscriber_refused", public_key=key.decode(), folder=str(self._folder))
        return allowed

    def _keys(self) -> set[bytes]:
        """The keys that can be read; each file that cannot is told of once. Raises OSError for the folder."""
        keys = set()
        for path in self._folder.iterdir():
            if path.suffix != ".key" or path.name.startswith("."):
                continue
            try:
                keys.add(public_key(path))
            except UsageError as error:
                if str(error) not in self._unreadable:
                    self._unreadable.add(str(error))
                    log.warning("allowed_key_not_read", detail=str(error))
        return keys


def new_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """Makes NAME.key and NAME.key_secret, both for their owner only, and tells where.

    Raises UsageError for a name that is no file name, MienError where a file is there already.
    """
    if not KEY_NAME.fullmatch(name):
        raise UsageError(f"{name!r}: no name for a key; take letters, digits, '-', '_' and '.'")
    public, secret = zmq.curve_keypair()
    files = folder / f"{name}.key", folder / f"{name}.key_secret"
    taken = next((path for path in files if path.exists()), None)
    if taken is not None:
        raise MienError(f"{taken}: exists already; choose another name, or delete both its files first")
    lines = ["metadata", f'    name = "{name}"', "curve", f'    public-key = "{public.decode()}"']
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(
            files[1],
            ["# Secret: never give this file away.", *lines, f'    secret-key = "{secret.decode()}"'],
        )
        _write(files[0], ["# Public: give this file to those who are to know you.", *lines])
    except OSError as error:
        raise MienError(
            f"{folder}: the keys cannot be written ({error.strerror}); check the folder"
        ) from None
    return files


def _write(path: Path, lines: list[str]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def load_server(key: Path | None, allowed: Path | None) -> ServerCurve | None:
    """The security of a daemon or relay; None where no key is named. Raises UsageError where it cannot be had."""
    if key is None:
        return None
    if allowed is None or not allowed.is_dir():
        found = "not given" if allowed is None else f"{allowed} is no folder"
        raise UsageError(
            f"{key}: needs a folder with the public keys of those who may subscribe, and that is {found}"
        )
    return ServerCurve(secret_key(key)[1], allowed)


def load_client(key: Path | None, server: Path | None) -> ClientCurve | None:
    """The security of a subscriber: its own secret file, and the daemon's public one. None where neither is named.

    Raises UsageError where only one is, or a file is not what it should be.
    """
    if key is None and server is None:
        return None
    if key is None or server is None:
        raise UsageError("a key of your own and the daemon's public key belong together; name both")
    public, secret = secret_key(key)
    return ClientCurve(public, secret, public_key(server))


def secret_key(path: Path) -> tuple[bytes, bytes]:
    """(public, secret) of a .key_secret file; raises UsageError where it is none, or all may read it."""
    public, secret = _loaded(path)
    if secret is None:
        raise UsageError(f"{path}: holds no secret key; name the .key_secret file that mien keys new made")
    if path.stat().st_mode & 0o007:
        raise UsageError(f"{path}: everybody may read it; chmod 600 {path}, or make new keys")
    return public, secret


def public_key(path: Path) -> bytes:
    """The public key of a .key or .key_secret file; raises UsageError where it is none."""
    return _loaded(path)[0]


def _loaded(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except OSError as error:
        detail = error.strerror or "no such file"
        raise UsageError(f"{path}: the key cannot be read ({detail}); mien keys new NAME makes one") from None
    except (ValueError, IndexError):
        raise UsageError(f"{path}: holds no CURVE key; mien keys new NAME makes one") from None
    for key in (public, secret):
        if key is not None and not Z85_KEY.fullmatch(key):
            raise UsageError(f"{path}: its key is damaged; copy the file again, or make new keys")
    return public, secret
