"""Stills to JSON: one entry an image, with its faces or with why it could not be read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from numpy.typing import NDArray

from daemon.attributes import AttributeFields, attribute_fields
from daemon.config import CameraConfig, IdentityConfig, QualityConfig
from daemon.face_events import embedding_record
from daemon.identity import judged, match, threshold_of, undecided, without_doubles
from daemon.images import read_image
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.paths import text_of
from daemon.records import (
    Box,
    Emotion,
    EmotionName,
    Gender,
    Identity,
    Landmarks,
    Quality,
    Score,
    box_record,
    landmarks_record,
    round_score,
)
from daemon.stills import StillFace, find_faces
from daemon.whole_file import whole_file
from engines.errors import MienError
from engines.geometry import Image, attribute_crop
from engines.runtime import FaceEngines
from engines.stages import classify_both_sides, embed_both_sides

Floats = NDArray[np.float32]


class AnalyzedFace(Struct, frozen=True, kw_only=True):
    """One face of a still: a `Face` of the event contract without what only a track has."""

    box_xyxy: Box
    score: Score
    landmarks: Landmarks
    quality: Quality
    identity: Identity | UnsetType = UNSET
    age: float | UnsetType | None = UNSET
    gender: Gender | UnsetType | None = UNSET
    gender_score: Score | UnsetType | None = UNSET
    max_emotion: EmotionName | UnsetType | None = UNSET
    emotion: Emotion | UnsetType | None = UNSET
    embedding: tuple[float, ...] | UnsetType = UNSET


class AnalyzedImage(Struct, frozen=True, kw_only=True):
    """One image: its size and faces, largest first, or the error that kept it from being read."""

    path: str
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    faces: tuple[AnalyzedFace, ...] | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Analysis(Struct, frozen=True, kw_only=True, tag_field="schema", tag="mien.analysis/1"):
    """What `mien analyze` writes as one document; with --jsonl, its images are a line each."""

    images: tuple[AnalyzedImage, ...]


@dataclass(frozen=True, slots=True)
class Analyst:
    """Reads stills. `people` may be empty: then nobody is named.

    Raises MienError where the attributes engine was not trained on crops of faces.
    """

    engines: FaceEngines
    quality: QualityConfig
    identity: IdentityConfig
    people: GallerySnapshot = EMPTY_SNAPSHOT
    embeddings: bool = False
    min_score: float | None = None
    switches: CameraConfig = field(default_factory=lambda: CameraConfig(name="stills", source="stills"))

    def __post_init__(self) -> None:
        if self.engines.attributes is not None:
            self.engines.attributes.spec.check_aligned()

    def image(self, path: Path) -> AnalyzedImage:
        """The entry of one image; one that cannot be read is told of in it."""
        try:
            image = read_image(path)
        except MienError as error:
            words = str(error).removeprefix(f"{path}: ")
            return AnalyzedImage(path=text_of(path), error=text_of(words))
        faces = find_faces(self.engines, image, self.quality, min_score=self.min_score)
        height, width = image.shape[:2]
        described = self._described(image, faces)
        return AnalyzedImage(path=text_of(path), width=width, height=height, faces=described)

    def _described(self, image: Image, faces: Sequence[StillFace]) -> tuple[AnalyzedFace, ...]:
        if not faces:
            return ()
        embeddings = self._embeddings(faces)
        identities = self._identities(faces, embeddings)
        attributes = self._attributes(image, faces)
        return tuple(
            AnalyzedFace(
                box_xyxy=box_record(face.box_xyxy),
                score=round_score(face.score),
                landmarks=landmarks_record(face.landmarks),
                quality=face.quality,
                identity=identity,
                age=known.age,
                gender=known.gender,
                gender_score=known.gender_score,
                max_emotion=known.max_emotion,
                emotion=known.emotion,
                embedding=embedding_record(embedding) if self.embeddings and embedding is not None else UNSET,
            )
            for face, embedding, identity, known in zip(
                faces, embeddings, identities, attributes, strict=True
            )
        )

    def _embeddings(self, faces: Sequence[StillFace]) -> list[Floats | None]:
        if self.engines.embedder is None or not (self.embeddings or self.people.names):
            return [None] * len(faces)
        return list(embed_both_sides(self.engines.embedder, np.stack([face.aligned_crop for face in faces])))

    def _identities(
        self, faces: Sequence[StillFace], embeddings: Sequence[Floats | None]
    ) -> Sequence[Identity | UnsetType]:
        if not self.people.names or self.engines.embedder is None:
            return [UNSET] * len(faces)
        threshold = threshold_of(self.identity, self.engines.embedder.spec)
        voted = []
        for face, embedding in zip(faces, embeddings, strict=True):
            if embedding is None or not face.quality.usable:
                voted.append(undecided(threshold))
            else:
                voted.append(judged(match(self.people, embedding), threshold, self.identity.min_margin))
        return without_doubles(voted)

    def _attributes(self, image: Image, faces: Sequence[StillFace]) -> list[AttributeFields]:
        engine = self.engines.attributes
        if engine is None:
            return [AttributeFields()] * len(faces)
        size, room = engine.input_size[0], engine.spec.room
        crops = [attribute_crop(image, face.landmarks, size, room) for face in faces]
        scores = classify_both_sides(engine, np.stack(crops))
        return [
            attribute_fields(self.switches, float(age), float(female), emotion)
            for age, female, emotion in zip(scores.age_years, scores.female, scores.emotion, strict=True)
        ]


def write_analysis(entries: Iterable[AnalyzedImage], out: Path | None, *, lines: bool) -> list[str]:
    """Writes entries as they come, a line each, or all as one document; to standard output without `out`.

    Returns the errors of the images that could not be read.
    """
    with ExitStack() as stack:
        stream: BinaryIO = sys.stdout.buffer
        if out is not None:
            stream = stack.enter_context(stack.enter_context(whole_file(out)).open("wb"))
        return _write(entries, stream, lines)


def _write(entries: Iterable[AnalyzedImage], stream: BinaryIO, lines: bool) -> list[str]:
    kept: list[AnalyzedImage] = []
    errors: list[str] = []
    for entry in entries:
        if not isinstance(entry.error, UnsetType):
            errors.append(f"{entry.path}: {entry.error}")
        if lines:
            stream.write(msgspec.json.encode(entry) + b"\n")
            stream.flush()
        else:
            kept.append(entry)
    if not lines:
        document = msgspec.json.encode(Analysis(images=tuple(kept)))
        stream.write(msgspec.json.format(document, indent=2) + b"\n")
        stream.flush()
    return errors
