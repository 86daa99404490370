import json

import cv2
import jsonschema
import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from daemon.config import Config
from daemon.looks import GallerySnapshot
from daemon.pipeline import FacePipeline
from daemon.records import FacesEvent, TrackEvent, encode, event_schemas, kind_of
from tests.fakes import (
    ANN,
    BOB,
    CYD,
    DIMENSIONS,
    FakeAttributes,
    FakeDetector,
    FakeEmbedder,
    FakeLandmarks,
    fake_engines,
    frame,
    paint,
    scene,
    walk,
)


class People:
    """A gallery that lives in memory."""

    def __init__(self, **people):
        rows = np.zeros((len(people), DIMENSIONS), np.float32)
        for row, person in zip(rows, people.values(), strict=True):
            row[person.looks] = 1
        self._snapshot = GallerySnapshot(tuple(people), rows, np.arange(len(people)))

    def snapshot(self):
        return self._snapshot


def config_of(*, cameras=("door",), camera=None, **sections):
    entries = [{"name": name, "source": "x.mp4", **(camera or {})} for name in cameras]
    return Config.model_validate({"cameras": entries, **sections})


def pipeline_of(people=None, engines=None, config=None, **options):
    people = People(Ann=ANN) if people is None else people
    return FacePipeline(engines or fake_engines(), config or config_of(), people, **options)


def events_of(pipeline, frames):
    return [event for each in frames for event in pipeline.process([each])]


def faces_of(events):
    return [event for event in events if isinstance(event, FacesEvent)]


def turns_of(events):
    return [(event.track, event.phase) for event in events if isinstance(event, TrackEvent)]


STAY = [(ANN, 20, 60), (ANN, 60, 60)]
OTHER = [(BOB, 200, 60), (BOB, 180, 60)]


def test_two_people_are_followed_named_and_read():
    pipeline = pipeline_of()

    events = events_of(pipeline, walk(STAY, OTHER, num=50)) + pipeline.close_camera("door")

    ann, bob = faces_of(events)[-1].faces
    assert [(f.identity.status, f.identity.name) for f in (ann, bob)] == [("known", "Ann"), ("unknown", None)]
    assert (ann.age, ann.gender, ann.gender_score, ann.max_emotion) == (31.0, "female", 0.95, "happiness")
    assert (bob.age, bob.gender, bob.gender_score, bob.max_emotion) == (58.0, "male", 0.9, "neutral")
    assert [ann.box_xyxy, bob.box_xyxy] == [(60.0, 60.0, 124.0, 124.0), (180.0, 60.0, 244.0, 124.0)]
    assert ann.quality.usable and ann.quality.interocular_px == 19.8
    assert turns_of(events) == [
        (1, "entered"),
        (2, "entered"),
        (1, "identified"),
        (2, "changed"),
        (1, "left"),
        (2, "left"),
    ]


def test_every_event_fits_its_shipped_schema():
    pipeline = pipeline_of(config=config_of(publish={"embeddings": True, "empty_frames": True}))
    events = events_of(pipeline, walk(STAY, OTHER, num=20)) + pipeline.close_camera("door")
    schemas = event_schemas()

    for event in events:
        jsonschema.validate(json.loads(encode(event)), schemas[kind_of(event)])
    assert {"faces", "track"} == {kind_of(event) for event in events}


def test_the_same_frames_give_the_same_bytes():
    def told():
        events = events_of(pipeline_of(), walk(STAY, OTHER, num=30))
        return [encode(event) for event in events]

    assert told() == told()


def test_models_look_again_only_when_it_is_due():
    engines = fake_engines()
    frames = walk(STAY, OTHER, num=100)  # 4 s, attributes and identity every 0.5 s

    events_of(pipeline_of(engines=engines), frames)

    assert engines.landmarks.faces == 198
    assert engines.attributes.faces == 2 * 8
    assert 2 * 8 <= engines.embedder.faces <= 2 * 12


def test_every_frame_looks_at_every_face():
    engines = fake_engines()

    events_of(pipeline_of(engines=engines, every_frame=True), walk(STAY, num=20))

    assert (engines.attributes.faces, engines.embedder.faces) == (19, 19)


def test_a_face_that_has_grown_is_looked_at_at_once():
    engines = fake_engines()
    config = config_of(attributes={"interval_s": 100}, identity={"interval_s": 100})
    sides = [64, 64, 64, 96, 96]
    frames = [frame(scene((ANN, 40, 40), side=side), i) for i, side in enumerate(sides)]

    events_of(pipeline_of(engines=engines, config=config), frames)

    assert engines.attributes.faces == 2


def test_events_say_how_old_the_attributes_are():
    events = faces_of(events_of(pipeline_of(), walk(STAY, num=16)))

    ages = [event.faces[0].attributes_age_ms for event in events]
    assert ages[:3] == [0.0, 40.0, 80.0]
    assert max(ages) == 480.0 and ages[13] == 0.0


def test_nobody_is_named_before_there_were_looks_enough():
    config = config_of(identity={"min_votes": 3, "interval_s": 0.4})
    faces = faces_of(events_of(pipeline_of(config=config), walk(STAY, num=20)))

    statuses = [event.faces[0].identity.status for event in faces]
    first = statuses.index("known")
    assert ["undecided"] * first == statuses[:first] and 3 < first <= 8
    assert {"known"} == set(statuses[first:])


def test_what_is_switched_off_is_absent_and_its_engine_rests():
    engines = fake_engines()
    config = config_of(camera={"identity": False, "emotion": False, "age": False})

    events = events_of(pipeline_of(engines=engines, config=config), walk(STAY, num=5))

    face = json.loads(encode(faces_of(events)[-1]))["faces"][0]
    assert {"gender", "gender_score", "attributes_age_ms"} < face.keys()
    assert face.keys().isdisjoint({"identity", "emotion", "max_emotion", "age", "embedding"})
    assert engines.embedder.faces == 0


def test_without_the_engines_detection_and_tracks_remain():
    engines = fake_engines(embedder=None, attributes=None)

    events = events_of(FacePipeline(engines, config_of()), walk(STAY, num=5))

    face = json.loads(encode(faces_of(events)[-1]))["faces"][0]
    assert {"track", "box_xyxy", "score", "landmarks", "quality"} == face.keys()


def test_a_look_that_fails_the_gate_is_neither_named_nor_judged_and_says_why():
    engines = fake_engines(landmarks=FakeLandmarks(shift_nose=20))

    events = faces_of(events_of(pipeline_of(engines=engines), walk(STAY, num=20)))

    face = events[-1].faces[0]
    assert (face.quality.usable, face.quality.reasons) == (False, ("averted",))
    assert (face.identity.status, face.age, face.attributes_age_ms) == ("undecided", None, None)
    assert (engines.attributes.faces, engines.embedder.faces) == (0, 0)


def test_a_frame_without_a_face_is_told_of_only_by_option():
    empty = [frame(scene(), i) for i in range(3)]

    assert events_of(pipeline_of(), empty) == []
    config = config_of(publish={"empty_frames": True})
    assert [event.faces for event in events_of(pipeline_of(config=config), empty)] == [(), (), ()]


def test_dropped_frames_add_up_until_an_event_tells_of_them():
    pipeline = pipeline_of()
    images = [scene((ANN, 20, 60)), scene((ANN, 20, 60)), scene(), scene((ANN, 20, 60))]

    events = events_of(pipeline, [frame(image, i, dropped=2) for i, image in enumerate(images)])

    assert [event.dropped for event in faces_of(events)] == [4, 4]


def test_latency_is_told_of_live_frames_only():
    image = scene((ANN, 20, 60))
    live = [frame(image, i, monotonic_ns=1) for i in range(2)]

    (event,) = faces_of(events_of(pipeline_of(), live))
    (replayed,) = faces_of(events_of(pipeline_of(), [frame(image, i) for i in range(2)]))

    assert list(event.latency_ms) == ["wait", "detect", "track", "landmarks", "embed", "attributes", "total"]
    assert event.latency_ms["total"] >= event.latency_ms["detect"] > 0
    assert msgspec.UNSET is replayed.latency_ms


def test_cameras_are_followed_apart_in_one_batch():
    pipeline = pipeline_of(config=config_of(cameras=("door", "yard")))
    door, yard = walk(STAY, num=10), walk(OTHER, num=10, camera="yard")

    events = [e for pair in zip(door, yard, strict=True) for e in pipeline.process(pair)]

    assert {("door", 1), ("yard", 1)} == {(e.camera, e.faces[0].track) for e in faces_of(events)}
    assert [(e.phase, e.track) for e in pipeline.close_camera("yard")] == [("left", 1)]
    assert pipeline.close_camera("yard") == []


def test_who_comes_back_is_a_new_track_and_recognised_again():
    pipeline = pipeline_of(People(Ann=ANN, Cyd=CYD))
    there, away = scene((ANN, 20, 60)), scene()
    images = [there] * 20 + [away] * 30 + [there] * 20

    events = events_of(pipeline, [frame(image, i) for i, image in enumerate(images)])

    turns = [(1, "entered"), (1, "identified"), (1, "left"), (2, "entered"), (2, "identified")]
    assert turns == turns_of(events)
    (left,) = [e for e in events if isinstance(e, TrackEvent) and e.phase == "left"]
    assert (
        left.frames + 1,
        left.identity.name,
        (left.ended_at - left.started_at).total_seconds(),
    ) == (20, "Ann", 0.76)
    assert (left.gender, left.max_emotion, left.age) == ("female", "happiness", 31.0)


def test_a_person_is_in_one_place_at_a_time():
    class Alike(FakeEmbedder):
        def __call__(self, batch):
            rows = super().__call__(batch)["embedding"] * 0
            rows[:, 0] = 1
            return {"embedding": rows}

    pipeline = pipeline_of(engines=fake_engines(embedder=Alike()))

    last = faces_of(events_of(pipeline, walk(STAY, OTHER, num=20)))[-1]

    assert [face.identity.status for face in last.faces] == ["known", "undecided"]


def test_two_who_cross_keep_track_name_and_age():
    pipeline = pipeline_of(People(Ann=ANN, Bob=BOB))
    paths = [(ANN, 10, 60), (ANN, 240, 60)], [(BOB, 240, 70), (BOB, 10, 70)]

    events = events_of(pipeline, walk(*paths, num=75))

    for event in faces_of(events):
        names = {face.track: face.identity.name for face in event.faces}
        assert names.items() <= {1: "Ann", 2: "Bob"}.items() or None in names.values()
    assert {face.track: face.identity.name for face in faces_of(events)[-1].faces} == {1: "Ann", 2: "Bob"}


def test_nobody_is_followed_across_a_cut():
    random = np.random.default_rng(0)
    walls = [
        np.kron(random.integers(0, 255, (6, 10, 1)), np.ones((32, 32, 3))).astype(np.uint8) for _ in "ab"
    ]
    frames = []
    for i in range(40):
        image = walls[i // 20].copy()
        paint(image, ANN if i < 20 else BOB, 100, 60)
        frames.append(frame(image, i))

    events = events_of(pipeline_of(People(Ann=ANN, Bob=BOB)), frames)

    assert [1, 2] == sorted({face.track for event in faces_of(events) for face in event.faces})
    (left,) = [event for event in events if isinstance(event, TrackEvent) and event.phase == "left"]
    assert ("Ann", 19, 0.76) == (
        left.identity.name,
        left.frames,
        (left.ended_at - left.started_at).total_seconds(),
    )


def test_faces_below_the_least_size_are_passed_over():
    config = config_of(camera={"min_face_px": 80})

    assert events_of(pipeline_of(config=config), walk(STAY, num=5)) == []


def test_empty_galleries_cost_no_embeddings():
    engines = fake_engines()

    events = events_of(pipeline_of(People(), engines), walk(STAY, num=5))

    assert engines.embedder.faces == 0
    assert faces_of(events)[-1].faces[0].identity.status == "unknown"


def test_embeddings_are_told_by_option():
    config = config_of(publish={"embeddings": True})

    face = faces_of(events_of(pipeline_of(People(), config=config), walk(STAY, num=5)))[-1].faces[0]

    assert len(face.embedding) == DIMENSIONS
    assert pytest.approx(sum(value**2 for value in face.embedding), abs=1e-3) == 1


def test_attributes_are_fed_crops_of_their_own_size():
    told = FakeAttributes.__call__
    shapes = []

    class Watched(FakeAttributes):
        def __call__(self, batch):
            shapes.append(batch.shape[1:])
            return told(self, np.stack([cv2.resize(crop, (112, 112)) for crop in batch]))

    engines = fake_engines(attributes=Watched(input_size=(80, 80)))
    (face,) = faces_of(events_of(pipeline_of(engines=engines), walk(STAY, num=5)))[-1].faces

    assert {(80, 80, 3)} == set(shapes)
    assert ANN.age == face.age


def test_a_changed_threshold_counts_for_tracks_that_go_on():
    pipeline = pipeline_of()
    before = faces_of(events_of(pipeline, walk(STAY, num=20)))[-1].faces[0].identity

    pipeline.add_camera(config_of(camera={"identity_threshold": 0.99}).cameras[0])
    still = [frame(scene((ANN, 60, 60)), index) for index in range(20, 25)]
    after = faces_of(events_of(pipeline, still))[-1].faces[0].identity

    assert ("known", "unknown") == (before.status, after.status)
    assert 0.99 == after.threshold


def test_every_second_look_of_a_track_is_at_the_mirror_image():
    seen = {"embedder": [], "attributes": []}

    def watched(fake, crops):
        class Watched(fake):
            def __call__(self, batch):
                crops.extend(batch.astype(int))
                return super().__call__(batch)

        return Watched()

    engines = fake_engines(
        embedder=watched(FakeEmbedder, seen["embedder"]),
        attributes=watched(FakeAttributes, seen["attributes"]),
    )
    still = [(ANN, 20, 60)] * 2
    events_of(pipeline_of(engines=engines, every_frame=True), walk(still, num=5))

    for first, second, third, fourth in seen.values():
        assert np.abs(first - second).mean() > 10
        assert np.abs(first - second[:, ::-1]).max() <= 1
        assert (first == third).all() and (second == fourth).all()


def test_a_faint_detection_says_so():
    engines = fake_engines(detector=FakeDetector(score=0.9), attributes=FakeAttributes())
    pipeline = pipeline_of(engines=engines)
    frames = walk(STAY, num=10)
    events_of(pipeline, frames[:5])
    engines.detector.score = 0.4

    (event,) = faces_of(pipeline.process([frames[5]]))

    assert event.faces[0].quality.reasons == ("low_score",)


@pytest.mark.parametrize(
    ("shape", "roi", "hint"),
    [
        ((480, 640), None, "[512, 384] holds the picture as large: 20% less"),
        ((360, 1080), None, "[640, 224] holds the picture as large: 42% less"),
        ((240, 320), None, "[320, 256] holds the picture as large: 67% less"),
        ((720, 1280), [0, 0, 0.5, 1], "[352, 384] holds the picture as large: 45% less"),
        ((720, 1280), None, None),
    ],
)
def test_a_detector_size_that_leaves_much_grey_is_told_once(shape, roi, hint):
    engines = fake_engines(detector=FakeDetector((640, 384)))
    pipeline = pipeline_of(engines=engines, config=config_of(camera={"roi": roi}))

    with capture_logs() as logs:
        for index in range(3):
            pipeline.process([frame(np.zeros((*shape, 3), np.uint8), index=index)])

    told = [entry["hint"] for entry in logs if entry["event"] == "detector_size"]
    wanted = [f"{hint} for the detector to do"] if hint else []
    assert wanted == told
