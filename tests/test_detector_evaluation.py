"""The detector, measured: equal conditions for ours and others, WIDER FACE's layout, painted-over faces."""

import cv2
import numpy as np
import pytest

from engines.errors import MienError, UsageError
from engines.stages import Detections
from tests.clips import grey_levels, write_clip
from tests.fakes import FakeDetector
from trainers.detection_metrics import Truth, judge
from trainers.detector_truths import judged_scene, painted
from trainers.evaluate_detector import VIDEOS, video_rows
from trainers.evaluation import evaluate_recipe
from trainers.measuring import EvaluationConfig
from trainers.options import override
from trainers.recipes import train_recipe
from trainers.scenes import Scene, cut
from trainers.wider import load_wider, read_list


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def found(*scored):
    return Detections(boxes(*[s[1:] for s in scored]), np.array([s[0] for s in scored], np.float32))


def test_average_precision_of_drawn_images_is_that_of_the_repeated_set():
    detections = [found((0.9, 0, 0, 40, 40)), found((0.8, 100, 0, 140, 40)), found((0.7, 0, 0, 40, 40))]
    truths = [Truth(boxes((0, 0, 40, 40)), boxes()) for _ in range(3)]
    judged = judge(detections, truths, 16)
    rows = np.array([0, 1, 1])

    drawn = judge([detections[i] for i in rows], [truths[i] for i in rows], 16)

    assert drawn.average_precision() == pytest.approx(judged.average_precision(judged.weights(rows)))
    assert drawn.precision_recall(0.5) == pytest.approx(judged.precision_recall(0.5, judged.weights(rows)))


def test_false_alarms_are_counted_by_image_above_the_threshold():
    detections = [found((0.9, 0, 0, 40, 40), (0.8, 100, 0, 140, 40), (0.3, 200, 0, 240, 40)), found()]
    truths = [Truth(boxes((0, 0, 40, 40)), boxes()), Truth(boxes(), boxes())]

    assert [1, 0] == judge(detections, truths, 32).false_alarms(0.5).tolist()


def row(origin, score, *box):
    return {
        "origin": origin,
        "score": score,
        **dict(zip(("x1", "y1", "x2", "y2"), map(str, box), strict=True)),
    }


def test_human_boxes_are_the_truth_where_there_are_any_and_scrfd_elsewhere():
    image = np.zeros((100, 200, 3), np.uint8)
    rows = [
        row("scrfd", "0.9", 0, 0, 40, 40),
        row("scrfd", "0.4", 60, 0, 90, 40),
        row("scrfd", "0.1", 5, 5, 9, 9),
    ]

    machine = judged_scene(image, rows).truth
    human = judged_scene(image, [*rows, row("human", "", 150, 60, 220, 90)]).truth

    assert ([[0, 0, 40, 40]], [[60, 0, 90, 40]]) == (machine.faces.tolist(), machine.ignored.tolist())
    assert [[150, 60, 200, 90]] == human.faces.tolist()
    assert 2 == len(human.ignored)


def test_painting_over_leaves_nothing_of_a_labelled_box_and_all_of_the_rest():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    scene = judged_scene(image, [row("yunet", "0.2", 20, 20, 50, 50)])

    covered = painted(scene, 3)

    changed = (covered != image).any(2)
    assert changed[22:48, 22:48].mean() > 0.9
    assert not changed[:, 60:].any() and not changed[55:].any()
    assert (covered == painted(scene, 3)).all()


WIDER = """0--Parade/a.jpg
3
10 12 30 40 0 0 0 0 0 0
100 20 8 9 2 0 0 1 2 0
50 50 0 0 0 0 0 0 0 0
1--Handshaking/none.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
1
5 6 20 30 0 0 0 0 0 0
"""


@pytest.fixture
def wider(tmp_path):
    (tmp_path / "wider_face_split").mkdir()
    for split in ("val", "train"):
        (tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt").write_text(WIDER)
        for name in ("0--Parade/a.jpg", "1--Handshaking/none.jpg", "1--Handshaking/b.jpg"):
            path = tmp_path / f"WIDER_{split}/images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return tmp_path


def test_wider_face_is_read_with_its_invalid_boxes_in_doubt(wider):
    first, none, second = load_wider(wider, "train", max_side=80)

    assert ([[5, 6, 20, 26]], [[50, 10, 54, 14.5]]) == (first.faces.tolist(), first.doubtful.tolist())
    assert ((60, 80, 3), 0, 1) == (first.image.shape, len(none.faces), len(second.faces))


@pytest.mark.parametrize("zeros", ["0 0 0 0 0 0 0 0 0 0\n", "0.0 0 0 0\n", ""])
def test_a_wider_picture_without_faces_may_have_a_line_of_zeros_or_none(tmp_path, zeros):
    none, one = f"none {{}}.jpg\n0\n{zeros}", "a.jpg\n1\n5 6 20 30 0 0 0 0 0 0\n"
    (tmp_path / "list.txt").write_text(none.format(1) + none.format(2) + one + none.format(3))

    entries = read_list(tmp_path / "list.txt")

    expected = [("none 1.jpg", 0), ("none 2.jpg", 0), ("a.jpg", 1), ("none 3.jpg", 0)]
    assert expected == [(entry.path, len(entry.faces)) for entry in entries]


@pytest.mark.parametrize(
    ("text", "words"),
    [("a.jpg\n2\n1 2 3 4\n", "'a.jpg' does not fit"), ("a.jpg\nmany\n", "'a.jpg'"), ("a.jpg\n", "'a.jpg'")],
)
def test_a_wider_list_that_does_not_fit_is_named(tmp_path, text, words):
    (tmp_path / "list.txt").write_text(text)

    with pytest.raises(MienError, match=words):
        read_list(tmp_path / "list.txt")


def test_a_missing_wider_picture_is_named(wider):
    (wider / "WIDER_val/images/1--Handshaking/b.jpg").unlink()

    with pytest.raises(MienError, match=r"b\.jpg is missing"):
        load_wider(wider, "val")


def test_the_detector_is_measured_on_wider_face_too(sets, wider, tmp_path):
    settings = [f"data={sets}", f"wider={wider}", "backend=eager", f"plots={tmp_path / 'plots'}"]
    figures = evaluate_recipe("detector", settings)

    assert any(name.startswith("AP of ours, 3 WIDER FACE val") for name in figures)
    assert {"precision_recall_held-out.png", "precision_recall_wider.png"} == {
        path.name for path in (tmp_path / "plots").iterdir()
    }


def test_the_detector_trains_on_wider_face_too(sets, wider, tmp_path):
    short = ["fit.epochs=1", "fit.steps_per_epoch=2", "fit.batch_size=4", "fit.threads=1", "limit=3"]
    folder = train_recipe(
        "detector", [f"data={sets}", f"wider={wider}", f"run={tmp_path}", "crop=96", *short]
    )

    assert (folder / "weights.safetensors").is_file()
    with pytest.raises(MienError, match=r"no WIDER_train/images nor images"):
        train_recipe("detector", [f"data={sets}", f"wider={sets}", f"run={tmp_path / 'none'}", *short])


def test_wider_face_alone_is_enough_to_train_and_to_measure(wider, tmp_path, capsys):
    alone = [f"data={tmp_path / 'none'}", f"wider={wider}"]
    short = ["fit.epochs=1", "fit.steps_per_epoch=2", "fit.batch_size=4", "fit.threads=1", "limit=3"]

    folder = train_recipe("detector", [*alone, f"run={tmp_path}", "crop=96", *short])
    figures = evaluate_recipe("detector", [*alone, "backend=eager", f"weights={folder.parent}"])

    assert "holds no scenes.zip, WIDER FACE is all there is" in capsys.readouterr().out
    assert any(name.startswith("AP of ours, 3 WIDER FACE val") for name in figures)
    assert not any("held-out scenes" in name for name in figures)
    for run in (train_recipe, evaluate_recipe):
        with pytest.raises(MienError, match=r"scenes\.zip.*set data=FOLDER"):
            run("detector", [alone[0], f"run={tmp_path / 'nothing'}"])


@pytest.mark.parametrize(
    ("settings", "which", "faces"),
    [([], "", 3), (["video_step=1"], ", every frame", 11), (["video_step=4"], ", one frame in 4", 3)],
)
def test_videos_are_judged_on_the_frames_that_are_asked_for(tmp_path, monkeypatch, settings, which, faces):
    for name in VIDEOS:
        write_clip(tmp_path / f"{name}.mp4", grey_levels(11, (320, 192)))
    monkeypatch.setattr(
        "trainers.evaluate_detector.YuNet", lambda path: lambda image: found((0.9, 40, 40, 120, 120))
    )
    config = override(EvaluationConfig(), [f"video={tmp_path}", "yunet=a.onnx", *settings])

    figures = video_rows(config, FakeDetector(), 0.5)

    expected = f"podium_640x360{which} against YuNet >= 0.6, faces >= 32 px"
    assert f"({faces} faces)" in figures[expected] and 6 == len(figures)


@pytest.mark.parametrize(("setting", "precision"), [("true", "1.000"), ("false", "0.500")])
def test_a_face_of_which_yunet_is_unsure_counts_against_ours_only_where_that_is_asked_for(
    tmp_path, monkeypatch, setting, precision
):
    """Ours finds two faces in each picture; YuNet is sure of one."""
    for name in VIDEOS:
        write_clip(tmp_path / f"{name}.mp4", grey_levels(3, (320, 192)))
    seen = found((0.9, 200, 40, 280, 120), (0.4, 40, 40, 120, 120))
    monkeypatch.setattr("trainers.evaluate_detector.YuNet", lambda path: lambda image: seen)
    ours = found((0.9, 200, 40, 280, 120), (0.8, 40, 40, 120, 120))
    monkeypatch.setattr("trainers.evaluate_detector.detect", lambda *_, **__: [ours])
    config = override(
        EvaluationConfig(), [f"video={tmp_path}", "yunet=a.onnx", "video_step=1", f"faint_ignored={setting}"]
    )

    figures = video_rows(config, FakeDetector(), 0.5)

    (row,) = [text for name, text in figures.items() if "podium" in name and ">= 32 px" in name]
    assert f"precision {precision}" in row and "recall 1.000" in row


def test_a_step_that_no_frame_fits_is_refused():
    with pytest.raises(UsageError, match="video_step=0: must be 1"):
        evaluate_recipe("detector", ["video_step=0"])


def test_a_doubtful_face_of_one_tile_is_none_of_the_next():
    image = np.zeros((100, 100, 3), np.uint8)
    scene = Scene("a", image, boxes(), boxes((30, 30, 70, 70), (60, 10, 90, 20)))

    _, sure, doubtful = cut(scene, 1.0, np.zeros(2), 50)

    assert 0 == len(sure)
    assert [[30, 30, 50, 50]] == doubtful.tolist()
