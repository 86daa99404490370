"""Why nobody was named: on a picture, looked at anew, or on a track, by the events that were told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.config import Config, IdentityConfig, QualityConfig
from daemon.identity import Match, judged, match, threshold_of, without_doubles
from daemon.images import read_image
from daemon.looks import GallerySnapshot
from daemon.paths import text_of
from daemon.quality import INNER, interocular, sharpness, yaw
from daemon.records import Identity, Reason
from daemon.stills import StillFace, find_faces
from engines.runtime import FaceEngines
from engines.stages import embed_both_sides

Image = NDArray[np.uint8]

FAINT_SCORE = 0.1
"""What scores less is not even worth telling of as a face that nearly was found."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that stands against a name. `setting` is the key of the configuration that decides."""

    code: str
    words: str
    value: float | None = None
    needed: float | None = None
    setting: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What can be said of one face, track or picture. `nearest` is the most similar person, named or not."""

    subject: str
    name: str | None = None
    nearest: str | None = None
    similarity: float | None = None
    margin: float | None = None
    threshold: float | None = None
    causes: tuple[Cause, ...] = ()


def explain_image(
    engines: FaceEngines, config: Config, people: GallerySnapshot, path: Path
) -> list[Explanation]:
    """One explanation a face, largest first; one of the picture where it shows none.

    Raises MienError where the picture cannot be read.
    """
    image = read_image(path)
    faces = find_faces(engines, image, config.quality)
    if not faces:
        return [Explanation(text_of(path), causes=(_no_face(engines, config, image),))]
    assert engines.embedder is not None, "explaining needs an embedder"
    threshold = threshold_of(config.identity, engines.embedder.spec)
    embeddings = embed_both_sides(engines.embedder, np.stack([face.aligned_crop for face in faces]))
    matches = [match(people, embedding) for embedding in embeddings]
    judgements = [judged(found, threshold, config.identity.min_margin) for found in matches]
    settled = without_doubles(
        [each for each, face in zip(judgements, faces, strict=True) if face.quality.usable]
    )
    usable = iter(settled)
    return [
        _of_face(number, face, found, threshold, next(usable) if face.quality.usable else None, config)
        for number, (face, found) in enumerate(zip(faces, matches, strict=True), 1)
    ]


def _no_face(engines: FaceEngines, config: Config, image: Image) -> Cause:
    needed = engines.detector.spec.threshold or 0.5
    faint = find_faces(engines, image, config.quality, min_score=FAINT_SCORE)
    if not faint:
        return Cause("no_face", "no face was found, not even a faint one", needed=needed)
    best = max(face.score for face in faint)
    words = f"no face was found: the most likely place scores {best:.2f}, {needed:.2f} is needed"
    return Cause("no_face", words, round(best, 4), needed)


def _of_face(
    number: int,
    face: StillFace,
    found: Match,
    threshold: float,
    identity: Identity | None,
    config: Config,
) -> Explanation:
    x1, y1, x2, y2 = (round(float(value)) for value in face.box_xyxy)
    causes = quality_causes(face, config.quality)
    if identity is None or identity.name is None:
        causes += identity_causes(found.name, found.similarity, found.margin, threshold, config.identity)
    if identity is not None and identity.status == "undecided":
        causes += (taken(found.name),)
    return Explanation(
        subject=f"face {number} at {x1},{y1} to {x2},{y2}",
        name=identity.name if identity else None,
        nearest=found.name,
        similarity=_rounded(found.similarity),
        margin=_rounded(found.margin),
        threshold=_rounded(threshold),
        causes=causes,
    )


def taken(name: str | None) -> Cause:
    """Nobody is in two places: the name went to a more similar face of the same frame."""
    who = name or "the most similar person"
    return Cause("taken", f"another face in the same frame is more similar to {who}")


def identity_causes(
    nearest: str | None,
    similarity: float | None,
    margin: float | None,
    threshold: float,
    settings: IdentityConfig,
) -> tuple[Cause, ...]:
    """What the similarities say against a name."""
    if similarity is None:
        words = "nobody is enrolled with this embedder: mien gallery enroll NAME IMAGE..."
        return (Cause("nobody_enrolled", words, setting="gallery.path"),)
    who = f"to {nearest}" if nearest else "to the nearest person"
    causes = []
    if similarity < threshold:
        short = threshold - similarity
        words = f"similarity {who} is {similarity:.3f}, {short:.3f} below the threshold of {threshold:.3f}"
        causes.append(_cause("below_threshold", words, similarity, threshold, "identity.threshold"))
    if margin is not None and margin < settings.min_margin:
        words = f"the lead over the second person is {margin:.3f}, {settings.min_margin:.3f} is needed"
        causes.append(_cause("small_margin", words, margin, settings.min_margin, "identity.min_margin"))
    return tuple(causes)


def quality_causes(face: StillFace, settings: QualityConfig) -> tuple[Cause, ...]:
    """The measurements of a face that fail the gate, with their limits."""
    return tuple(_quality_cause(reason, face, settings) for reason in face.quality.reasons)


def _quality_cause(reason: Reason, face: StillFace, settings: QualityConfig) -> Cause:
    if reason == "too_small":
        value, needed = interocular(face.landmarks), settings.min_interocular_px
        words = f"too small: the eyes are {value:.1f} px apart, {needed:g} are needed"
        return _cause(reason, words, value, needed, "quality.min_interocular_px")
    if reason == "blurred":
        value, needed = sharpness(_grey(face)), settings.min_sharpness
        words = f"blurred: sharpness is {value:.3f}, {needed:g} is needed"
        return _cause(reason, words, value, needed, "quality.min_sharpness")
    if reason == "averted":
        value, needed = yaw(face.landmarks), settings.max_yaw
        words = f"averted: turned by {value:.2f} (0 is frontal, 1 the nose over an eye), {needed:g} at most"
        return _cause(reason, words, value, needed, "quality.max_yaw")
    if reason == "bad_light":
        return _light_cause(face, settings)
    if reason == "low_score":
        words = f"the detector is unsure: score {face.score:.2f}, {settings.min_score:g} is needed"
        return _cause(reason, words, face.score, settings.min_score, "quality.min_score")
    return Cause(reason, "cut off: the face reaches the edge of the picture")


def _light_cause(face: StillFace, settings: QualityConfig) -> Cause:
    grey = _grey(face) / 255
    brightness, contrast = float(grey.mean()), float(grey.std())
    if brightness < settings.min_brightness:
        words = f"too dark: brightness is {brightness:.2f}, {settings.min_brightness:g} is needed"
        return _cause("bad_light", words, brightness, settings.min_brightness, "quality.min_brightness")
    if brightness > settings.max_brightness:
        words = f"too bright: brightness is {brightness:.2f}, {settings.max_brightness:g} at most"
        return _cause("bad_light", words, brightness, settings.max_brightness, "quality.max_brightness")
    words = f"too little contrast: {contrast:.3f}, {settings.min_contrast:g} is needed"
    return _cause("bad_light", words, contrast, settings.min_contrast, "quality.min_contrast")


def _grey(face: StillFace) -> NDArray[np.float32]:
    return cv2.cvtColor(face.aligned_crop, cv2.COLOR_BGR2GRAY)[INNER, INNER].astype(np.float32)


def _cause(code: str, words: str, value: float, needed: float, setting: str) -> Cause:
    return Cause(code, words, round(value, 4), round(needed, 4), setting)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def in_lines(explanations: Sequence[Explanation]) -> list[str]:
    """Plain lines for people."""
    lines = []
    for each in explanations:
        if each.name is not None:
            lines.append(
                f"{each.subject}: {each.name}, similarity {each.similarity:.3f}, threshold {each.threshold:.3f}"
            )
            continue
        lines.append(f"{each.subject}: not named")
        for cause in each.causes:
            hint = f" ({cause.setting})" if cause.setting else ""
            lines.append(f"  - {cause.words}{hint}")
    return lines
