"""The GPU's script, tried on the CPU: it measures, keeps what it has, and goes on where it ended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu, gpu_chain, gpu_engines
from engines.image_ops_torch import TorchOps
from engines.runtime import load_face_engines

ROOT = Path(__file__).parents[1]


def measured(out):
    return json.loads((out / "gpu.json").read_text())


def run(out, *more, engines="eager:f32", parts="engines"):
    asked = ["--device", "cpu", "--models", "embedder", "--engines", engines, "--parts", parts]
    return gpu.main([*asked, "--batches", "1,2", "--seconds", "0.02", "--out", str(out), *more])


def test_an_engine_is_proved_timed_and_set_beside_the_roof(tmp_path, capsys):
    assert 0 == run(tmp_path, engines="eager:f32,eager:bf16")

    exact, rough = (measured(tmp_path)[f"engine eager {precision} embedder"] for precision in ("f32", "bf16"))
    assert [1, 2] == [row["batch"] for row in exact]
    assert max(row["parity"] for row in exact) < 1e-4 < max(row["parity"] for row in rough) < 0.1
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["pictures_s"] > 0 for row in exact + rough)
    assert exact[1]["gflops"] == pytest.approx(2 * exact[0]["gflops"], abs=0.01)
    assert "embedder" in capsys.readouterr().out


def test_time_that_is_up_ends_a_call_and_the_next_goes_on(tmp_path, capsys):
    run(tmp_path, "--limit", "-1")
    assert ["machine"] == list(measured(tmp_path)) if (tmp_path / "gpu.json").exists() else True
    assert "1 steps to go" in capsys.readouterr().err

    run(tmp_path)
    first = measured(tmp_path)
    run(tmp_path, engines="eager:f32,tensorrt:f16")

    again = measured(tmp_path)
    assert first["engine eager f32 embedder"] == again["engine eager f32 embedder"]
    assert "tensorrt" in again["engine tensorrt f16 embedder"][0]["error"]


@pytest.mark.parametrize("faces", [1, 4, 16])
def test_every_face_of_the_wall_goes_through_the_chain(faces):
    engines = load_face_engines(backend="eager", device="cpu", threads=1)

    image = gpu_chain.wall_of_faces(faces, (1280, 720))

    assert faces == gpu_chain.chain(engines, [image], TorchOps("cpu"))


def test_operations_are_counted_for_every_network():
    gflops = {model: gpu_engines.counted(model)[0] / 1e9 for model in gpu.MODELS}

    assert all(0.05 < value < 20 for value in gflops.values())


def test_streams_are_served_until_the_latency_says_no(monkeypatch):
    def slow(engines, images, ops):  # 5 ms a frame: eight streams of 25 frames/s keep it busy
        gpu_chain.time.sleep(0.005 * len(images))

    monkeypatch.setattr(gpu_chain, "chain", slow)

    served = gpu_chain.streams_served(None, None, 1, (1280, 720), 0.4)["streams"]

    assert 1 <= served <= 8


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU here")

    assert 1 == gpu.main(["--out", str(tmp_path)])
    assert "--device cpu" in capsys.readouterr().err


def test_the_script_and_the_trainers_need_only_what_a_gpu_machine_has():
    code = (
        "import sys; import bench.gpu, bench.gpu_report, trainers.commands, trainers.budget, trainers.recipes;"
        "heavy = ('hydra', 'mlflow', 'pydantic', 'structlog', 'zmq', 'msgspec', 'openvino', 'av');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert "[]" == found.stdout.strip()
