import json
from dataclasses import replace
from itertools import islice

import msgspec
import numpy as np
import pytest

from bench import equality
from bench.deviations import beyond, compare, figures
from bench.equality import fullest, reference_of, replayed, stretches_of
from daemon.commands.bench import CLIP
from daemon.records import Emotion, Face, Identity, Quality
from daemon.sources import read_video
from engines.runtime import load_face_engines
from tests.clips import grey_levels, write_clip
from tests.fakes import ANN, fake_engines, walk

CALM = dict.fromkeys(Emotion.__struct_fields__, 0.05) | {"neutral": 0.65}
THRESHOLD = 0.5
UNUSABLE = Quality(usable=False, reasons=("blurred",), interocular_px=40.0)


def face(track=1, box=(0.0, 0.0, 100.0, 100.0), **changes):
    """A usable face of Ann, of whom the reference is sure in every respect."""
    known = Identity(name="Ann", status="known", similarity=0.6, margin=0.3, threshold=0.35)
    return Face(
        **{
            "track": track,
            "box_xyxy": box,
            "score": 0.9,
            "landmarks": ((30.0, 40.0), (70.0, 40.0), (50.0, 60.0), (35.0, 80.0), (65.0, 80.0)),
            "quality": Quality(usable=True, reasons=(), interocular_px=40.0),
            "identity": known,
            "age": 30.0,
            "gender": "female",
            "gender_score": 0.9,
            "max_emotion": "neutral",
            "emotion": Emotion(**CALM),
            "embedding": (1.0, 0.0),
        }
        | changes
    )


def found(reference, other):
    """Figures of two tellings, each a list of frames."""
    sides = [{(0, i): faces for i, faces in enumerate(side)} for side in (reference, other)]
    return figures(compare(*sides, THRESHOLD))


def named(**changes):
    return msgspec.structs.replace(face().identity, **changes)


def test_the_same_telling_is_within_every_tolerance():
    same = found([[face()]] * 3, [[face()]] * 3)

    assert ([], [], 3) == (beyond(same, "f32"), beyond(same, "int8"), same["faces"])


def test_nothing_told_is_not_within_any():
    assert ["no faces"] == beyond(found([], []), "int8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": UNUSABLE}, "usable_differ 1 > 0.02"),
        ({"box": (0.0, 0.0, 100.0, 106.0)}, "box_share_p99 0.06 > 0.05"),
        ({"landmarks": ((30.0, 43.0), *face().landmarks[1:])}, "landmark_share_p99 0.075 > 0.05"),
        ({"embedding": (1.0, 0.2)}, "embedding_off_p99 0.01942 > 0.01"),
        ({"age": 33.0}, "age_years_p99 3 > 2"),
        ({"identity": named(similarity=0.57)}, "similarity_p99 0.03 > 0.02"),
        ({"identity": named(name=None, status="unknown")}, "names_differ_clear 1 > 0.005"),
        ({"identity": named(name="Bob")}, "names_wrong 1 > 0"),
        ({"gender": "male"}, "gender_differ_clear 1 > 0.005"),
        ({"max_emotion": "fear"}, "emotion_differ_clear 1 > 0.005"),
        ({"box": (300.0, 0.0, 400.0, 100.0)}, "missed_sure 2 > 0.02"),
    ],
)
def test_each_tolerance_can_be_broken(changes, words):
    assert words in beyond(found([[face()]], [[face(**changes)]]), "int8")


def test_what_is_near_a_boundary_may_turn():
    near = face(
        gender_score=0.55,
        emotion=Emotion(**CALM | {"neutral": 0.35, "fear": 0.3}),
        identity=named(similarity=0.36),
    )
    turned = face(
        gender="male", max_emotion="fear", identity=named(name=None, status="unknown", similarity=0.34)
    )

    told = found([[near]], [[turned]])

    assert [] == beyond(told, "bf16")
    assert (1, 1, 1) == (told["names_differ"], told["gender_differ"], told["emotion_differ"])


def test_landmarks_of_a_look_that_is_not_usable_are_not_compared():
    away = ((10.0, 40.0), *face().landmarks[1:])
    reference, other = face(quality=UNUSABLE), face(quality=UNUSABLE, landmarks=away, embedding=(0.0, 1.0))

    assert [] == beyond(found([[reference]], [[other]]), "f32")


def test_a_faint_face_may_come_and_go_but_not_a_sure_one():
    faint, sure = face(2, (200.0, 0.0, 250.0, 50.0), score=0.55), face(2, (200.0, 0.0, 250.0, 50.0))

    assert [] == beyond(found([[face(), faint]], [[face()]]), "bf16")
    assert "missed_sure 1 > 0.02" in beyond(found([[face()]], [[face(), sure]]), "bf16")
    assert "missed_sure 0.5 > 0.02" in beyond(found([[face(), sure]], [[face()]]), "bf16")


def test_tracks_may_have_other_numbers_but_must_be_the_same_people():
    left, right = (0.0, 0.0, 50.0, 50.0), (200.0, 0.0, 250.0, 50.0)
    reference = [[face(1, left), face(2, right)]] * 4
    renumbered = [[face(7, left), face(9, right)]] * 4
    exchanged = [*renumbered[:3], [face(9, left), face(7, right)]]

    assert 0 == found(reference, renumbered)["tracks_apart"]
    assert 2 / 8 == found(reference, exchanged)["tracks_apart"]


def test_one_track_in_place_of_two_people_is_apart():
    reference = [[face(1)]] * 3 + [[face(2)]] * 2

    assert 2 / 5 == found(reference, [[face(1)]] * 5)["tracks_apart"]


def test_a_stretch_begins_where_most_faces_are():
    assert (4, 0) == (fullest(np.array([0, 0, 1, 0, 0, 3, 0, 0.0]), 2), fullest(np.array([1.0]), 5))


def test_parts_of_a_video_without_people_are_left_out(tmp_path):
    empty = grey_levels(10, (320, 192))
    people = [frame.image for frame in walk([(ANN, 20, 60), (ANN, 60, 60)], num=10)]
    clip = write_clip(tmp_path / "one.mp4", [*empty, *people, *empty])

    (stretch,) = stretches_of(fake_engines(), clip, 3, 6)

    assert (6, True) == (len(stretch), 10 <= stretch[0].index <= 14)


def test_a_video_without_people_is_an_error_in_words(tmp_path, capsys):
    clip = write_clip(tmp_path / "empty.mp4", grey_levels(6, (320, 192)))

    assert 1 == equality.main(["--video", str(clip)])
    assert "empty.mp4: shows no face; name a video that does" in capsys.readouterr().err


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The first second of the shipped clip."""
    images = [frame.image for frame in islice(read_video(CLIP, camera="clip"), 16)]
    return write_clip(tmp_path_factory.mktemp("clips") / "short.mp4", images)


@pytest.mark.parametrize("engine", ["openvino f32", "openvino auto"])
def test_openvino_tells_what_eager_tells_of_the_shipped_clip(short, tmp_path, capsys, engine):
    told = tmp_path / "told.json"
    options = ["--stretches", "1", "--frames", "12", "--engines", engine, "--json", str(told)]

    assert 0 == equality.main(["--video", str(short), *options])

    (row,) = json.loads(told.read_text())["rows"]
    assert (engine, 12, 2) == (row["engine"], row["frames"], row["enrolled"])
    assert row["faces"] > 20 and row["names_clear"] > 0
    assert engine in capsys.readouterr().out


def test_colours_in_another_order_are_noticed(short):
    reference = reference_of(short, 1, 8)
    engines = load_face_engines(backend="openvino", device="cpu", precision="f32")
    shuffled = replace(engines, embedder=Shuffled(engines.embedder))

    told = replayed(shuffled, reference.stretches, reference.people)

    broken = beyond(figures(compare(reference.told, told, reference.threshold)), "bf16")
    assert any(words.startswith("embedding_off") for words in broken)


class Shuffled:
    """An embedder that was fed colours in another order."""

    def __init__(self, engine):
        self._engine = engine
        self.spec, self.backend, self.input_size = engine.spec, engine.backend, engine.input_size

    def __call__(self, batch):
        return self._engine(batch[..., ::-1])
