"""The other side of the control socket: `mien ctl`, and `mien gallery` where a daemon owns the file."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from daemon import control_requests as requests
from daemon.config import Config, default_state_dir
from daemon.control import MAX_LINE, default_paths
from daemon.control_requests import AnyRequest
from daemon.gallery_file import read_backup, write_backup
from daemon.looks import EnrolledLook, PersonSummary
from daemon.paths import stat_of
from engines.errors import MienError, UsageError

PATIENCE_S = 60.0
UNHURRIED = requests.Reload | requests.CameraAdd | requests.CameraRemove | requests.CameraRestart
"""May take minutes: engines are built for a new camera, and the others wait. A daemon that ends hangs up."""

SERVICE_FOLDER = Path("/run/mien")
"""Where the systemd unit's daemon listens."""


class NoDaemonError(MienError):
    """Nobody answers."""


class Control:
    """A connection to a daemon; use it as a context manager. Raises NoDaemonError where none answers at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NoDaemonError(_why(path, error)) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._lines.close()
        self._socket.close()

    def ask(self, request: AnyRequest) -> Any:
        """The result of a request; raises MienError or UsageError with the daemon's words where it refused."""
        line = msgspec.json.encode(request) + b"\n"
        if len(line) > MAX_LINE:
            raise UsageError(
                f"too much for the control socket ({len(line) / 2**20:.0f} MiB); stop the daemon first"
            )
        self._socket.settimeout(None if isinstance(request, UNHURRIED) else PATIENCE_S)
        try:
            self._socket.sendall(line)
            told = self._lines.readline()
        except TimeoutError:
            raise MienError(
                f"{self.path}: no answer in {PATIENCE_S:g} s; the daemon is busy or hangs; see its log"
            ) from None
        except OSError as error:
            raise MienError(f"{self.path}: the daemon went away ({error.strerror or error})") from None
        if not told:
            raise MienError(f"{self.path}: the daemon hung up; see its log")
        answer = msgspec.json.decode(told, type=requests.Answer)
        if not answer.ok:
            raise (UsageError if answer.exit_code == UsageError.exit_code else MienError)(answer.error)
        return answer.result


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: may not be used; run as root, as the daemon's user or as one of control.group"
    return f"{path}: no daemon answers there; start it with `mien run`, or name another config with --config"


def places(config: Config) -> list[Path]:
    """Where this configuration's daemon may listen, the likeliest first."""
    if config.control.path:
        return [config.control.path]
    return list(dict.fromkeys([*default_paths(config.instance), SERVICE_FOLDER / f"{config.instance}.sock"]))


def connected(config: Config) -> Control:
    """A connection to the configuration's daemon; raises NoDaemonError where it does not run."""
    failures = []
    for path in places(config):
        try:
            return Control(path)
        except NoDaemonError as error:
            failures.append((_is_there(path), error))
    # What is there and may not be used says more than what is not there.
    raise max(failures, key=lambda failure: failure[0])[1]


def _is_there(path: Path) -> bool:
    try:
        return stat_of(path) is not None
    except MienError:  # one may not look, so it may well be
        return True


def owner_of(config: Config, *, named: bool = False) -> Control | None:
    """The daemon that owns the configuration's gallery; None where none runs that does.

    named: the gallery was named on the command line, so that no other is meant.
    """
    try:
        control = connected(config)
    except NoDaemonError:
        return None
    path = config.gallery.path
    # The unit's daemon has its own state folder, so without a path of its own the config means that one.
    unnamed = not named and path == default_state_dir() / "gallery.sqlite"
    means_the_units = unnamed and control.path.parent == SERVICE_FOLDER
    try:
        if means_the_units or Path(control.ask(requests.Status())["gallery"]).resolve() == path.resolve():
            return control
    except MienError:
        pass
    control.close()
    return None


class RemoteGallery:
    """A gallery that a daemon owns, with the methods of `Gallery` that commands use."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.path = Path(control.ask(requests.Status())["gallery"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._control.close()

    def people(self) -> list[PersonSummary]:
        return msgspec.convert(self._control.ask(requests.GalleryPeople()), list[PersonSummary])

    def looks(self, name: str) -> list[EnrolledLook]:
        records = msgspec.convert(self._control.ask(requests.GalleryLooks(name)), list[requests.LookRecord])
        return [requests.look_of_record(record) for record in records]

    def enrol(self, name: str, looks: Sequence[EnrolledLook]) -> int:
        return int(
            self._control.ask(requests.GalleryEnrol(name, [requests.record_of(look) for look in looks]))
        )

    def remove(self, name: str) -> None:
        self._control.ask(requests.GalleryRemove(name))

    def backup(self, target: Path) -> int:
        write_backup(target, msgspec.convert(self._control.ask(requests.GalleryBackup()), bytes))
        return len(self.people())

    def restore(self, source: Path) -> int:
        return int(self._control.ask(requests.GalleryRestore(read_backup(source))))
