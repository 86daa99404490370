"""Every measured figure has an interval, and one that means something; rows say what was read."""

import shutil

import numpy as np
import pytest

from engines.errors import MienError
from engines.spec import EMOTIONS
from engines.stages import AttributeScores
from tests.face_sets import write_zip
from tests.public_layouts import write_landmark_lists
from trainers.attribute_sets import LabelledFaces
from trainers.bootstrap import Figure, wilson
from trainers.evaluate_attributes import Measured, calibration_figure, emotion_rows, races_of, spread
from trainers.evaluate_embedder import identification_rows, recognition_figures
from trainers.evaluation import evaluate_recipe
from trainers.measuring import Embedded, EvaluationConfig
from trainers.verification import read_pairs
from trainers.zips import ImageZip


def judged(label: np.ndarray, told: np.ndarray) -> Measured:
    """Faces of emotion alone, with the labels and answers (N,)."""
    classes, none = np.eye(len(EMOTIONS), dtype=np.float32), np.full(len(label), -1, np.float32)
    faces = LabelledFaces(np.zeros((len(label), 1)), none, none, classes[label])
    return Measured(faces, AttributeScores(none, none, classes[told] * 0.9 + 0.0125))


def test_a_class_that_is_never_found_has_an_interval_all_the_same():
    label = np.repeat([0, 1], [26, 100])

    figures = emotion_rows(judged(label, np.ones(126, int)))

    recall = figures[f"recall of {EMOTIONS[0]} (26)"]
    assert "0.0% (0.0% to 12.9%)" == str(recall)  # Wilson's 1.96 ** 2 / (26 + 1.96 ** 2)
    whole = figures["mean recall over the classes"]
    assert 0.5 == whole.value == whole.low == whole.high


def test_a_share_of_none_or_all_is_never_written_with_a_minus_or_above_all():
    for count in range(1, 200):
        none, every = wilson(0, count), wilson(count, count)
        assert 0 <= none.low < 1e-9 < none.high < 1 and 1 >= every.high > 1 - 1e-9 > every.low > 0
        assert "-" not in str(none)


def test_the_mean_recall_has_the_interval_of_drawn_faces():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [50, 500])
    told = np.where(rng.random(550) < 0.7, label, 1 - label)

    figure = emotion_rows(judged(label, told))["mean recall over the classes"]

    assert isinstance(figure, Figure) and figure.low < figure.value < figure.high
    assert figure.high - figure.low == pytest.approx(
        2 * 1.96 * 0.5 * np.sqrt(0.21 / 50 + 0.21 / 500), rel=0.2
    )


def test_groups_are_said_to_be_apart_with_an_interval():
    values, group = np.tile([1.0, 3.0], 100), np.repeat([0, 1], 100)
    values[group == 1] += 2

    text = spread(values, [group == 0, group == 1], unit="years", digits=2)

    assert text.startswith("2.00 years to 4.00 years, 2.00 years (1.7") and text.endswith(") apart")


def test_a_calibration_error_has_an_interval():
    rng = np.random.default_rng(0)
    sure = np.tile(np.float32([0.9, 0.1]), (1000, 1))

    figure = calibration_figure(sure, (rng.random(1000) < 0.3).astype(int))

    assert figure.low < 0.2 < figure.high and figure.low < figure.value < figure.high < 0.26


def test_the_nearest_enrolled_person_has_the_interval_of_drawn_persons():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(30), 8)
    embeddings = np.eye(32, dtype=np.float32)[identity] + rng.normal(0, 0.35, (240, 32)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    figure = identification_rows(Embedded(embeddings, embeddings, 0), identity)[
        "the same, nearest enrolled person right (no threshold)"
    ]

    assert isinstance(figure, Figure) and figure.low < figure.value < figure.high


def test_landmarks_of_a_folder_are_not_called_mtfl(tmp_path):
    root = tmp_path / "my faces"
    write_landmark_lists(root, "mtcnn")

    names = list(evaluate_recipe("landmarks", [f"data={root}", "backend=eager", "limit=1"]))

    assert any(name.endswith(" of my faces val") for name in names) and not any("MTFL" in n for n in names)


def test_pairs_of_lfw_that_are_cut_off_or_none_are_named(tmp_path):
    def read(text):
        write_zip(tmp_path / "lfw.zip", {}, [], {"pairs.txt": text})
        with ImageZip(tmp_path, "lfw") as data:
            return read_pairs(data)

    assert [True, False] == read("1 1\nAnn 1 2\nAnn 1 Bo 1\n")[1].tolist()
    for text, words in (
        ("1 2\nAnn 1 2\nAnn 1 Bo 1\n", "2 of 4 pairs; it is cut off"),
        ("", "begins with how many folds and pairs"),
        ("1 1\nAnn 1 2\nAnn one Bo 1\n", "line 3: 'Ann one Bo 1' is no NAME N N"),
    ):
        with pytest.raises(MienError, match=words):
            read(text)


def test_without_races_there_are_no_groups_and_one_that_is_none_is_named(tmp_path):
    def write(**race):
        rows = [{"file": "a.webp", "age_years": 30, "gender": 1, **race}]
        write_zip(tmp_path / "utkface.zip", {"a.webp": np.zeros((8, 8, 3), np.uint8)}, rows)

    write()
    assert {} == races_of(str(tmp_path))
    write(race=3)
    assert {"a.webp": 3} == races_of(str(tmp_path))
    write(race="Martian")
    with pytest.raises(MienError, match="race 'Martian' is none of 0, 1, 2, 3, 4"):
        races_of(str(tmp_path))


def test_what_is_wrong_with_either_set_is_told_before_recognition_is_measured(sets, tmp_path):
    shutil.copy(sets / "lfw.zip", tmp_path)

    with pytest.raises(MienError, match=r"celeba_faces\.zip"):
        recognition_figures(EvaluationConfig(data=str(tmp_path), weights="nowhere"))
