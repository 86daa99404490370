"""Why nobody was named: on painted pictures with fake engines, and on tracks by events of the real pipeline."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import cv2
import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.config import CameraConfig, Config
from daemon.explain import explain_image, in_lines
from daemon.explain_track import explain_track
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.pipeline import FacePipeline
from daemon.records import encode
from engines.errors import MienError, UsageError
from tests.fakes import ANN, BOB, CYD, DIMENSIONS, FakeDetector, FakeLandmarks, fake_engines, scene, walk

NAMES = ("Ann", "Bob", "Cyd")


def enrolled(*people, close=0.0):
    """A gallery of painted people; `close` turns the second towards the first."""
    rows = np.zeros((len(people), DIMENSIONS), np.float32)
    for row, person in zip(rows, people, strict=True):
        row[person.looks] = 1
    rows[1:, people[0].looks] += close
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(NAMES[person.looks] for person in people)
    return GallerySnapshot(names, rows, np.arange(len(people)))


class People:
    """A gallery that does not change."""

    def __init__(self, snapshot):
        self._snapshot = snapshot

    def snapshot(self):
        return self._snapshot


def explained(tmp_path, image, people=EMPTY_SNAPSHOT, config=None, **engines):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), image)
    return explain_image(fake_engines(**engines), config or Config(), people, path)


def codes(explanation):
    return [cause.code for cause in explanation.causes]


def test_who_is_known_is_named(tmp_path):
    (found,) = explained(tmp_path, scene((ANN, 100, 60)), enrolled(ANN, BOB))

    assert ("Ann", ()) == (found.name, found.causes)
    assert found.similarity > found.threshold


def test_a_stranger_is_told_by_how_much_they_miss(tmp_path):
    (found,) = explained(tmp_path, scene((CYD, 100, 60)), enrolled(ANN))

    (cause,) = found.causes
    assert (found.name, found.nearest, cause.code, cause.setting) == (
        None,
        "Ann",
        "below_threshold",
        "identity.threshold",
    )
    assert (cause.value, cause.needed) == (found.similarity, 0.4)
    assert f"{0.4 - found.similarity:.3f} below" in cause.words


def test_two_who_look_alike_are_told_by_the_lead_that_is_missing(tmp_path):
    (found,) = explained(tmp_path, scene((ANN, 100, 60)), enrolled(ANN, BOB, close=10))

    (cause,) = found.causes
    assert ("small_margin", "identity.min_margin", 0.03) == (cause.code, cause.setting, cause.needed)
    assert cause.value == found.margin < 0.03


def test_an_empty_gallery_is_told_with_the_command(tmp_path):
    (found,) = explained(tmp_path, scene((ANN, 100, 60)))

    assert codes(found) == ["nobody_enrolled"]
    assert "mien gallery enroll" in found.causes[0].words


def test_a_picture_without_a_face_is_told(tmp_path):
    (found,) = explained(tmp_path, scene(), enrolled(ANN))

    assert codes(found) == ["no_face"]
    assert found.causes[0].needed == 0.5


def test_a_picture_whose_name_is_no_utf_8_is_told_of_all_the_same(tmp_path):
    path = tmp_path / "caf\udce9.png"
    path.write_bytes(cv2.imencode(".png", scene())[1].tobytes())

    (found,) = explain_image(fake_engines(), Config(), EMPTY_SNAPSHOT, path)

    assert f"{tmp_path}/caf\ufffd.png" == found.subject


def test_a_face_nearly_found_is_told_with_its_score(tmp_path):
    (found,) = explained(tmp_path, scene((ANN, 100, 60)), enrolled(ANN), detector=FakeDetector(score=0.3))

    (cause,) = found.causes
    assert ("no_face", 0.3) == (cause.code, pytest.approx(cause.value, abs=0.01))


QUALITY = {
    "too_small": ({"min_interocular_px": 60}, {}),
    "averted": ({}, {"landmarks": FakeLandmarks(shift_nose=12)}),
    "blurred": ({"min_sharpness": 50}, {}),
    "low_score": ({"min_score": 0.99}, {}),
    "bad_light": ({"min_brightness": 0.9, "max_brightness": 0.95}, {}),
}


@pytest.mark.parametrize("reason", QUALITY)
def test_a_look_that_fails_the_gate_is_told_by_its_measure_and_limit(tmp_path, reason):
    quality, engines = QUALITY[reason]
    config = Config.model_validate({"quality": quality})

    (found,) = explained(tmp_path, scene((ANN, 100, 60)), enrolled(ANN), config, **engines)

    assert found.name is None
    cause = next(cause for cause in found.causes if cause.code == reason)
    assert cause.value is not None and cause.needed is not None
    section, _, key = cause.setting.partition(".")
    assert cause.needed == pytest.approx(getattr(getattr(config, section), key))
    assert (cause.value > cause.needed) == (reason == "averted")


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"max_brightness": 0.2, "min_brightness": 0.0}, "too bright"),
        ({"min_contrast": 0.9}, "too little contrast"),
    ],
)
def test_bad_light_says_which(tmp_path, quality, words):
    config = Config.model_validate({"quality": quality})

    (found,) = explained(tmp_path, scene((ANN, 100, 60)), enrolled(ANN), config)

    assert words in found.causes[0].words


def test_a_face_at_the_edge_is_cut_off(tmp_path):
    (found,) = explained(tmp_path, scene((ANN, 0, 60)), enrolled(ANN))

    assert "cut_off" in codes(found)


def test_of_two_faces_with_one_name_the_other_is_told(tmp_path):
    """Two of the same colour are one person to the engines: they cannot both be her."""
    image = np.hstack((scene((ANN, 100, 60)), scene((ANN, 100, 60))))

    class BothHalves(FakeDetector):
        def __call__(self, batch):
            half = batch.copy()
            half[:, :, batch.shape[2] // 2 :] = 100
            other = batch.copy()
            other[:, :, : batch.shape[2] // 2] = 100
            left, right = super().__call__(half), super().__call__(other)
            both = right["scores"] > left["scores"]
            return {
                "scores": np.maximum(left["scores"], right["scores"]),
                "sides": np.where(both[..., None], right["sides"], left["sides"]),
            }

    found = explained(tmp_path, image, enrolled(ANN), detector=BothHalves(least_px=100))

    assert ["Ann"] == [each.name for each in found if each.name]
    assert ["taken"] in [codes(each) for each in found if not each.name]


def test_lines_are_plain(tmp_path):
    found = explained(tmp_path, scene((CYD, 100, 60)), enrolled(ANN))

    first, second = in_lines(found)
    assert first.startswith("face 1 at ") and first.endswith(": not named")
    assert second.startswith("  - similarity to Ann is 0.") and second.endswith("(identity.threshold)")


def written(tmp_path, frames, people=EMPTY_SNAPSHOT, *, camera=None, **settings):
    """The events of the pipeline as `mien replay --out` writes them."""
    camera = camera or CameraConfig(name="door", source="none")
    config = Config.model_validate({"cameras": [camera.model_dump()], **settings})
    pipeline = FacePipeline(fake_engines(), config, People(people))
    events = [event for frame in frames for event in pipeline.process([frame])]
    events += pipeline.close_camera("door")
    path = tmp_path / "events.jsonl"
    stamped = [msgspec.structs.replace(event, instance="replay") for event in events]
    path.write_bytes(b"\n".join(map(encode, stamped)) + b"\n")
    return path, config


def track_of(path):
    return next(json.loads(line)["track"] for line in path.read_text().splitlines() if "mien.track/1" in line)


def of_track(path, config):
    return explain_track(path, track_of(path), None, config)


def stay(person, num=40):
    return walk(((person, 100, 60), (person, 110, 60)), num=num)


def test_a_named_track_is_told_by_name(tmp_path):
    found = of_track(*written(tmp_path, stay(ANN), enrolled(ANN, BOB)))

    assert ("Ann", ()) == (found.name, found.causes)


def test_a_track_of_a_stranger_is_told_by_how_much_they_miss(tmp_path):
    found = of_track(*written(tmp_path, stay(CYD), enrolled(ANN)))

    assert codes(found) == ["below_threshold"]
    assert found.causes[0].value == found.similarity < found.threshold == found.causes[0].needed


def test_a_track_without_a_gallery_is_told(tmp_path):
    assert codes(of_track(*written(tmp_path, stay(ANN)))) == ["nobody_enrolled"]


def test_a_track_between_two_alike_is_told(tmp_path):
    found = of_track(*written(tmp_path, stay(ANN), enrolled(ANN, BOB, close=10)))

    assert codes(found) == ["small_margin"]


def test_a_track_of_bad_looks_is_told_by_reason_and_count(tmp_path):
    config = {"quality": {"min_interocular_px": 60}}

    found = of_track(*written(tmp_path, stay(ANN), enrolled(ANN), **config))

    assert codes(found) == ["too_small", "too_few_looks"]
    num_frames = found.causes[0].value
    assert f"too small in {num_frames} of {num_frames} frames" in found.causes[0].words
    assert "px apart at best" in found.causes[0].words
    assert (found.causes[1].value, found.causes[1].needed) == (0, 3)


def test_a_track_too_short_is_told(tmp_path):
    found = of_track(*written(tmp_path, stay(ANN, num=5), enrolled(ANN)))

    assert codes(found) == ["too_few_looks"]
    assert "3 are needed" in found.causes[0].words


def test_naming_switched_off_is_told(tmp_path):
    camera = CameraConfig(name="door", source="none", identity=False)

    found = of_track(*written(tmp_path, stay(ANN), enrolled(ANN), camera=camera))

    assert codes(found) == ["identity_off"]


def line(camera="door", track=1, epoch=0, name=None, **identity):
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
    told = {"name": name, "status": "undecided", "similarity": None, "margin": None, "threshold": 0.4}
    face = {"track": track, "quality": {"usable": True, "reasons": [], "interocular_px": 30.0}}
    event = {"schema": "mien.faces/1", "instance": "n", "epoch": epoch, "camera": camera}
    event |= {"frame": {"captured_at": moment.isoformat()}, "faces": [face | {"identity": told | identity}]}
    return json.dumps(event) + "\n"


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "events.jsonl"
        path.write_text("".join(lines))
        return path

    return write


def test_a_name_that_went_to_another_face_is_told(file):
    found = explain_track(file(line(similarity=0.6)), 1, None, Config())

    assert codes(found) == ["taken"]


def test_a_track_of_two_cameras_wants_the_camera(file):
    path = file(line("door"), line("yard", name="Ann", status="known"))

    with pytest.raises(UsageError, match=r"door, yard; give --camera"):
        explain_track(path, 1, None, Config())
    assert explain_track(path, 1, "yard", Config()).name == "Ann"


def test_of_several_runs_the_last_is_explained(file):
    path = file(line(epoch=2, name="Bob", status="known"), line(epoch=1, name="Ann", status="known"))

    assert explain_track(path, 1, None, Config()).name == "Bob"


def test_a_track_that_is_not_there_is_told_with_those_that_are(file):
    with pytest.raises(UsageError, match=r"no such track; there are: door 1, yard 7"):
        explain_track(file(line(), line("yard", 7)), 3, None, Config())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json\n", "no file of JSON lines"),
        ("[1]\n", "no file of JSON lines"),
        ('{"a":' * 5000 + "\n", "no file of JSON lines"),
        ('{"schema": "mien.faces/1"}\n', "line 1 is no Mien event"),
        ('{"schema": "mien.faces/1", "faces": [3], "frame": {"captured_at": "now"}}\n', "line 1 is no"),
    ],
)
def test_a_file_of_something_else_is_told(file, text, words):
    with pytest.raises(MienError, match=words):
        explain_track(file(text), 1, None, Config())


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(MienError, match=r"none.jsonl: cannot be read"):
        explain_track(tmp_path / "none.jsonl", 1, None, Config())


def called(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_command_answers_in_lines_and_in_json(file, tmp_path):
    config = tmp_path / "mien.yaml"
    config.write_text("{}\n")
    path = file(line(name="\x1b[31mAnn\n", status="known", similarity=0.7))
    arguments = ("--events", path, "--track", 1, "--config", config)

    plain, as_json = called(*arguments), called(*arguments, "--json")

    assert plain.stdout.splitlines() == [
        "camera door, track 1 (1 frame, 1 of them usable): \\x1b[31mAnn\\n, similarity 0.700, threshold 0.400"
    ]
    assert json.loads(as_json.stdout)[0]["name"] == "\x1b[31mAnn\n"


@pytest.mark.parametrize(
    "wrong", [("--track", 1), ("--events", "x"), ("a.png", "--events", "x", "--track", 1)]
)
def test_half_a_question_is_refused(wrong):
    result = called(*wrong)

    assert isinstance(result.exception, UsageError)


def test_the_examination_as_json(tmp_path):
    config = tmp_path / "mien.yaml"
    config.write_text("cameras: [{name: door, source: 'rtsp://me:secret@127.0.0.1:9/1'}]\n")

    findings = json.loads(called("--json", "--config", config).stdout)

    assert {"subject", "verdict", "found", "remedy"} == set(findings[0])
    assert "secret" not in json.dumps(findings)
