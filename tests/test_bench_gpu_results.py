"""What bench.gpu keeps, compares and tells people, without running a network."""

import json
import time

import numpy as np
import pytest

from bench import gpu_report, gpu_results
from bench.gpu_chain import Told
from bench.gpu_equality import deviations
from bench.gpu_results import Results, earlier
from engines.errors import MienError
from engines.stages import AttributeScores

EMOTIONS = np.eye(8, dtype=np.float32)[[3, 5, 3]]


def telling(order=(0, 1, 2), shift=0.0, emotion=EMOTIONS, female=(0.9, 0.1, 0.55)):
    """Two faces in one picture and one in the next; `order` is that of the first picture's faces and the last."""
    order = list(order)
    boxes = np.float32([[0, 0, 100, 100], [200, 0, 300, 100], [0, 0, 100, 100]]) + shift
    points = boxes[:, None, :2] + np.float32([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]])
    return Told(
        [2, 1],
        boxes[order],
        points[order],
        np.eye(3, 16, dtype=np.float32)[order],
        AttributeScores(np.float32([20, 40, 60])[order], np.float32(female)[order], emotion[order]),
    )


def test_the_same_faces_in_another_order_do_not_deviate():
    assert {0.0} == {
        value for name, value in deviations(telling(), telling((1, 0, 2))).items() if name != "faces"
    }


def test_each_face_is_compared_with_itself_and_what_differs_is_told():
    wrong = EMOTIONS.copy()
    wrong[1] = np.roll(wrong[1], 1)

    found = deviations(telling(), telling((1, 0, 2), 2.0, wrong, (0.9, 0.6, 0.45)))

    assert (2.0, 0.02, 2.0, 0.05) == tuple(
        found[name] for name in ("box_px", "box_share", "landmark_px", "landmark_share")
    )
    assert pytest.approx(1 / 3, abs=1e-4) == found["emotion_differ_clear"]
    assert pytest.approx(1 / 3, abs=1e-4) == found["gender_differ_clear"]  # 0.55 is not clear


def test_faces_in_other_places_are_not_compared():
    with pytest.raises(MienError, match="other places"):
        deviations(telling(), telling(shift=80.0))


def test_after_the_gpu_is_lost_nothing_more_is_tried(tmp_path, monkeypatch, capsys):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_results.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_results.torch.cuda, "synchronize", lost)
    results = Results(tmp_path / "gpu.json", time.monotonic() + 60)

    assert "illegal memory" in results.step("a", lost)["error"]
    assert results.step("b", lost) is None
    assert {"b"} == results.left and "--keep-errors" in capsys.readouterr().err

    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert {"x": 1} == Results(tmp_path / "gpu.json", results.until + 60, True, kept).step(
        "b", lambda: {"x": 1}
    )


@pytest.mark.parametrize("text", ['{"machine": {"gpu": "H200 (sm_90)"}, "peak f16": {}}', "{"])
def test_another_gpu_s_figures_and_damaged_ones_are_laid_aside(tmp_path, text):
    path = tmp_path / "gpu.json"
    path.write_text(text)

    assert {} == earlier(path, "H100 (sm_90)")
    assert text == (tmp_path / "gpu_before.json").read_text() and not path.exists()


def row(backend, graphs, pictures_s, precision="f16"):
    named = {"model": "embedder", "backend": backend, "precision": precision, "graphs": graphs}
    return named | {"batch": 8, "pictures_s": pictures_s}


def test_engines_are_set_beside_eager_without_graphs(tmp_path, capsys):
    rows = {
        "machine": {"gpu": "H100"},
        "engine eager f16 embedder": [row("eager", False, 100.0), row("eager", True, 180.0)],
        "engine aot_inductor f16 embedder": [
            row("aot_inductor", False, 150.0),
            row("aot_inductor", True, 250.0),
        ],
        "engine eager f32 embedder": [row("eager", False, 50.0, "f32")],
        "engine tensorrt f16 embedder": {"error": "MienError: not installed"},
        "chain eager f16 1280x720 1 faces 1": {
            "kind": "eager f16",
            "faces": 1,
            "size": "1280x720",
            "frames": 1,
        }
        | {"frames_s": 300.0, "p50_ms": 3.5, "p99_ms": 9.0},
    }
    (tmp_path / "gpu.json").write_text(json.dumps(rows))

    assert 0 == gpu_report.main([str(tmp_path / "gpu.json")])

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first = lines.index("model engine 8")
    assert [
        "embedder eager with CUDA graphs 1.80",
        "embedder aot_inductor 1.50",
        "embedder aot_inductor with CUDA graphs 2.50",
    ] == lines[first + 1 : first + 4]
    assert "engine tensorrt f16 embedder: MienError: not installed" in lines
    assert "eager f16, one frame: p50 3.5 ms (wanted: 4), p99 9.0 ms (wanted: 8)" in lines
