"""The GPU's script, tried on the CPU: it measures, keeps what it has, and goes on where it ended."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu, gpu_chain, gpu_engines, gpu_equality
from engines.image_ops_torch import TorchOps
from engines.runtime import load_face_engines

ROOT = Path(__file__).parents[1]
SMALL = (640, 360)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads beside other work wait for each other far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_small_face(monkeypatch):
    """The chain at its smallest: one picture of one face."""
    monkeypatch.setattr(gpu, "FRAMES", {"cpu": (1,)})
    monkeypatch.setattr(gpu, "FACES", (1,))
    monkeypatch.setattr(gpu, "SIZES", (SMALL,))
    monkeypatch.setattr(gpu_equality, "WALLS", ((1, SMALL),))
    gpu_equality.told_on_the_host.cache_clear()
    yield
    gpu_equality.told_on_the_host.cache_clear()


def measured(out):
    return json.loads((out / "gpu.json").read_text())


def run(out, *more, engines="eager:f32", parts="engines"):
    asked = ["--device", "cpu", "--models", "embedder", "--engines", engines, "--parts", parts]
    return gpu.main([*asked, "--batches", "1,2", "--seconds", "0.02", "--out", str(out), *more])


def refuse(monkeypatch, precision, error):
    """No engine of this precision loads."""
    real = gpu_engines.load_engine

    def load_engine(model, **options):
        if options["precision"] == precision:
            raise error
        return real(model, **options)

    monkeypatch.setattr(gpu_engines, "load_engine", load_engine)


def test_an_engine_is_proved_timed_and_set_beside_the_roof(tmp_path, capsys):
    assert 0 == run(tmp_path, engines="eager:f32,eager:bf16")

    exact, rough = (measured(tmp_path)[f"engine eager {precision} embedder"] for precision in ("f32", "bf16"))
    assert [1, 2] == [row["batch"] for row in exact]
    assert max(row["parity"] for row in exact) < 1e-4 < max(row["parity"] for row in rough) < 0.1
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["pictures_s"] > 0 for row in exact + rough)
    assert exact[1]["gflops"] == pytest.approx(2 * exact[0]["gflops"], abs=0.01)
    assert not torch.backends.cudnn.allow_tf32
    assert "embedder" in capsys.readouterr().out
    assert gpu.cv2.__version__ == measured(tmp_path)["machine"]["versions"]["cv2"]


def test_time_that_is_up_ends_a_call_and_the_next_goes_on(tmp_path, capsys):
    run(tmp_path, "--limit", "-1")
    assert ["machine"] == list(measured(tmp_path))
    assert "2 steps to go" in capsys.readouterr().err  # the peak, and the engine

    run(tmp_path)
    first = measured(tmp_path)
    run(tmp_path, engines="eager:f32,tensorrt:f16")

    again = measured(tmp_path)
    assert first["engine eager f32 embedder"] == again["engine eager f32 embedder"]
    assert "tensorrt" in again["engine tensorrt f16 embedder"]["error"]


def test_an_engine_that_fails_is_a_row_and_is_measured_again(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        refuse(patched, "bf16", TypeError("no such operator\nand a page of text"))
        assert 0 == run(tmp_path, engines="eager:bf16,eager:f32")
    wrong = {"error": "TypeError: no such operator"}
    assert wrong == measured(tmp_path)["engine eager bf16 embedder"]
    assert 2 == len(measured(tmp_path)["engine eager f32 embedder"])
    assert "engine eager bf16 embedder: TypeError: no such operator\n" in capsys.readouterr().out

    run(tmp_path, "--keep-errors", engines="eager:bf16,eager:f32")
    assert wrong == measured(tmp_path)["engine eager bf16 embedder"]

    run(tmp_path, engines="eager:bf16,eager:f32")
    assert 2 == len(measured(tmp_path)["engine eager bf16 embedder"])


def test_an_engine_that_fails_in_a_batch_keeps_its_other_rows(tmp_path, monkeypatch):
    real = gpu_engines.time_engine

    def time_engine(engine, batch, *more):
        assert batch == 1, "too large"
        return real(engine, batch, *more)

    monkeypatch.setattr(gpu_engines, "time_engine", time_engine)

    run(tmp_path)

    good, bad = measured(tmp_path)["engine eager f32 embedder"]
    assert good["pictures_s"] > 0 and "AssertionError: too large" in bad["error"]


def test_a_build_is_not_begun_when_little_time_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_engines, "build_engine", lambda request: pytest.fail("begun"))

    run(tmp_path, "--limit", str(gpu_engines.BUILD_S - 1), engines="aot_inductor:f32")

    assert "engine aot_inductor f32 embedder" not in measured(tmp_path)
    assert "1 steps to go" in capsys.readouterr().err


def test_an_engine_from_the_cache_is_loaded_in_no_less_than_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_engines, "why_unusable", lambda request: None)
    monkeypatch.setattr(
        gpu_engines, "EngineManifest", SimpleNamespace(load=lambda _: SimpleNamespace(build_seconds=300))
    )
    monkeypatch.setattr(gpu_engines, "load_engine", lambda model, **options: "an engine")
    kind = gpu.kind_of("aot_inductor:f32", "cpu")

    loaded = gpu_engines.load("embedder", kind, gpu_engines.Settings("cpu", (1,), 0.1, tmp_path, 0.0))

    assert ("an engine", 300) == (loaded.engine, loaded.build_s)
    assert 0 <= loaded.load_s < 10


def test_the_chain_goes_to_the_next_kind_where_one_fails(tmp_path, monkeypatch, one_small_face):
    refuse(monkeypatch, "bf16", ImportError("no triton here"))

    run(tmp_path, engines="eager:bf16,eager:f32", parts="chain")

    rows = measured(tmp_path)
    assert "ImportError: no triton here" == rows["chain eager bf16 640x360 1 faces 1"]["error"]
    assert rows["chain eager f32 640x360 1 faces 1"]["frames_s"] > 0
    assert (1, "") == tuple(rows["equality eager f32"][name] for name in ("faces", "beyond"))
    assert "error" in rows["equality eager bf16"]


@pytest.mark.parametrize(
    ("shown", "words"), [(0, "finds no face in 1 pictures"), (2, "finds [2] faces in pictures of [1]")]
)
def test_a_chain_that_finds_other_faces_than_there_are_is_no_fast_chain(
    tmp_path, monkeypatch, one_small_face, capsys, shown, words
):
    real = gpu_chain.wall_of_faces
    monkeypatch.setattr(
        gpu_chain, "wall_of_faces", lambda faces, size: real(max(shown, 1), size) * bool(shown)
    )

    assert 0 == run(tmp_path, parts="chain,streams,images")

    rows = measured(tmp_path)
    assert f"MienError: the chain {words}" == rows["chain eager f32 640x360 1 faces 1"]["error"]
    assert "levels_apart" in rows["images 640x360 1"]
    assert not [key for key in rows if key.startswith("streams")]
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("faces", [1, 4, 16])
def test_every_face_of_the_wall_goes_through_the_chain(faces):
    engines = load_face_engines(backend="eager", device="cpu", threads=1)

    told = gpu_chain.chain(engines, [gpu_chain.wall_of_faces(faces, (1280, 720))], TorchOps("cpu"))

    assert [faces] == told.found
    assert {faces} == {len(told.boxes_xyxy), len(told.landmarks), len(told.embeddings)}
    assert faces == len(told.attributes.age_years)


def test_what_targets_are_set_for_comes_first_and_streams_last(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "load", lambda *_: SimpleNamespace(engine=None))
    monkeypatch.setattr(gpu, "peaks", lambda *_: {"tflops": 1.0, "gb_s": 1.0})
    speeds = {"eager f32": 1.0, "aot_inductor f32": 5.0, "eager bf16": 9.0}
    monkeypatch.setattr(gpu, "measure_engine", lambda model, kind, *_: engine_rows(kind, speeds[str(kind)]))
    monkeypatch.setattr(gpu, "measure_chain", lambda *_: {"faces": 0, "size": ""})
    monkeypatch.setattr(gpu, "measure_equality", lambda *_: {})
    monkeypatch.setattr(gpu, "measure_images", lambda *_: {})
    monkeypatch.setattr(gpu, "streams_served", lambda *_: {})

    run(tmp_path, engines="eager:f32,eager:bf16,aot_inductor:f32", parts=",".join(gpu.PARTS))

    keys = list(measured(tmp_path))
    chain, images = keys.index("chain aot_inductor f32 1280x720 1 faces 1"), keys.index("images 1280x720 1")
    assert ["machine", "chain eager f32 1280x720 1 faces 1"] == keys[:2]
    assert keys.index("engine eager f32 embedder") < keys.index("engine aot_inductor f32 embedder") < chain
    assert chain < keys.index("engine eager bf16 embedder") < images < keys.index("equality eager bf16")
    streams = [key.startswith("streams aot_inductor f32") for key in keys]
    assert 6 == sum(streams) and all(streams[-6:])


def engine_rows(kind, pictures_s):
    row = {"model": "embedder", "backend": kind.backend, "precision": kind.precision, "graphs": False}
    return [row | {"batch": 1, "error": "OutOfMemoryError: "}, row | {"batch": 2, "pictures_s": pictures_s}]


def test_streams_are_served_until_the_latency_says_no(monkeypatch):
    def slow(engines, images, ops):  # 5 ms a frame: eight streams of 25 frames/s keep it busy
        gpu_chain.time.sleep(0.005 * len(images))
        return SimpleNamespace(found=[1] * len(images))

    monkeypatch.setattr(gpu_chain, "chain", slow)

    served = gpu_chain.streams_served(None, None, 1, (1280, 720), 0.4)["streams"]

    assert 1 <= served <= 8


def test_operations_are_counted_for_every_network():
    gflops = {model: gpu_engines.counted(model)[0] / 1e9 for model in gpu.MODELS}

    assert all(0.05 < value < 20 for value in gflops.values())


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU here")

    assert 1 == gpu.main(["--out", str(tmp_path)])
    assert "--device cpu" in capsys.readouterr().err


REFUSED = ("hydra", "mlflow", "pydantic", "structlog", "zmq", "msgspec", "openvino", "av")


def test_the_script_runs_with_torch_numpy_opencv_and_safetensors_alone(tmp_path):
    refused = (*REFUSED, "rich", "torchvision", "typer", "yaml", "scipy", "matplotlib", "daemon")
    asked = ["--device", "cpu", "--models", "embedder", "--engines", "eager:f32", "--parts", "engines"]
    asked += ["--batches", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({refused}));"
        f"from bench import gpu; import tests.test_gpu; sys.exit(gpu.main({asked}))"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert "pictures_s" in found.stdout and "Traceback" not in found.stderr


def test_the_trainers_need_only_what_a_gpu_machine_has():
    code = (
        "import sys; import trainers.commands, trainers.budget, trainers.recipes;"
        f"print([name for name in {REFUSED} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert "[]" == found.stdout.strip()
