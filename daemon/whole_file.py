"""Files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.errors import MienError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it when all went well; else it is taken away again.

    What a process that was killed left behind is taken away by the next one that writes the same file. A device or a
    pipe, such as /dev/stdout, is written to itself. Raises MienError where the folder cannot be written to, or the
    disk is full.
    """
    if _is_device(path):
        with told_of(path):
            yield path
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise MienError(f"{path}: is a folder; name a file to write")
        _sweep(path)
        lock = _locked(part)
    except OSError as error:
        raise MienError(f"{path}: cannot be written ({error.strerror}); check the folder") from None
    try:
        with told_of(path):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


def _is_device(path: Path) -> bool:
    with suppress(OSError):
        link = path.is_symlink() and path.absolute().parts[1] in ("dev", "proc")  # /dev/stdout, be it a file
        return path.exists() and (link or not (path.is_file() or path.is_dir()))
    return False


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Within, a failure to write the file is told as a MienError that names it."""
    try:
        yield
    except OSError as error:
        words = f"cannot be written to its end ({error.strerror}); free some space or choose another disk"
        raise MienError(f"{path}: {words}") from None


def _locked(part: Path) -> int:
    """A new file, locked as long as the descriptor is open, so that a sweep leaves it alone."""
    while True:
        lock = os.open(part, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), part.stat()):
                return lock
        os.close(lock)  # swept away before it was locked


def _sweep(path: Path) -> None:
    """Takes away what killed processes left: their locks ended with them."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
