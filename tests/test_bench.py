import json
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import composition, precision_accuracy, side_by_side
from bench.wall import SIZE, nine_faces
from daemon.bench import Bench, over_and_over
from daemon.bench_tables import show
from daemon.cli import app
from daemon.commands.bench import CLIP
from daemon.config import CameraConfig, Config
from daemon.timing import summed_up, timed
from engines.errors import MienError
from tests.clips import grey_levels, write_clip
from tests.fakes import ANN, BOB, fake_engines, walk


@pytest.fixture
def clip(tmp_path):
    paths = [(ANN, 20, 60), (ANN, 60, 60)], [(BOB, 200, 60), (BOB, 180, 60)]
    return write_clip(tmp_path / "two.mp4", [frame.image for frame in walk(*paths, num=12)])


def bench(clip, **options):
    engines = fake_engines()
    config = Config.model_validate({"publish": {"embeddings": True}})
    camera = CameraConfig(name="template", source="none")
    return Bench(clip, engines, config, camera, **{"seconds": 0.05, "batch": 4, "cameras": 2} | options)


def test_every_stage_is_measured_alone_and_in_batches(clip):
    found = bench(clip).run()

    batches = {(row["name"], row["batch"]) for row in found["stages"]}
    assert {("decode", 1), ("letterbox + detect", 1), ("letterbox + detect", 2)} <= batches
    assert {
        (name, num) for name in ("landmarks", "align (two crops)", "embed", "attributes") for num in (1, 4)
    } <= batches
    for row in found["stages"]:
        assert row["calls"] >= 5 and 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["per_second"] == pytest.approx(row["batch"] * 1000 / row["mean_ms"], rel=0.02)


def test_the_chains_figures_agree_with_each_other_and_with_the_clip(clip):
    found = bench(clip).run()

    assert (found["clip"]["width"], found["clip"]["height"], found["clip"]["frames_held"]) == (320, 192, 12)
    assert [1, 1, 1, 1, 2] == [row["cameras"] for row in found["chain"]]
    for row in found["chain"]:
        assert row["frames_per_s"] == pytest.approx(row["frames"] / row["seconds"], rel=0.02)
        assert row["faces_per_s"] == pytest.approx(row["faces"] / row["seconds"], rel=0.02)
        assert row["faces"] == pytest.approx(2 * row["frames"], rel=0.2)
        assert 0 < row["p50_ms"] <= row["p99_ms"] < row["seconds"] * 1000
    assert found["memory"]["peak_resident_mb"] > 50
    assert found["machine"]["cores"] >= 1 and "numpy" in found["machine"]["packages"]


def test_the_tables_hold_every_row(clip, capsys):
    found = bench(clip).run()
    show(found, Console(width=120))

    told = capsys.readouterr().out
    for row in [*found["stages"], *found["chain"]]:
        assert row["name"] in told
    assert "two.mp4: 320x192" in told and "peak resident memory" in told


def test_a_clip_without_faces_is_an_error_in_words(tmp_path):
    with pytest.raises(MienError, match=r"empty\.mp4: shows no face; name a clip that does"):
        bench(write_clip(tmp_path / "empty.mp4", grey_levels(6, (320, 192)))).run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "--seconds 0: must be above 0"),
        (["--precision", "int3"], "--precision 'int3'"),
        (["missing.mp4"], "missing.mp4: no such file"),
        (["--backend", "openvino", "--device", "cuda"], "openvino runs on cpu"),
    ],
)
def test_wrong_options_are_errors_in_words(arguments, words):
    result = CliRunner().invoke(app, ["bench", *arguments])

    assert isinstance(result.exception, MienError)
    assert words in str(result.exception)


def test_the_command_measures_the_shipped_clip_with_real_engines(tmp_path, monkeypatch):
    result = CliRunner().invoke(app, ["bench", "--seconds", "0.05", "--batch", "2", "--json"])

    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["clip"]["file"] == "two_people.mp4"
    assert found["engines"]["detector"].startswith("openvino cpu f32")
    assert all(row["faces"] >= row["frames"] > 0 for row in found["chain"])


def test_a_timing_is_what_was_measured():
    timing = summed_up("x", 4, [0.010, 0.020, 0.030])

    assert {
        "name": "x",
        "batch": 4,
        "calls": 3,
        "p50_ms": 20.0,
        "mean_ms": 20.0,
        "per_second": 200.0,
    }.items() <= (asdict(timing).items())


def test_a_slow_call_is_still_made_often_enough():
    calls = []
    timing = timed("x", 1, lambda: calls.append(1), seconds=0.0)

    assert (5, 7) == (timing.calls, len(calls))


def test_held_frames_go_on_in_time_without_end():
    frames = walk([(ANN, 20, 60), (ANN, 60, 60)], num=5)

    times = [frame.time_ns for frame in islice(over_and_over(frames), 12)]
    assert times == sorted(set(times))


def test_the_wall_shows_the_strip_three_times_over():
    strip = np.zeros((90, 270, 3), np.uint8)
    strips = [strip + 10, strip + 20, strip + 30]

    wall = nine_faces(strips, 0)

    assert SIZE == (wall.shape[1], wall.shape[0])
    assert [10, 20, 30] == sorted({int(value) for value in wall[:, 640, 0]}, key=int)


def test_the_comparison_says_which_file_it_lacks(tmp_path, capsys):
    code = side_by_side.main(
        ["--video", str(CLIP), "--teachers", str(tmp_path), "--systems", composition_name(), "--frames", "1"]
    )

    assert (1, True) == (code, "yunet_n_dynamic.onnx: missing; --teachers is" in capsys.readouterr().err)


def composition_name():
    return next(name for name in side_by_side.NAMES if name.startswith("composition"))


def test_yunets_boxes_and_points_are_decoded_in_pixels():
    outputs = [np.zeros((1, (64 // s) ** 2, n), np.float32) for n in (1, 1, 4, 10) for s in (8, 16, 32)]
    outputs[0][0, 9], outputs[3][0, 9] = 0.81, 1.0  # stride 8, row 1, column 1
    outputs[6][0, 9] = (0.5, 0.5, np.log(2), np.log(3))
    outputs[9][0, 9] = np.arange(10) / 10

    found = composition.YuNet._decoded(None, outputs, 64, 0.5)

    assert found.boxes_xyxy.tolist() == [pytest.approx([8, 0, 40, 48], abs=1e-4)]
    assert found.scores.tolist() == [pytest.approx(0.9)]
    assert found.landmarks[0, 1].tolist() == pytest.approx([(0.2 + 1) * 16, (0.3 + 1) * 16])


def test_only_what_was_measured_is_judged_and_a_worse_figure_is_not_within():
    reference = {precision_accuracy.NME: 4.0, "FR@10 %, %": 2.0}

    verdicts = [precision_accuracy.verdict(reference, {precision_accuracy.NME: nme}) for nme in (4.08, 4.09)]

    assert [{precision_accuracy.NME: True}, {precision_accuracy.NME: False}] == verdicts
