"""The gallery as the pipeline sees it: always the newest state, read again only when it has changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import structlog

from daemon.gallery import Gallery
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from engines.errors import MienError

log = structlog.get_logger(__name__)


RETRY_S = 0.5
"""How long after a failure the gallery is left alone; a change is to be seen within a second."""


class GallerySource(Protocol):
    """Where the pipeline gets the enrolled people from."""

    def snapshot(self) -> GallerySnapshot:
        """The people of now; the same object as long as nothing has changed."""


class LiveGallery:
    """Follows a gallery file that other programs change, or that is yet to be made.

    People without a look of the embedder named `model` are warned of and left out. Raises MienError where the file
    is there and cannot be read, or holds nobody else.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        self._gallery: Gallery | None = None
        self._state: tuple[int, int] | None = None
        self._snapshot = EMPTY_SNAPSHOT
        self._left_out = ""
        self._told = ""
        self._again_s = 0.0
        self._refresh()
        if self._left_out and not self._snapshot.names:
            self.close()
            raise MienError(self._left_out)

    def snapshot(self) -> GallerySnapshot:
        """The people of now. A change that cannot be read is warned of once, and the people of before stay."""
        if time.monotonic() < self._again_s:
            return self._snapshot
        try:
            self._refresh()
            self._warn("people_left_out", self._left_out)
        except MienError as error:
            self.close()
            self._again_s = time.monotonic() + RETRY_S
            self._warn("gallery_not_read", str(error))
        return self._snapshot

    def close(self) -> None:
        """Closes the file; opened again it is read again: its version counts anew for each connection."""
        self._state = None
        if self._gallery is not None:
            self._gallery.close()
            self._gallery = None

    def _warn(self, event: str, detail: str) -> None:
        if detail and detail != self._told:
            log.warning(event, detail=detail)
        self._told = detail

    def _refresh(self) -> None:
        inode = self._inode()
        if inode is None:
            self.close()
            self._snapshot, self._left_out = EMPTY_SNAPSHOT, ""
            return
        if self._gallery is None or (self._state and self._state[0] != inode):
            self.close()
            self._gallery = Gallery(self._path)
        state = (inode, self._gallery.version())
        if state != self._state:
            self._snapshot = self._gallery.snapshot(self._model)
            self._left_out = self._gallery.left_out(self._model)
            self._state = state

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MienError(f"{self._path}: cannot be read ({error.strerror}); check its owner") from None
