from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import jsonschema
import msgspec
import numpy as np
import pytest

from daemon.records import (
    Emotion,
    Face,
    FacesEvent,
    Frame,
    FrameRecord,
    HeartbeatEvent,
    Identity,
    Quality,
    StatusEvent,
    TrackBest,
    TrackEvent,
    box_record,
    decode,
    emotion_record,
    encode,
    event_schemas,
    kind_of,
    landmarks_record,
    round_score,
    schema_path,
    topic_of,
)
from engines.spec import EMOTIONS

MOMENT = datetime(2024, 5, 1, 12, 0, 0, 250000, tzinfo=UTC)
GOOD = Quality(usable=True, reasons=(), interocular_px=41.5)
KNOWN = Identity(name="grace", status="known", similarity=0.71, margin=0.4, threshold=0.35)
NEUTRAL = emotion_record(np.eye(8, dtype=np.float32)[5])
FRAME = FrameRecord(index=3, width=640, height=360, captured_at=MOMENT, clock="pts", pts_s=0.12)
FACE = Face(
    track=1,
    box_xyxy=(10.0, 20.0, 90.5, 120.0),
    score=0.93,
    landmarks=((30.0, 50.0), (70.0, 50.0), (50.0, 70.0), (35.0, 95.0), (65.0, 95.0)),
    quality=GOOD,
    identity=KNOWN,
    age=41.0,
    gender="female",
    gender_score=0.98,
    max_emotion="neutral",
    emotion=NEUTRAL,
    embedding=(0.6, 0.8),
    attributes_age_ms=120.0,
)
EVENTS = (
    FacesEvent(camera="door", frame=FRAME, latency_ms={"detect": 8.1, "total": 20.5}, faces=(FACE,)),
    TrackEvent(
        camera="door",
        track=1,
        phase="left",
        started_at=MOMENT,
        ended_at=MOMENT,
        frames=17,
        best=TrackBest(frame_index=3, box_xyxy=FACE.box_xyxy, score=0.93, quality=GOOD),
        identity=KNOWN,
        age=None,
        gender=None,
        max_emotion=None,
        emotion=None,
    ),
    StatusEvent(camera="_daemon", state="ready", since=MOMENT),
    HeartbeatEvent(
        camera="_daemon",
        uptime_s=5.0,
        frames_in=10,
        frames_processed=9,
        dropped={"superseded": 1},
        latency_ms=None,
        queue_depth={"door": 0},
        engines={"detector": "openvino"},
    ),
)


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_event_fits_the_shipped_schema(event):
    schema = json.loads(schema_path(kind_of(event)).read_text())

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(encode(event)))


@pytest.mark.parametrize("kind", ["faces", "track", "status", "heartbeat"])
def test_shipped_schema_is_the_one_the_types_generate(kind):
    shipped = json.loads(schema_path(kind).read_text())

    assert shipped == json.loads(msgspec.json.encode(event_schemas()[kind])), "run python -m daemon.records"


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_event_survives_the_wire(event):
    assert event == decode(encode(event))


@pytest.mark.parametrize("missing", ["schema", "instance", "epoch", "seq", "camera", "faces", "frame"])
def test_schema_refuses_an_event_without_a_promised_key(missing):
    event = json.loads(encode(EVENTS[0]))
    del event[missing]

    with pytest.raises(jsonschema.ValidationError, match=missing):
        jsonschema.Draft202012Validator(event_schemas()["faces"]).validate(event)


def test_schema_lets_later_versions_add_keys():
    event = json.loads(encode(EVENTS[0])) | {"added_later": 1}

    jsonschema.Draft202012Validator(event_schemas()["faces"]).validate(event)


def test_schema_tells_what_a_replay_leaves_out():
    properties = event_schemas()["faces"]["$defs"]["FacesEvent"]["properties"]

    assert "leave" in properties["published_at"]["description"]
    assert "leave" in properties["latency_ms"]["description"]


def test_what_is_switched_off_is_absent_and_what_is_not_known_is_null():
    face = Face(track=0, box_xyxy=FACE.box_xyxy, score=0.9, landmarks=FACE.landmarks, quality=GOOD, age=None)

    written = json.loads(msgspec.json.encode(face))

    assert written["age"] is None
    assert {"identity", "gender", "emotion", "embedding"}.isdisjoint(written)


def test_emotions_are_those_of_the_engines():
    assert Emotion.__struct_fields__ == EMOTIONS


def test_topic_names_camera_and_kind():
    assert [topic_of(event) for event in EVENTS] == [
        "mien/1/door/faces",
        "mien/1/door/track",
        "mien/1/_daemon/status",
        "mien/1/_daemon/heartbeat",
    ]


def test_numbers_are_rounded_once_and_zero_has_no_sign():
    assert box_record(np.array([1.24, -0.01, 2.96, 4.94], np.float32)) == (1.2, 0.0, 3.0, 4.9)
    assert landmarks_record(np.full((5, 2), 0.1, np.float32))[4] == (0.1, 0.1)
    assert round_score(np.float32(0.12345678)) == 0.1235
    assert "-" not in str(box_record([-0.01, 0, 1, 1])[0])


def test_frame_is_frozen():
    image = np.zeros((2, 2, 3), np.uint8)
    frame = Frame("door", 0, MOMENT, "pts", 0.0, 0, None, image)

    with pytest.raises(FrozenInstanceError):
        frame.index = 1
