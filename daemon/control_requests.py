"""What is said through the control socket: requests, and the answer to each.

A request is a line such as `{"do": "status"}`; the answer is `{"ok": true, "result": ...}` or
`{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from daemon.looks import EnrolledLook
from engines.errors import UsageError

UNIT_TOLERANCE = 0.01


class Request(msgspec.Struct, tag_field="do", forbid_unknown_fields=True):
    """What can be asked."""


class Status(Request, tag="status"):
    """How the daemon and its cameras are."""


class Reload(Request, tag="reload"):
    """Read the configuration again."""


class CameraAdd(Request, tag="camera_add"):
    """settings: those of an entry under `cameras:`."""

    settings: dict[str, Any]


class CameraRemove(Request, tag="camera_remove"):
    """Read a camera no longer."""

    name: str


class CameraRestart(Request, tag="camera_restart"):
    """Connect a camera anew."""

    name: str


class LookRecord(msgspec.Struct, forbid_unknown_fields=True):
    """An enrolled image on its way. embedding: little-endian float32, in base64."""

    model: str
    embedding: bytes
    image: str
    image_sha256: str
    interocular_px: float
    enrolled_at: str = ""


class GalleryPeople(Request, tag="gallery_people"):
    """Everybody."""


class GalleryLooks(Request, tag="gallery_looks"):
    """One person's images."""

    name: str


class GalleryEnrol(Request, tag="gallery_enrol"):
    """More images of a person, new or not."""

    name: str
    looks: list[LookRecord]


class GalleryRemove(Request, tag="gallery_remove"):
    """Erase a person."""

    name: str


class GalleryCheck(Request, tag="gallery_check"):
    """Whether the gallery's file is damaged."""


class GalleryBackup(Request, tag="gallery_backup"):
    """The whole gallery as the bytes of a file."""


class GalleryRestore(Request, tag="gallery_restore"):
    """Another file's people in place of those of now."""

    content: bytes


AnyRequest = (
    Status
    | Reload
    | CameraAdd
    | CameraRemove
    | CameraRestart
    | GalleryPeople
    | GalleryLooks
    | GalleryEnrol
    | GalleryRemove
    | GalleryCheck
    | GalleryBackup
    | GalleryRestore
)


class Answer(msgspec.Struct, omit_defaults=True):
    """What came of a request; exit_code is that of the command line."""

    ok: bool
    result: Any = None
    error: str | None = None
    exit_code: int = 0


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
