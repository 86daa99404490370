"""What lies at a path, also where a folder on the way may not be searched."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from engines.errors import MienError


def stat_of(path: Path) -> os.stat_result | None:
    """What is at a path; None where there is nothing.

    Raises MienError where that cannot be told, as in a folder one may not search.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        words = f"cannot be reached ({error.strerror}); check the permissions of the folders it lies in"
        raise MienError(f"{path}: {words}") from None


def text_of(path: Path | str) -> str:
    """A path as text that can be written anywhere: bytes of its name that are no UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False, too, where that cannot be told: opening it will say why."""
    with suppress(MienError):
        found = stat_of(path)
        return found is not None and stat.S_ISDIR(found.st_mode)
    return False
