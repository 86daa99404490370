"""TensorRT: every shipped network becomes one engine, whole, in both precisions; no GPU is needed to see that.

Needs torch-tensorrt-rtx, in .venv-rtx (see .ci/run) or named by MIEN_RTX_PYTHON. Where a GPU is, and the running
interpreter has Torch-TensorRT, the engines are run, too.
"""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engines.backends import tensorrt, tensorrt_onnx
from engines.backends.tensorrt_onnx import TORCH_TYPES
from engines.onnx_spec import OnnxSpec
from engines.request import EngineRequest
from engines.runtime import MODELS, load_engine
from tests.processes import child

ROOT = Path(__file__).parents[1]
TEACHERS = ROOT.parent / "shared" / "teachers"
RTX_PYTHON = Path(os.environ.get("MIEN_RTX_PYTHON", ROOT / ".venv-rtx" / "bin" / "python"))
SPECS = {
    "yunet_n_dynamic.onnx": {"task": "detector", "decoding": "yunet"},
    "mobilefacenet_192.onnx": {
        "task": "embedder",
        "decoding": "embedding",
        "layout": "NHWC",
        "batch": 2,
        "input_size": [112, 112],
    },
}
# What does not fit: a spec's name, what it says of which file, and how it is refused.
WRONG = {
    "layout": ("mobilefacenet_192.onnx", {"layout": "NCHW"}, "its input is [2, 112, 112, 3]"),
    "any_batch": ("mobilefacenet_192.onnx", {"batch": None}, "any_batch.json says [8, 112, 112, 3]"),
    "fed": ("yunet_n_dynamic.onnx", {"layout": "NHWC"}, "says [8, 384, 640, 3] (NHWC, input_size, batch)"),
    "output": ("yunet_n_dynamic.onnx", {"outputs": ["kps"]}, "has no output 'kps', which output.json needs"),
}
NO_MODEL = "no_model"
needs_teachers = pytest.mark.skipif(
    not TEACHERS.is_dir(), reason="the ONNX models are not beside this checkout"
)
needs_rtx = pytest.mark.skipif(not RTX_PYTHON.is_file(), reason="torch-tensorrt-rtx is not in .venv-rtx")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What tests.tensorrt_without_gpu says, one entry an engine."""
    folder = tmp_path_factory.mktemp("specs")
    (folder / "some.onnx").write_bytes(b"no model")
    told = {name: (TEACHERS / name, content) for name, content in SPECS.items()}
    told |= {name: (TEACHERS / file, SPECS[file] | wrong) for name, (file, wrong, _) in WRONG.items()}
    told[NO_MODEL] = (folder / "some.onnx", SPECS["yunet_n_dynamic.onnx"])
    specs = []
    for name, (file, content) in told.items():
        if file.is_file():
            specs.append(folder / f"{name}.json")
            specs[-1].write_text(json.dumps({"onnx": str(file), **content}))
    words = [RTX_PYTHON, "-W", "ignore", "-m", "tests.tensorrt_without_gpu", *specs]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert 0 == result.returncode, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@needs_rtx
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("batch", [1, 32])
def test_a_network_converts_whole_into_one_engine(reports, model, precision, batch):
    found = [
        each
        for each in reports
        if (each.get("model"), each.get("precision"), each.get("batch")) == (model, precision, batch)
    ]

    assert 1 == len(found)
    assert found[0]["bytes"] > 100_000
    assert [] == found[0]["unconverted"]
    assert 1 == found[0]["engines"]
    assert found[0]["operators"] == found[0]["supported"] > 20


@needs_rtx
@needs_teachers
def test_a_users_onnx_models_become_engines_through_tensorrts_own_parser(reports):
    built = {each["onnx"]: each["bytes"] for each in reports if "onnx" in each and "bytes" in each}

    assert set(SPECS) == set(built)
    assert min(built.values()) > 100_000


@needs_rtx
@needs_teachers
@pytest.mark.parametrize("name", WRONG)
def test_tensorrt_refuses_an_onnx_model_that_its_spec_does_not_fit(reports, name):
    file, _, words = WRONG[name]
    (refused,) = [each["refused"] for each in reports if each.get("onnx") == name]

    assert refused.startswith(str(TEACHERS / file)) and words in refused


@needs_rtx
def test_what_an_onnx_model_may_be_fed_and_give_is_told_by_tensorrts_names(reports):
    (known,) = [set(each["types"]) for each in reports if "types" in each]

    assert set(TORCH_TYPES) <= known
    assert not known - set(TORCH_TYPES) - {"FP8", "FP4", "E8M0", "INT4"}  # which no file has at its ends
    assert all(isinstance(getattr(torch, word), torch.dtype) for word in TORCH_TYPES.values())


@needs_rtx
def test_tensorrt_refuses_in_words_what_is_no_onnx_model(reports):
    (refused,) = [each["refused"] for each in reports if each.get("onnx") == NO_MODEL]

    assert "some.onnx: TensorRT's ONNX parser does not take it: " in refused


@pytest.mark.parametrize(("precision", "exact"), [("f32", True), ("f16", False)])
def test_float32_is_not_computed_as_tf32(monkeypatch, precision, exact):
    monkeypatch.setattr(tensorrt, "input_shapes", lambda source: None)
    source = SimpleNamespace(request=SimpleNamespace(precision=precision))

    assert exact == tensorrt.options(source)["disable_tf32"]


def test_nor_is_a_user_s_model(monkeypatch, tmp_path):
    flags = {"TF32"}
    tensor = SimpleNamespace(name="image", shape=(-1, 3, 112, 112), dtype=SimpleNamespace(name="FLOAT"))
    network = SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda _: tensor)
    network.get_output = lambda _: SimpleNamespace(name="embedding")
    config = SimpleNamespace(clear_flag=flags.remove, add_optimization_profile=lambda _: None)
    builder = SimpleNamespace(
        create_network=lambda _: network,
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
        build_serialized_network=lambda *_: b"a plan",
    )
    library = SimpleNamespace(
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, _: None}),
        Builder=lambda _: builder,
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0),
        OnnxParser=lambda *_: SimpleNamespace(parse_from_file=lambda _: True),
    )
    monkeypatch.setattr(tensorrt_onnx, "library", lambda: library)
    (tmp_path / "some.onnx").touch()
    (tmp_path / "mine.json").write_text('{"onnx": "some.onnx", "task": "embedder", "decoding": "embedding"}')
    spec = OnnxSpec.load(tmp_path / "mine.json")
    request = EngineRequest("embedder", "tensorrt", "cuda", "f32", (112, 112), 8, spec.path, tmp_path)

    assert b"a plan" == tensorrt_onnx.plan(spec, request)
    assert not flags


def test_tensorrt_rtx_is_found_without_its_meta_package(tmp_path):
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").touch()
    info = tmp_path / "tensorrt_rtx_cu13-1.6.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_rtx_cu13\nVersion: 1.6.1\n")

    result = child(
        "from engines.backends import tensorrt, tensorrt_onnx\n"
        "print(tensorrt_onnx.library().__name__, tensorrt.versions('cuda')['tensorrt-rtx-cu13'])",
        PYTHONPATH=tmp_path,
    )

    assert "tensorrt_rtx 1.6.1" == result.stdout.strip(), result.stderr


@pytest.mark.skipif(
    tensorrt.why_not("cuda", "f16") is not None, reason="no NVIDIA GPU with Torch-TensorRT here"
)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_engine_runs_and_agrees_with_eager(tmp_path, model, precision):
    eager = load_engine(model, backend="eager", device="cpu")
    engine = load_engine(model, backend="tensorrt", precision=precision, cache=tmp_path)
    again = load_engine(model, backend="tensorrt", precision=precision, cache=tmp_path, rebuild="never")
    width, height = eager.input_size
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)

    wanted, got = eager(images), engine(images)

    for name, value in wanted.items():
        assert np.abs(value - got[name]).max() <= 0.1 * np.abs(value).max()
        np.testing.assert_array_equal(got[name], again(images)[name])
