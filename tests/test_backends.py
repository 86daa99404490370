"""Every backend beside eager, what a machine can run, and builders that are killed, crowded or out of room."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines import machine
from engines.backends import openvino, openvino_bf16
from engines.build import build_engine
from engines.calibration import calibration_batch
from engines.errors import MienError, UsageError
from engines.manifest import EngineManifest
from engines.request import MODELS
from engines.runtime import load_engine, resolve, why_unusable
from engines.spec import ModelSpec
from tests.processes import child

ROOT = Path(__file__).parents[1]
SPEC = ModelSpec(
    "landmarks", "landmarks", "StackedHourglass", {"stacks": 1, "channels": 16}, (64, 64), ("heatmaps",)
)
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor builds with g++")
has_bf16 = bool(machine.cpu_flags() & machine.BF16_FLAGS)


@pytest.fixture(scope="module")
def weights(untrained):
    return untrained(SPEC)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def pictures(n):
    return np.random.default_rng(1).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("backend", "precision", "limit"),
    [
        pytest.param("aot_inductor", "f32", 1e-4, marks=needs_gxx),
        pytest.param(
            "openvino",
            "bf16",
            0.1,
            marks=pytest.mark.skipif(not has_bf16, reason="this CPU computes no bf16"),
        ),
        ("openvino", "int8", 0.25),
        ("eager", "bf16", 0.1),
    ],
)
def test_a_backend_agrees_with_eager_at_any_batch(weights, shared_cache, backend, precision, limit):
    if precision == "int8":
        pytest.importorskip("nncf")
    eager = load_engine("landmarks", backend="eager", device="cpu", weights=weights)
    engine = load_engine(
        "landmarks", backend=backend, device="cpu", precision=precision, weights=weights, cache=shared_cache
    )

    for count in (1, 3):
        want, got = eager(pictures(count))["heatmaps"], engine(pictures(count))["heatmaps"]
        assert want.shape == got.shape
        assert 0 < np.abs(want - got).max() <= limit * np.abs(want).max()
    assert (backend, precision) == (engine.backend, engine.precision)


@needs_gxx
def test_a_compiled_package_is_loaded_in_a_new_process_without_a_compiler(weights, shared_cache):
    load_engine("landmarks", backend="aot_inductor", device="cpu", weights=weights, cache=shared_cache)

    result = child(
        "from pathlib import Path; import numpy as np; from engines.runtime import load_engine\n"
        f"engine = load_engine('landmarks', backend='aot_inductor', device='cpu', rebuild='never', "
        f"weights=Path({str(weights)!r}), cache=Path({str(shared_cache)!r}))\n"
        "print(engine(np.zeros((2, 64, 64, 3), np.uint8))['heatmaps'].shape)",
        CXX="/bin/false",
        PATH="",
    )

    assert "(2, 5, 16, 16)" == result.stdout.strip(), result.stderr


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_last_convolution_is_computed_in_float32(weights, shared_cache, precision):
    if precision == "bf16" and not has_bf16:
        pytest.skip("this CPU computes no bf16")
    pytest.importorskip("openvino" if precision == "bf16" else "nncf")
    load_engine("landmarks", backend="openvino", weights=weights, cache=shared_cache, precision=precision)
    folder = resolve("landmarks", "openvino", None, weights, shared_cache, precision=precision).folder

    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    compiled = openvino.core().import_model((folder / openvino.MODEL_FILE).read_bytes(), "CPU", hint)

    computed = {
        node.get_output_partial_shape(0)[1].get_length(): str(
            node.get_rt_info()["runtimePrecision"].astype(str)
        )
        for node in compiled.get_runtime_model().get_ordered_ops()
        if "onvolution" in str(node.get_rt_info()["layerType"].astype(str))
    }  # by the channels it yields
    assert ("f32", {"bf16": "bf16", "int8": "u8"}[precision]) == (computed[5], computed[16])


def test_int8_says_what_its_ranges_were_measured_on(weights, shared_cache):
    pytest.importorskip("nncf")
    load_engine("landmarks", backend="openvino", precision="int8", weights=weights, cache=shared_cache)
    request = resolve("landmarks", "openvino", None, weights, shared_cache, precision="int8")

    told = EngineManifest.load(request.folder).calibration

    assert ("the shipped portraits", 2, 96) == (told["pictures"], told["faces"], told["crops"])


def test_a_folder_of_pictures_gives_the_calibration_its_faces(tmp_path):
    shutil.copy(ROOT / "samples" / "grace_hopper.jpg", tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")

    crops, told = calibration_batch("embedder", (112, 112), tmp_path)

    assert (1, str(tmp_path)) == (told["faces"], told["pictures"])
    assert len(crops) == len({crop.tobytes() for crop in crops}) == told["crops"]


def test_of_very_many_pictures_some_from_all_of_them_calibrate(tmp_path, monkeypatch):
    monkeypatch.setattr("engines.calibration.MOST_PICTURES", 2)
    for name in ("a.jpg", os.fsdecode(b"caf\xe9.jpg")):
        shutil.copy(ROOT / "samples" / "grace_hopper.jpg", tmp_path / name)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "nowhere")

    assert 2 == calibration_batch("embedder", (112, 112), tmp_path)[1]["faces"]


def test_an_engine_built_anew_is_calibrated_as_before_and_says_so_where_it_cannot_be(weights, tmp_path):
    pytest.importorskip("nncf")
    faces = tmp_path / "faces"
    faces.mkdir()
    shutil.copy(ROOT / "samples" / "grace_hopper.jpg", faces)
    request = resolve("landmarks", "openvino", None, weights, tmp_path / "cache", precision="int8")
    told = []

    def anew():
        (request.folder / "manifest.json").write_text(
            (request.folder / "manifest.json").read_text().replace('"cpu_isa": "', '"cpu_isa": "another ')
        )
        precise = {"backend": "openvino", "precision": "int8", "rebuild": "when_needed"}
        load_engine("landmarks", weights=weights, cache=tmp_path / "cache", progress=told.append, **precise)
        return EngineManifest.load(request.folder).calibration

    first = build_engine(request, faces).calibration
    assert (str(faces), first) == (first["pictures"], anew())

    shutil.rmtree(faces)
    assert "the shipped portraits" == anew()["pictures"] == anew()["pictures"]
    lost = [words for words in told if "calibrated on the shipped portraits; it was on" in words]
    assert 5 == len(told) and 2 == len(lost)  # told each time
    assert f"it was on {faces} before ({faces}: no pictures to calibrate on" in lost[0]


def test_a_folder_without_a_face_is_refused_in_words(tmp_path):
    with pytest.raises(MienError, match="no pictures to calibrate on"):
        calibration_batch("embedder", (112, 112), tmp_path)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ({"backend": "openvino", "precision": "f16"}, "has no precision f16; it has f32, bf16, int8"),
        ({"backend": "openvino", "device": "cuda"}, "runs on cpu, not on cuda"),
        ({"backend": "tensorrt", "device": "cpu"}, "runs on cuda, not on cpu"),
        ({"backend": "eager", "device": "tpu"}, "not one of auto, cpu, cuda"),
    ],
)
def test_what_a_backend_cannot_do_is_wrong_use(weights, words, wrong):
    with pytest.raises(UsageError, match=wrong):
        resolve("landmarks", weights=weights, **words)


def clocked(monkeypatch, **seconds):
    """Seconds that convolutions take in each precision; the list that comes back grows each time they are timed."""
    timed = []

    def fake():
        timed.append(seconds)
        return seconds

    monkeypatch.setattr(openvino_bf16, "_seconds", fake)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    return timed


@pytest.mark.parametrize(("seconds", "coarse"), [(0.6, "bf16"), (0.95, "f32"), (2.0, "f32")])
def test_auto_is_bf16_where_the_cpu_is_faster_in_it_but_never_for_where_a_face_is(
    monkeypatch, tmp_path, seconds, coarse
):
    clocked(monkeypatch, f32=1.0, bf16=seconds)
    expected = {"detector": "f32", "landmarks": "f32", "embedder": coarse, "attributes": coarse}

    assert expected == {model: resolve(model, "openvino", cache=tmp_path).precision for model in MODELS}
    assert {"f32"} == {resolve(model, "aot_inductor", device="cpu").precision for model in MODELS}
    assert resolve("embedder", "openvino", precision="f32").precision == "f32"


def test_a_cpu_without_bf16_is_not_timed(monkeypatch, tmp_path):
    timed = clocked(monkeypatch, f32=1.0, bf16=0.1)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))

    assert "f32" == resolve("embedder", "openvino", cache=tmp_path).precision and not timed


def test_a_cpu_is_timed_once_and_anew_where_what_is_kept_does_not_fit(monkeypatch, tmp_path):
    timed = clocked(monkeypatch, f32=1.0, bf16=0.5)

    assert [2.0, 2.0] == [openvino_bf16.gain(tmp_path), openvino_bf16.gain(tmp_path)] and 1 == len(timed)
    (tmp_path / openvino_bf16.FILE).write_text("{", encoding="utf-8")
    assert 2.0 == openvino_bf16.gain(tmp_path) and 2 == len(timed)
    monkeypatch.setattr(machine, "version", lambda _: "another")
    assert 2.0 == openvino_bf16.gain(tmp_path) and 3 == len(timed)
    (tmp_path / "a file").touch()
    assert 2.0 == openvino_bf16.gain(tmp_path / "a file") and 4 == len(timed)


@pytest.mark.skipif(not has_bf16, reason="this CPU computes no bf16")
def test_the_clock_runs_real_convolutions(tmp_path):
    pytest.importorskip("openvino")

    assert 0.05 < openvino_bf16.gain(tmp_path) < 20
    assert (
        json.loads((tmp_path / openvino_bf16.FILE).read_text(encoding="utf-8"))["cpu"] == machine.cpu_name()
    )


def test_mixed_is_int8_for_what_reads_a_face_and_auto_for_where_it_is():
    chosen = {model: resolve(model, "openvino", precision="mixed").precision for model in MODELS}

    auto = {model: resolve(model, "openvino").precision for model in ("detector", "landmarks")}
    assert auto | {"embedder": "int8", "attributes": "int8"} == chosen
    with pytest.raises(UsageError, match="has no precision int8"):
        resolve("detector", "eager", device="cpu", precision="mixed")


BUILD = """
import sys
from pathlib import Path
from engines.build import build_engine
from engines.runtime import resolve
request = resolve("landmarks", "openvino", None, Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(build_engine(request, force=False).built_at, flush=True)
"""


ASKED = """
import sys
asked = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and asked.append(args))
from pathlib import Path
from engines.build import build_engine
from engines.runtime import resolve
weights, cache, precision = sys.argv[1:]
request = resolve("landmarks", "openvino", None, Path(weights), Path(cache), precision=precision)
build_engine(request, force=True)
print(asked)
"""


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_building_an_engine_calls_nobody(weights, tmp_path, precision):
    """OpenVINO's converter and NNCF tell Google Analytics of their use, with a number kept in the user's home."""
    if precision == "int8":
        pytest.importorskip("nncf")
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}

    done = subprocess.run(
        [sys.executable, "-c", ASKED, weights, tmp_path / "cache", precision],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=True,
    )

    assert "[]" == done.stdout.splitlines()[-1]
    assert [] == list(home.rglob("*_cid"))


def builder(weights, cache):
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, weights, cache],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert "ready\n" == process.stdout.readline()
    return process


def test_two_builders_at_once_build_one_engine_and_leave_the_cache_whole(weights, tmp_path):
    both = [builder(weights, tmp_path) for _ in range(2)]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()

    built_at = {process.communicate(timeout=500)[0] for process in both}

    assert [0, 0] == [process.returncode for process in both]
    assert 1 == len(built_at)
    request = resolve("landmarks", "openvino", None, weights, tmp_path)
    assert why_unusable(request) is None
    assert [request.folder.name] == [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_builder_killed_in_mid_build_does_not_hinder_the_next_start(weights, tmp_path):
    process = builder(weights, tmp_path)
    process.stdin.write("\n")
    process.stdin.flush()
    request = resolve("landmarks", "openvino", None, weights, tmp_path)
    while not (left := list(tmp_path.glob(f".{request.folder.name}-*"))):
        assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert left[0].is_dir()
    assert "not built yet" == why_unusable(request)
    load_engine("landmarks", backend="openvino", weights=weights, cache=tmp_path)
    assert why_unusable(request) is None
    assert [] == list(tmp_path.glob(f".{request.folder.name}-*"))


def test_a_disk_that_is_full_in_mid_build_is_an_error_in_words_and_leaves_nothing(weights, tmp_path):
    result = child(
        "import resource, sys; from pathlib import Path\n"
        "from engines.build import build_engine; from engines.runtime import resolve\n"
        "from engines.errors import MienError\n"
        f"request = resolve('landmarks', 'openvino', None, Path({str(weights)!r}), Path({str(tmp_path)!r}))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "try: build_engine(request)\n"
        "except MienError as error: print(error)"
    )

    assert "cannot write the engine" in result.stdout, result.stderr
    assert "make room, or set engines.cache_dir" in result.stdout
    assert [] == [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_cache_that_cannot_be_written_is_an_error_in_words(weights, tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(MienError, match=r"cannot keep engines there.*set engines.cache_dir"):
        load_engine("landmarks", backend="openvino", weights=weights, cache=tmp_path / "file" / "cache")


def test_an_engine_for_smaller_batches_is_built_anew(weights, shared_cache):
    load_engine("landmarks", backend="openvino", weights=weights, cache=shared_cache)
    request = resolve("landmarks", "openvino", None, weights, shared_cache)
    assert why_unusable(replace(request, max_batch=64)) is None  # OpenVINO takes any

    manifest = EngineManifest.load(request.folder)
    assert 32 == manifest.max_batch


def test_with_engines_built_neither_torch_nor_torchvision_is_imported(weights, shared_cache):
    load_engine("landmarks", backend="openvino", weights=weights, cache=shared_cache)

    result = child(
        "import json, sys; from pathlib import Path; import numpy as np\n"
        "from engines.runtime import load_engine; import engines.stages\n"
        f"engine = load_engine('landmarks', weights=Path({str(weights)!r}), cache=Path({str(shared_cache)!r}), "
        "backend='openvino', rebuild='never')\n"
        "engine(np.zeros((1, 64, 64, 3), np.uint8))\n"
        "print(json.dumps([name for name in ('torch', 'torchvision', 'nncf') if name in sys.modules]))"
    )

    assert [] == json.loads(result.stdout or "null"), result.stderr
