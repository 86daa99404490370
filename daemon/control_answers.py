"""The daemon's side of the control socket: each request and what is done for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from daemon.config import Config
from daemon.control import (
    AnyRequest,
    CameraAdd,
    CameraRemove,
    CameraRestart,
    GalleryBackup,
    GalleryEnrol,
    GalleryLooks,
    GalleryPeople,
    GalleryRemove,
    GalleryRestore,
    LookRecord,
    Reload,
    Status,
)
from daemon.gallery import EnrolledLook, Gallery
from daemon.steering import Steering
from engines.errors import MienError, UsageError

UNIT_TOLERANCE = 0.01


class ControlAnswers:
    """Answers requests, from the control socket's threads."""

    def __init__(self, config: Config, steering: Steering, status: Callable[[], dict[str, Any]]) -> None:
        self._gallery_path = config.gallery.path
        self._steering = steering
        self._status = status

    def answer(self, request: AnyRequest) -> Any:
        """What the client is told; raises MienError for what cannot be done."""
        match request:
            case Status():
                return self._status() | {"people": self._num_people()}
            case Reload():
                return asdict(self._steering.reload())
            case CameraAdd(settings):
                return self._steering.add(settings)
            case CameraRemove(name):
                return self._steering.remove(name)
            case CameraRestart(name):
                return self._steering.restart(name)
        return self._of_gallery(request)

    def _num_people(self) -> int | None:
        if not self._gallery_path.exists():
            return 0
        try:
            with Gallery(self._gallery_path) as gallery:
                return len(gallery.people())
        except MienError:
            return None

    def _of_gallery(self, request: AnyRequest) -> Any:
        with Gallery(self._gallery_path) as gallery:
            match request:
                case GalleryPeople():
                    return [asdict(person) for person in gallery.people()]
                case GalleryLooks(name):
                    return [record_of(look) for look in gallery.looks(name)]
                case GalleryEnrol(name, looks):
                    return gallery.enrol(name, [look_of_record(each) for each in looks])
                case GalleryRemove(name):
                    return gallery.remove(name)
                case GalleryBackup():
                    return gallery.content()
                case GalleryRestore(content):
                    return _restored(gallery, content)
        raise UsageError("this daemon does not know the request; it is older than the command")


def _restored(gallery: Gallery, content: bytes) -> int:
    with tempfile.TemporaryDirectory(dir=gallery.path.parent, prefix=".restore-") as folder:
        path = Path(folder) / "gallery.sqlite"
        path.write_bytes(content)
        return gallery.restore(path)


def record_of(look: EnrolledLook) -> LookRecord:
    """A look as it travels."""
    return LookRecord(
        model=look.model,
        embedding=look.embedding.astype("<f4").tobytes(),
        image=look.image,
        image_sha256=look.image_sha256,
        interocular_px=look.interocular_px,
        enrolled_at=look.enrolled_at,
    )


def look_of_record(record: LookRecord) -> EnrolledLook:
    """A look that travelled; raises UsageError where its embedding is none."""
    if not record.embedding or len(record.embedding) % 4:
        raise UsageError(f"{record.image!r}: its embedding is no row of float32")
    embedding = np.frombuffer(record.embedding, "<f4")
    if not abs(float(np.linalg.norm(embedding.astype(np.float64))) - 1) < UNIT_TOLERANCE:
        raise UsageError(f"{record.image!r}: its embedding is no unit vector")
    return EnrolledLook(embedding=embedding, **_others(record))


def _others(record: LookRecord) -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(record).items() if key != "embedding"}
