"""The main job on real faces: the shipped clip always; the three people where the shared clips are there."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import av
import cv2
import jsonschema
import numpy as np
import pytest

from daemon.records import event_schemas

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
MIEN = Path(sys.executable).with_name("mien")
needs_shared = pytest.mark.skipif(
    not (SHARED / "video").is_dir(), reason="the shared clips and LFW are not beside this checkout"
)


def mien(*words):
    result = subprocess.run([MIEN, *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert 0 == result.returncode, result.stderr
    return result.stdout


def replayed(video, gallery, out):
    mien("replay", video, "--gallery", gallery, "--out", out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def of_kind(events, kind):
    return [event for event in events if event["schema"] == f"mien.{kind}/1"]


def validate(events):
    schemas = event_schemas()
    checks = {f"mien.{kind}/1": jsonschema.Draft202012Validator(schema) for kind, schema in schemas.items()}
    for event in events:
        checks[event["schema"]].validate(event)


@pytest.fixture(scope="module")
def two_people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_people")
    mien(
        "gallery",
        "enroll",
        "Eileen Collins",
        ROOT / "samples/eileen_collins.jpg",
        "--gallery",
        folder / "g.sqlite",
    )
    return replayed(ROOT / "samples/two_people.mp4", folder / "g.sqlite", folder / "events.jsonl")


def test_in_the_shipped_clip_the_enrolled_person_is_named_each_time_she_comes(two_people):
    left = [event for event in of_kind(two_people, "track") if event["phase"] == "left"]
    collins = [event for event in left if event["identity"]["name"] == "Eileen Collins"]

    # Before the crossing, after it, and when she returns.
    assert len(collins) in (2, 3)
    assert collins[0]["started_at"] < "1970-01-01T00:00:01Z"
    assert collins[-1]["started_at"] > "1970-01-01T00:00:09.5"


def test_in_the_shipped_clip_the_other_person_is_one_track_and_unknown(two_people):
    left = [event for event in of_kind(two_people, "track") if event["phase"] == "left"]
    other = [event for event in left if event["frames"] > 250]

    assert ["unknown"] == [event["identity"]["status"] for event in other]
    assert 4 >= len(left)


def test_the_shipped_clip_shows_two_faces_where_two_are_and_one_where_one_is(two_people):
    by_frame = {event["frame"]["index"]: len(event["faces"]) for event in of_kind(two_people, "faces")}

    apart = [by_frame.get(i) for i in (*range(5, 60), *range(230, 275))]
    alone = [by_frame.get(i) for i in range(145, 180)]
    assert Counter(apart)[2] >= 0.97 * len(apart)
    assert Counter(alone)[1] >= 0.97 * len(alone)


def test_events_of_the_shipped_clip_fit_the_shipped_schemas(two_people):
    validate(two_people)


def first_faces(video):
    """Crops of the three people in the first second, the image's left first."""
    from engines.runtime import load_engine
    from engines.stages import detect

    detector = load_engine("detector")
    with av.open(video) as container:
        frames = [next(container.decode(video=0)).to_ndarray(format="bgr24")]
        for i, frame in enumerate(container.decode(video=0)):
            if i in (8, 16):
                frames.append(frame.to_ndarray(format="bgr24"))
            if i > 16:
                break
    people: list[list[np.ndarray]] = [[], [], []]
    for image in frames:
        boxes = detect(detector, [image])[0].boxes_xyxy
        boxes = boxes[np.argsort(boxes[:, 0])]
        assert 3 == len(boxes)
        for person, box in zip(people, boxes, strict=True):
            x1, y1, x2, y2 = box.astype(int)
            pad = (y2 - y1) // 3
            person.append(image[max(0, y1 - pad) : y2 + pad, max(0, x1 - pad) : x2 + pad])
    return people, np.sort((boxes[:, 0] + boxes[:, 2]) / 2)


@pytest.fixture(scope="module")
def three_faces(tmp_path_factory):
    """The clip replayed twice, its left and right person enrolled among twenty strangers."""
    folder = tmp_path_factory.mktemp("three_faces")
    video = SHARED / "video/three_faces_1080x360.mp4"
    people, places = first_faces(video)
    for name, crops in (("left", people[0]), ("right", people[2])):
        for i, crop in enumerate(crops):
            cv2.imwrite(str(folder / f"{name}_{i}.png"), crop)
        mien("gallery", "enroll", name, *folder.glob(f"{name}_*.png"), "--gallery", folder / "g.sqlite")
    with zipfile.ZipFile(SHARED / "data/lfw.zip") as lfw:
        names = [name for name in sorted(lfw.namelist()) if name.endswith("_0001.webp")]
        for name in names[:: len(names) // 20][:20]:
            (folder / name).write_bytes(lfw.read(name))
            person = name.removesuffix("_0001.webp").replace("_", " ")
            words = ("--any-quality", "--gallery", folder / "g.sqlite")
            mien("gallery", "enroll", person, folder / name, *words)
    events = replayed(video, folder / "g.sqlite", folder / "first.jsonl")
    replayed(video, folder / "g.sqlite", folder / "second.jsonl")
    return folder, events, places


@needs_shared
def test_three_people_are_three_tracks_nearly_all_the_time(three_faces):
    _, events, _ = three_faces
    shown = [len({face["track"] for face in event["faces"]}) for event in of_kind(events, "faces")]
    tracks = {face["track"] for event in of_kind(events, "faces") for face in event["faces"]}

    assert Counter(shown)[3] >= 0.95 * 450
    assert 6 >= len(tracks)


@needs_shared
def test_two_enrolled_of_three_are_named_rightly_and_the_third_stays_unknown(three_faces):
    _, events, places = three_faces
    told: dict[int, Counter] = {0: Counter(), 1: Counter(), 2: Counter()}
    late = [event for event in of_kind(events, "faces") if event["frame"]["pts_s"] > 5]
    for event in late:
        for face in event["faces"]:
            centre = (face["box_xyxy"][0] + face["box_xyxy"][2]) / 2
            told[int(np.abs(places - centre).argmin())][face["identity"]["name"]] += 1

    assert {"left", None} >= set(told[0]) and told[0]["left"] >= 0.9 * len(late)
    assert {None} == set(told[1])
    assert {"right", None} >= set(told[2]) and told[2]["right"] >= 0.9 * len(late)


@needs_shared
def test_replaying_twice_gives_the_same_bytes_that_fit_the_schemas(three_faces):
    folder, events, _ = three_faces
    digests = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("first.jsonl", "second.jsonl")
    ]

    assert digests[0] == digests[1]
    validate(events)


@needs_shared
@pytest.mark.parametrize("video", ["podium_640x360", "three_faces_1080x360"])
def test_nine_of_ten_faces_are_found_and_nine_of_ten_finds_are_faces(video):
    from engines.runtime import load_engine
    from trainers.detection_metrics import judge
    from trainers.evaluate_detector import video_truths
    from trainers.measuring import EvaluationConfig

    yunet = SHARED / "teachers/yunet_n_dynamic.onnx"
    config = EvaluationConfig(video=str(SHARED / "video"), yunet=str(yunet))
    engine = load_engine("detector")
    precision, recall = judge(*video_truths(config, video, engine), 32).precision_recall(
        engine.spec.threshold
    )

    assert min(precision, recall) >= 0.90, (precision, recall)
