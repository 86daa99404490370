import numpy as np
import pytest

from daemon.annotate import KNOWN, UNDECIDED, UNKNOWN, annotate, colour_of, label_of
from daemon.records import Emotion, Face, Identity, Quality

POINTS = ((30.0, 40.0), (50.0, 40.0), (40.0, 52.0), (33.0, 62.0), (47.0, 62.0))
EMOTION = Emotion(
    anger=0, contempt=0, disgust=0, fear=0, happiness=0.9, neutral=0.1, sadness=0, surprise=0
)  # fmt: skip


def identity(status="known", name="Ann"):
    return Identity(name=name, status=status, similarity=0.62, margin=0.2, threshold=0.4)


def face(box=(20.0, 60.0, 60.0, 110.0), track=1, reasons=(), **fields):
    quality = Quality(usable=not reasons, reasons=reasons, interocular_px=20.0)
    return Face(track=track, box_xyxy=box, score=0.9, landmarks=POINTS, quality=quality, **fields)


def test_a_label_says_who_what_and_why_not():
    known = face(
        identity=identity(),
        age=31.4,
        gender="female",
        gender_score=0.9,
        max_emotion="happiness",
        emotion=EMOTION,
    )

    assert label_of(known) == ["#1 Ann 0.62", "female 31 happiness"]
    assert label_of(face(track=2, identity=identity("unknown", None), reasons=("blurred", "cut_off"))) == [
        "#2 unknown",
        "blurred, cut off",
    ]
    assert label_of(face(track=3, identity=identity("undecided", None))) == ["#3 …"]


def test_what_is_switched_off_or_not_known_yet_is_not_in_the_label():
    assert ["#1"] == label_of(face()) == label_of(face(age=None, gender=None, max_emotion=None, emotion=None))


@pytest.mark.parametrize(
    ("status", "colour"), [("known", KNOWN), ("unknown", UNKNOWN), ("undecided", UNDECIDED)]
)
def test_the_colour_says_whether_somebody_is_known(status, colour):
    assert colour == colour_of(face(identity=identity(status)))
    assert colour_of(face()) == UNDECIDED


def drawn_part(image, *faces):
    """Where the picture was changed, x1, y1, x2, y2, and which pixels."""
    changed = (annotate(image, faces) != image).any(2)
    ys, xs = np.nonzero(changed)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), changed


@pytest.mark.parametrize("height", [90, 360, 720, 1080, 2160])
def test_labels_grow_with_the_picture_and_leave_the_original_alone(height):
    image = np.full((height, height * 2, 3), 90, np.uint8)
    box = tuple(height * share for share in (0.6, 0.5, 0.8, 0.8))

    (x1, y1, _, y2), _ = drawn_part(image, face(box=box, identity=identity()))

    assert (image == 90).all()
    label_px = box[1] - y1
    assert label_px >= max(11, height * 0.025)
    assert abs(y2 - box[3]) <= 3 or y2 > box[3]
    assert x1 <= POINTS[0][0]


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 60.0, 80.0),
        (580.0, 0.0, 640.0, 360.0),
        (0.0, 0.0, 640.0, 360.0),
        (600.0, 300.0, 640.0, 360.0),
    ],
)
def test_a_label_stays_inside_the_picture(box):
    image = np.full((360, 640, 3), 90, np.uint8)
    long_name = identity(name="Anna Katharina of the Long Corridor")

    annotated = annotate(image, [face(box=box, identity=long_name, reasons=("blurred",))])

    assert image.shape == annotated.shape
    dark = (annotated < 60).all(2)
    assert dark.sum() > 2000


def test_labels_of_neighbours_do_not_cover_each_other():
    image = np.full((360, 640, 3), 90, np.uint8)
    left, right = face(box=(200.0, 100.0, 260.0, 180.0)), face(box=(230.0, 100.0, 290.0, 180.0), track=2)

    _, one = drawn_part(image, left)
    _, other = drawn_part(image, right)
    _, both = drawn_part(image, left, right)

    assert both[:100].any() and both[181:].any()
    assert not one[181:].any() and not other[181:].any()


def test_names_in_any_script_can_be_written():
    image = np.full((360, 640, 3), 90, np.uint8)
    names = ("???", "Ольга", "東京さん")

    pictures = [annotate(image, [face(identity=identity(name=name))]) for name in names]

    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])
