"""The daemon's central types: the frame that comes in, and the events that go out.

Events follow the contract `mien.<kind>/1`: changes within version 1 only add. A key that is switched off is
absent (UNSET), a value that is not known yet is null (None). Numbers are rounded once, where a record is
built (`round_px` and its neighbours), so that equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

DAEMON_CAMERA = "_daemon"
"""The reserved camera name under which the daemon speaks of itself."""

REMOVED = "removed"
"""The reason of the last status of a camera that was taken out of the daemon."""

Clock = Literal["arrival", "rtcp", "pts"]
Reason = Literal["too_small", "blurred", "averted", "bad_light", "cut_off", "low_score"]
IdentityStatus = Literal["known", "unknown", "undecided"]
Gender = Literal["female", "male"]
EmotionName = Literal["anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
Phase = Literal["entered", "identified", "changed", "left"]
State = Literal[
    "connecting", "online", "stalled", "reconnecting", "offline", "ended", "starting", "ready", "stopping"
]

Score = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Box = Annotated[
    tuple[float, float, float, float],
    Meta(description="x1, y1, x2, y2 in pixels, from the top left."),
]
Point = tuple[float, float]
Landmarks = Annotated[
    tuple[Point, Point, Point, Point, Point],
    Meta(description="x, y in pixels: eye, eye, nose, mouth corner, mouth corner; the image's left first."),
]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of one camera.

    image: (H, W, 3) uint8 BGR. `time_ns` is the time on which intervals, votes and ages run: pts for a file,
    the monotonic clock for a live source. `monotonic_ns` is when a live frame arrived, None for a file.
    `dropped`: how many frames were passed over since the one before.
    """

    camera: str
    index: int
    captured_at: datetime
    clock: Clock
    pts_s: float | None
    time_ns: int
    monotonic_ns: int | None
    image: NDArray[np.uint8]
    dropped: int = 0


class FrameRecord(Struct, frozen=True, kw_only=True):
    """Which frame an event speaks of."""

    index: Count
    width: Count
    height: Count
    captured_at: Annotated[datetime, Meta(tz=True, description="RFC 3339, UTC.")]
    clock: Annotated[
        Clock,
        Meta(description="What captured_at tells: arrival here, the sender's RTCP reports, or pts."),
    ]
    pts_s: Annotated[float | None, Meta(description="Presentation time in the stream, in seconds.")] = None


class Quality(Struct, frozen=True, kw_only=True):
    """Whether this look at a face is good enough to name it and to judge it, and if not, why."""

    usable: bool
    reasons: tuple[Reason, ...]
    interocular_px: float


class Identity(Struct, frozen=True, kw_only=True):
    """Who the track is, voted over its usable looks. Similarities are cosines."""

    name: str | None
    status: IdentityStatus
    similarity: Annotated[float | None, Meta(description="Cosine to the nearest enrolled person.")]
    margin: Annotated[float | None, Meta(description="Lead over the second nearest person.")]
    threshold: Annotated[float, Meta(description="The similarity below which a face is unknown.")]


class Emotion(Struct, frozen=True, kw_only=True):
    """Probabilities of the eight expressions; they sum to 1 up to rounding."""

    anger: Score
    contempt: Score
    disgust: Score
    fear: Score
    happiness: Score
    neutral: Score
    sadness: Score
    surprise: Score


class Face(Struct, frozen=True, kw_only=True):
    """One face in one frame."""

    track: Annotated[int, Meta(ge=0, description="New for each person followed, per camera and epoch.")]
    box_xyxy: Box
    score: Score
    landmarks: Landmarks
    quality: Quality
    identity: Identity | UnsetType | None = UNSET
    age: Annotated[float, Meta(ge=0, description="Years.")] | UnsetType | None = UNSET
    gender: Gender | UnsetType | None = UNSET
    gender_score: Annotated[Score, Meta(description="Probability of `gender`.")] | UnsetType | None = UNSET
    max_emotion: EmotionName | UnsetType | None = UNSET
    emotion: Emotion | UnsetType | None = UNSET
    embedding: (
        Annotated[tuple[float, ...], Meta(description="Unit vector; by option.")] | UnsetType | None
    ) = UNSET
    attributes_age_ms: (
        Annotated[float, Meta(ge=0, description="How old the carried attributes are.")] | UnsetType | None
    ) = UNSET


class TrackBest(Struct, frozen=True, kw_only=True):
    """The best look at a track so far."""

    frame_index: Count
    box_xyxy: Box
    score: Score
    quality: Quality


class LatencySummary(Struct, frozen=True, kw_only=True):
    """Arrival to publication of the frames since the last heartbeat, in milliseconds."""

    p50: float
    p99: float


class Stamp(Struct, frozen=True, kw_only=True):
    """What every event carries; all but `camera` is filled in where it goes out."""

    instance: Annotated[str, Meta(description="The daemon's name; `replay` in a replayed file.")] = ""
    epoch: Annotated[int, Meta(ge=0, description="New at each start; 0 in a replayed file.")] = 0
    seq: Annotated[int, Meta(ge=0, description="Gapless from 0 per instance, epoch and topic.")] = 0
    camera: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63}|_daemon)$")]
    published_at: (
        Annotated[datetime, Meta(tz=True, description="RFC 3339, UTC. Replayed files leave it out.")]
        | UnsetType
    ) = UNSET
    resent: Annotated[bool, Meta(description="An event sent again, with the seq it had.")] | UnsetType = UNSET


class FacesEvent(Stamp, frozen=True, kw_only=True, tag_field="schema", tag="mien.faces/1"):
    """The faces of one processed frame."""

    frame: FrameRecord
    latency_ms: (
        Annotated[
            dict[str, float],
            Meta(description="Milliseconds by stage, and `total`. A replayed file leaves it out."),
        ]
        | UnsetType
    ) = UNSET
    dropped: Annotated[int, Meta(ge=0, description="Frames passed over since the last faces event.")] = 0
    faces: tuple[Face, ...]


class TrackEvent(Stamp, frozen=True, kw_only=True, tag_field="schema", tag="mien.track/1"):
    """A turn in a track's life; attributes are means over its usable frames."""

    track: Count
    phase: Phase
    started_at: Annotated[datetime, Meta(tz=True)]
    ended_at: Annotated[datetime, Meta(tz=True, description="Null while the track lives.")] | None
    frames: Annotated[int, Meta(ge=0, description="Frames in which the face was seen.")]
    best: TrackBest
    identity: Identity | UnsetType | None = UNSET
    age: Annotated[float, Meta(ge=0, description="Years.")] | UnsetType | None = UNSET
    gender: Gender | UnsetType | None = UNSET
    max_emotion: EmotionName | UnsetType | None = UNSET
    emotion: Emotion | UnsetType | None = UNSET


class StatusEvent(Stamp, frozen=True, kw_only=True, tag_field="schema", tag="mien.status/1"):
    """A camera's state, or under `_daemon` the daemon's own (starting, ready, stopping)."""

    state: State
    reason: Annotated[str | None, Meta(description="In words, without secrets.")] = None
    since: Annotated[datetime, Meta(tz=True)]


class HeartbeatEvent(Stamp, frozen=True, kw_only=True, tag_field="schema", tag="mien.heartbeat/1"):
    """The daemon's pulse. Counts run from its start."""

    uptime_s: Annotated[float, Meta(ge=0)]
    frames_in: Count
    frames_processed: Count
    dropped: Annotated[dict[str, int], Meta(description="Frames not processed, by reason.")]
    latency_ms: Annotated[LatencySummary | None, Meta(description="Null where no live frame was processed.")]
    queue_depth: Annotated[dict[str, int], Meta(description="Frames waiting, by camera.")]
    engines: Annotated[dict[str, str], Meta(description="The backend of each loaded model.")]


Event = FacesEvent | TrackEvent | StatusEvent | HeartbeatEvent
EVENT_TYPES: tuple[type[Event], ...] = (FacesEvent, TrackEvent, StatusEvent, HeartbeatEvent)


def kind_of(event: Event | type[Event]) -> str:
    """`faces`, `track`, `status` or `heartbeat`."""
    return str(event.__struct_config__.tag).removeprefix("mien.").partition("/")[0]


def topic_of(event: Event) -> str:
    """The topic that the event is published under, such as `mien/1/door/faces`."""
    return f"mien/1/{event.camera}/{kind_of(event)}"


def is_gone(state: object, reason: object) -> bool:
    """Whether a status says that its camera is none of the daemon's any more: newcomers need not hear that."""
    return state == "ended" and reason == REMOVED


def encode(event: Event) -> bytes:
    """One JSON object as UTF-8, without a line end."""
    return msgspec.json.encode(event)


def decode(payload: bytes | str) -> Event:
    """The event that a payload holds; raises msgspec.ValidationError where it does not fit the contract."""
    event: Event = msgspec.json.decode(payload, type=Event)
    return event


def _round(value: float, digits: int) -> float:
    # Adding zero turns -0.0, which would be written with its sign, into 0.0.
    return round(float(value), digits) + 0.0


def round_px(value: float) -> float:
    """Pixels, to a tenth."""
    return _round(value, 1)


def round_score(value: float) -> float:
    """A score, probability or similarity, to four digits."""
    return _round(value, 4)


def round_years(value: float) -> float:
    """Years, to a tenth."""
    return _round(value, 1)


def round_ms(value: float) -> float:
    """Milliseconds, to a hundredth."""
    return _round(value, 2)


def box_record(box_xyxy: Sequence[float] | NDArray[np.float32]) -> tuple[float, float, float, float]:
    """A box (4,) in pixels as the contract has it."""
    x1, y1, x2, y2 = (round_px(value) for value in box_xyxy)
    return x1, y1, x2, y2


def landmarks_record(points: NDArray[np.float32]) -> tuple[Point, Point, Point, Point, Point]:
    """Landmarks (5, 2) in pixels as the contract has them."""
    a, b, c, d, e = ((round_px(x), round_px(y)) for x, y in points)
    return a, b, c, d, e


def emotion_record(probabilities: Sequence[float] | NDArray[np.float32]) -> Emotion:
    """Probabilities (8,) in the order of `Emotion`'s fields as the contract has them."""
    names = Emotion.__struct_fields__
    return Emotion(**{name: round_score(p) for name, p in zip(names, probabilities, strict=True)})


def event_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema (2020-12) of each kind of event, generated from the types."""
    return {kind_of(event_type): _schema(event_type) for event_type in EVENT_TYPES}


def _schema(event_type: type[Event]) -> dict[str, Any]:
    schema = msgspec.json.schema(event_type)
    body = schema["$defs"][event_type.__name__]
    # The publisher fills these: they have defaults in the type, yet no event goes out without them.
    for name in ("instance", "epoch", "seq"):
        body["properties"][name].pop("default", None)
        body["required"].append(name)
    kind = kind_of(event_type)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"mien.{kind}/1"}
    return head | {"title": f"Mien event: {kind}"} | schema


def schema_path(kind: str) -> Path:
    """Where the shipped schema of a kind lies."""
    return Path(__file__).parent / "schemas" / f"{kind}.schema.json"


def main() -> None:
    """Writes the shipped schemas anew."""
    for kind, schema in event_schemas().items():
        text = msgspec.json.format(msgspec.json.encode(schema), indent=2)
        schema_path(kind).write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
