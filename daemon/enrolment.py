"""From images of a person to looks in the gallery."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daemon.config import QualityConfig
from daemon.images import read_image
from daemon.looks import EnrolledLook, model_id
from daemon.paths import text_of
from daemon.records import Reason
from daemon.stills import find_faces, the_face
from engines.errors import MienError
from engines.runtime import FaceEngines
from engines.stages import embed_both_sides

REMEDIES: dict[Reason, str] = {
    "too_small": "the face is too small; give an image in which it is larger",
    "blurred": "the face is blurred; give a sharper image",
    "bad_light": "the face is too dark, too bright or too flat; give a better lit image",
}
"""What keeps an image from being enrolled. A tight crop or a turned head does not."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The looks of the images that can serve, and why the others cannot."""

    looks: tuple[EnrolledLook, ...]
    failures: tuple[MienError, ...]


def looks_of(
    engines: FaceEngines, images: Iterable[Path], quality: QualityConfig, *, any_quality: bool = False
) -> Looked:
    """Looks at images with one face each; one that cannot serve is reported, and the others go on.

    Raises MienError where no image can serve.
    """
    looks: list[EnrolledLook] = []
    failures: list[MienError] = []
    for path in images:
        try:
            looks.append(look_of(engines, path, quality, any_quality=any_quality))
        except MienError as error:
            failures.append(error)
    if not looks:
        raise MienError("\n".join(str(failure) for failure in failures))
    return Looked(tuple(looks), tuple(failures))


def look_of(
    engines: FaceEngines, path: Path, quality: QualityConfig, *, any_quality: bool = False
) -> EnrolledLook:
    """The look of the one face in an image; raises MienError where there is none, several, or a bad one."""
    if engines.embedder is None:
        raise MienError("enrolment needs an embedder; load the engines with one")
    image = read_image(path)
    faces = find_faces(engines, image, quality)
    face = the_face(faces)
    if not faces:
        raise MienError(f"{path}: shows no face; give an image with the person's face in it")
    if face is None:
        raise MienError(f"{path}: shows {len(faces)} faces; cut it to the one that is meant")
    bad = [remedy for reason, remedy in REMEDIES.items() if reason in face.quality.reasons]
    if bad and not any_quality:
        raise MienError(f"{path}: {bad[0]} (or enrol it all the same with --any-quality)")
    (embedding,) = embed_both_sides(engines.embedder, face.aligned_crop[None])
    return EnrolledLook(
        model=model_id(engines.embedder.spec),
        embedding=embedding.astype(np.float32),
        image=text_of(path.name),
        image_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        interocular_px=face.quality.interocular_px,
    )
