"""Records of the contract, built once and complete from what the pipeline found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from daemon.attributes import AttributeFields
from daemon.config import CameraConfig, PublishConfig
from daemon.followed import Followed, Look
from daemon.records import (
    Face,
    FacesEvent,
    Frame,
    FrameRecord,
    Identity,
    Phase,
    TrackEvent,
    box_record,
    landmarks_record,
    round_ms,
    round_score,
)

EMBEDDING_DIGITS = 5


def faces_event(
    frame: Frame,
    camera: CameraConfig,
    looks: Sequence[Look],
    identities: Sequence[Identity | None],
    dropped: int,
    latency_ms: dict[str, float] | UnsetType,
    publish: PublishConfig,
) -> FacesEvent:
    """The faces of one frame, in the order of their tracks."""
    pairs = sorted(zip(looks, identities, strict=True), key=lambda pair: pair[0].person.track)
    return FacesEvent(
        camera=frame.camera,
        frame=frame_record(frame),
        latency_ms=latency_ms,
        dropped=dropped,
        faces=tuple(_face(look, identity, camera, publish.embeddings) for look, identity in pairs),
    )


def frame_record(frame: Frame) -> FrameRecord:
    """Which frame it is."""
    return FrameRecord(
        index=frame.index,
        width=frame.image.shape[1],
        height=frame.image.shape[0],
        captured_at=frame.captured_at,
        clock=frame.clock,
        pts_s=frame.pts_s,
    )


def _face(look: Look, identity: Identity | None, camera: CameraConfig, embeddings: bool) -> Face:
    person = look.person
    fields = person.attributes.now(camera) if person.attributes else AttributeFields()
    return Face(
        track=person.track,
        box_xyxy=box_record(look.box_xyxy),
        score=round_score(look.score),
        landmarks=landmarks_record(look.landmarks),
        quality=look.quality,
        identity=UNSET if identity is None else identity,
        age=fields.age,
        gender=fields.gender,
        gender_score=fields.gender_score,
        max_emotion=fields.max_emotion,
        emotion=fields.emotion,
        embedding=_embedding(person) if embeddings else UNSET,
        attributes_age_ms=_attributes_age_ms(look),
    )


def _embedding(person: Followed) -> tuple[float, ...] | UnsetType | None:
    if person.vote is None:
        return UNSET
    vector = person.vote.embedding
    return None if vector is None else embedding_record(vector)


def embedding_record(vector: NDArray[np.float32]) -> tuple[float, ...]:
    """An embedding (D,) as the contract has it."""
    # Adding zero turns -0.0, which would be written with its sign, into 0.0.
    rounded = np.rint(vector.astype(np.float64) * 10**EMBEDDING_DIGITS) / 10**EMBEDDING_DIGITS + 0.0
    return tuple(rounded.tolist())


def _attributes_age_ms(look: Look) -> float | UnsetType | None:
    attributes = look.person.attributes
    if attributes is None:
        return UNSET
    return None if attributes.seen_ns is None else round_ms((look.frame.time_ns - attributes.seen_ns) / 1e6)


def track_events(look: Look, identity: Identity | None, camera: CameraConfig) -> list[TrackEvent]:
    """What one more look changes: a track enters, a name is found, or the decision is another one."""
    person = look.person
    before, person.told = person.told, identity
    events = [] if person.announced else [_track_event(person, camera, "entered", identity)]
    person.announced = True
    if phase := _turn(before, identity):
        events.append(_track_event(person, camera, phase, identity))
    return events


def _turn(before: Identity | None, now: Identity | None) -> Phase | None:
    if now is None:
        return None
    was = (before.status, before.name) if before else ("undecided", None)
    if was == (now.status, now.name) or (before is None and now.status == "unknown"):
        return None
    return "identified" if now.status == "known" and was[1] is None else "changed"


def ended_event(person: Followed, camera: CameraConfig) -> TrackEvent:
    """The end of a track, with the last word on who it was."""
    return _track_event(person, camera, "left", person.told)


def _track_event(
    person: Followed, camera: CameraConfig, phase: Phase, identity: Identity | None
) -> TrackEvent:
    assert person.best is not None, "a person is seen before anything is told of them"
    fields = person.attributes.over_track(camera) if person.attributes else AttributeFields()
    return TrackEvent(
        camera=camera.name,
        track=person.track,
        phase=phase,
        started_at=person.started_at,
        ended_at=person.last_seen_at if phase == "left" else None,
        frames=person.frames,
        best=person.best,
        identity=UNSET if identity is None else identity,
        age=fields.age,
        gender=fields.gender,
        max_emotion=fields.max_emotion,
        emotion=fields.emotion,
    )
