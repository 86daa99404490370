"""The gallery as the pipeline sees it: always the newest state, read again only when it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from daemon.gallery import EMPTY_SNAPSHOT, Gallery, GallerySnapshot
from engines.errors import MienError

log = structlog.get_logger(__name__)


class GallerySource(Protocol):
    """Where the pipeline gets the enrolled people from."""

    def snapshot(self) -> GallerySnapshot:
        """The people of now; the same object as long as nothing has changed."""


class LiveGallery:
    """Follows a gallery file that other programs change, or that is yet to be made.

    Raises MienError where the file is there and cannot be used with the embedder named `model`.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        self._gallery: Gallery | None = None
        self._state: tuple[int, int] | None = None
        self._snapshot = EMPTY_SNAPSHOT
        self._refresh()

    def snapshot(self) -> GallerySnapshot:
        """The people of now. A change that cannot be used is warned of, and the people of before stay."""
        try:
            self._refresh()
        except MienError as error:
            log.warning("gallery_not_read", detail=str(error))
        return self._snapshot

    def close(self) -> None:
        """Closes the file."""
        if self._gallery is not None:
            self._gallery.close()
            self._gallery = None

    def _refresh(self) -> None:
        inode = self._inode()
        if inode is None:
            self.close()
            self._state, self._snapshot = None, EMPTY_SNAPSHOT
            return
        if self._gallery is None or (self._state and self._state[0] != inode):
            self.close()
            self._gallery = Gallery(self._path)
        state = (inode, self._gallery.version())
        if state != self._state:
            self._state = state
            self._snapshot = self._gallery.snapshot(self._model)

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MienError(f"{self._path}: cannot be read ({error.strerror}); check its owner") from None
