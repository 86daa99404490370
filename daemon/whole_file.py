"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import MienError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it when all went well; else it is taken away again.

    Raises MienError where the folder cannot be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise MienError(f"{path}: is a folder; name a file to write")
        part.touch()
    except OSError as error:
        raise MienError(f"{path}: cannot be written ({error.strerror}); check the folder") from None
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
