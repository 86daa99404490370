"""One builder at a time for each engine: a lock that the kernel releases when its holder dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import MienError


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Holds the lock of an engine's folder, waiting for another builder to finish.

    Raises MienError where the cache cannot be written.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise MienError(
            f"{folder.parent}: cannot keep engines there ({error.strerror}); "
            "set engines.cache_dir or MIEN_CACHE to a folder that can be written"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
