"""Checkpoint -> engine: parity, cache, manifest, and what happens when a file is wrong. Small real networks."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from engines import manifest, memory, runtime
from engines.backends.eager import reference
from engines.build import build_engine, verify_engine
from engines.calibration import parity_batch
from engines.checkpoint import load_checkpoint, make_network, save_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError, UsageError
from engines.manifest import EngineManifest, sha256
from engines.networks import IResNet, MobileFaceNet
from engines.parity import LIMITS, check_parity
from engines.runtime import WEIGHTS, cached, check_memory, clean, load_engine, resolve, why_unusable
from engines.spec import ModelSpec
from engines.stages import Detections, detect

SPEC = ModelSpec(
    "landmarks", "landmarks", "StackedHourglass", {"stacks": 1, "channels": 16}, (64, 64), ("heatmaps",)
)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    """A small checkpoint and its engine: (weights, cache), copied for each test that may spoil them."""
    folder = tmp_path_factory.mktemp("built")
    torch.manual_seed(0)
    save_checkpoint(folder / "weights" / "landmarks", make_network(SPEC), SPEC, "# a card\n")
    build_engine(
        resolve("landmarks", "openvino", None, folder / "weights", folder / "cache", precision="f32")
    )
    return folder


@pytest.fixture
def weights(built_once, tmp_path):
    return shutil.copytree(built_once / "weights", tmp_path / "weights")


@pytest.fixture
def built(built_once, weights, tmp_path):
    shutil.copytree(built_once / "cache", tmp_path / "cache")
    request = resolve("landmarks", "openvino", None, weights, tmp_path / "cache", precision="f32")
    next(request.cache.glob("landmarks*")).rename(
        request.folder
    )  # which is named after where the weights lie
    return request


def pictures(n, size=64):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_a_checkpoint_comes_back_as_it_was_saved_in_half_precision(weights):
    network, spec = load_checkpoint(weights / "landmarks")

    again, _ = load_checkpoint(weights / "landmarks")
    assert "StackedHourglass" == spec.network
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(p, p.half().float()) for p in network.parameters())


@pytest.mark.parametrize("batch", [1, 3])
def test_openvino_and_eager_agree_at_any_batch(weights, built, batch):
    eager = load_engine("landmarks", backend="eager", weights=weights)
    compiled = load_engine("landmarks", precision="f32", weights=weights, cache=built.cache)

    want, got = eager(pictures(batch))["heatmaps"], compiled(pictures(batch))["heatmaps"]

    assert (batch, 5, 16, 16) == got.shape
    assert np.abs(want - got).max() <= 1e-4 * np.abs(want).max()


def test_what_an_engine_returned_is_not_written_over_by_its_next_call(weights, built):
    engine = load_engine("landmarks", precision="f32", weights=weights, cache=built.cache)
    first = engine(pictures(1))["heatmaps"]
    kept = first.copy()

    engine(np.zeros((1, 64, 64, 3), np.uint8))

    np.testing.assert_array_equal(kept, first)


def test_a_built_engine_is_taken_from_the_cache(weights, built):
    told = []

    load_engine("landmarks", precision="f32", weights=weights, cache=built.cache, progress=told.append)

    assert [] == told
    assert ["landmarks"] == [request.model for request in cached(built.cache, weights)]


def test_the_manifest_says_what_the_engine_was_built_from(weights, built):
    manifest = EngineManifest.load(built.folder)

    assert ModelSpec.load(weights / "landmarks" / "spec.json").weights_sha256 == manifest.weights_sha256
    assert {"openvino", "torch"} == set(manifest.versions)
    assert 0 <= manifest.parity["heatmaps"] <= 1e-4
    assert ("eager f32", "cpu", "f32", "") == (
        manifest.parity_reference,
        manifest.device,
        manifest.precision,
        manifest.gpu,
    )
    assert 64 == len(manifest.program_sha256) == len(manifest.code_sha256)
    assert ["1..32", "64", "64", "3"] == manifest.inputs["images"]


def test_new_weights_are_built_anew_and_the_reason_is_told(weights, built):
    torch.manual_seed(1)
    save_checkpoint(weights / "landmarks", make_network(SPEC), SPEC, "# another\n")
    told = []

    load_engine("landmarks", precision="f32", weights=weights, cache=built.cache, progress=told.append)

    assert ["weights have changed" in line for line in told] == [True]
    assert why_unusable(built) is None


def test_a_damaged_engine_is_noticed_and_built_anew(weights, built):
    (built.folder / "model.blob").write_bytes(b"damaged")

    assert "model.blob is missing or damaged" == why_unusable(built)
    load_engine("landmarks", precision="f32", weights=weights, cache=built.cache)
    assert why_unusable(built) is None


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"versions": {"openvino": "2001.1"}}, "built with openvino 2001.1"),
        ({"code_sha256": "0" * 64}, "the code that it is made by has changed"),
        ({"cpu_isa": "z80"}, "built for z80"),
        ({"gpu": "NVIDIA H100 (sm_90)"}, "built for NVIDIA H100"),
        ({"files": {}}, "it lists no files"),
        ({"unheard": 1}, "its manifest is damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_gives_its_reason(built, changes, reason):
    change_manifest(built.folder, **changes)

    assert reason in why_unusable(built)


@pytest.mark.parametrize(
    "other", [{"size": (32, 32)}, {"precision": "int8"}, {"backend": "aot_inductor"}, {"device": "cuda"}]
)
def test_an_engine_in_another_one_s_folder_is_built_anew(built, other):
    wanted = replace(built, **other)
    shutil.copytree(built.folder, wanted.folder)

    found, asked = EngineManifest.load(wanted.folder), EngineManifest.load(built.folder)

    assert found == asked
    reason = manifest.difference(found, replace(runtime._wanted(built), words=wanted.words))
    assert f"what lies there was built as {built.words}" == reason
    if "device" not in other:
        assert reason == why_unusable(wanted)


def test_a_built_engine_that_does_not_fit_on_the_gpu_says_the_batch_that_would(built):
    class SmallGpu:
        def free_bytes(self):
            return memory.RUNTIME_BYTES + (1000 << 20)

    change_manifest(built.folder, memory={"weights": 0, "per_picture": 100 << 20})

    check_memory(replace(built, max_batch=10), SmallGpu())
    with pytest.raises(MienError, match=r"landmarks: needs about 3800 MiB.*a batch of 10 would fit"):
        check_memory(replace(built, max_batch=32), SmallGpu())


def test_with_rebuild_never_the_reason_is_an_error_that_says_what_to_do(weights, built):
    change_manifest(built.folder, cpu_isa="z80")

    with pytest.raises(
        MienError, match=r"built for z80.*rebuild is never; `mien engines build --config FILE`"
    ):
        load_engine("landmarks", precision="f32", weights=weights, cache=built.cache, rebuild="never")


def test_an_engine_that_passes_its_checksum_and_does_not_load_is_built_anew_once(weights, built):
    blob = built.folder / "model.blob"
    blob.write_bytes(b"not a blob")
    change_manifest(built.folder, files={"model.blob": sha256(blob)})
    told = []

    load_engine("landmarks", precision="f32", weights=weights, cache=built.cache, progress=told.append)

    assert [True] == ["OpenVINO does not take it" in line for line in told]


def test_a_signal_finds_its_way_after_engines_have_come_and_gone(weights, built):
    # OpenVINO moves the thread's alternate signal stack: with a core for each engine, this died of SIGSEGV.
    script = """
import faulthandler, os, signal, sys
faulthandler.enable()
from pathlib import Path
from engines.runtime import load_engine
weights, cache = map(Path, sys.argv[1:])
first = load_engine("landmarks", weights=weights, cache=cache)
second = load_engine("landmarks", weights=weights, cache=cache)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("arrived"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    command = [sys.executable, "-c", script, weights, built.cache]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_clean_removes_engines_and_leaves_what_others_keep_there(weights, built):
    (built.cache / "notes-of-a-person.txt").write_text("mine")

    assert [built.folder.name] == clean(built.cache)
    assert [] == cached(built.cache, weights)
    assert "mine" == (built.cache / "notes-of-a-person.txt").read_text()


def test_verify_proves_an_engine_again_and_refuses_a_damaged_one(built):
    assert verify_engine(built)["heatmaps"] <= 1e-4

    (built.folder / "model.blob").unlink()
    with pytest.raises(MienError, match="missing or damaged"):
        verify_engine(built)


def test_verify_refuses_an_engine_of_another_program_than_the_checkpoint_exports_to(built, monkeypatch):
    whole = Deployed.forward
    monkeypatch.setattr(
        Deployed, "forward", lambda self, images: tuple(2 * out for out in whole(self, images))
    )

    with pytest.raises(MienError, match="exports to another program"):
        verify_engine(built)


class OffEngine:
    backend = "off"
    input_size = (64, 64)
    spec = SPEC

    def __init__(self, reference, change):
        self.reference, self.change = reference, change

    def __call__(self, batch):
        return {"heatmaps": self.change(self.reference(batch)["heatmaps"])}


@pytest.mark.parametrize("change", [lambda x: x * 1.1, lambda x: x * np.nan, lambda x: x[:, :4]])
def test_an_engine_whose_numbers_are_off_is_refused(built, change):
    with pytest.raises(MienError, match="output heatmaps is off"):
        check_parity(OffEngine(reference(built), change), built)


def test_an_engine_whose_numbers_depend_on_the_batch_is_refused(built):
    with pytest.raises(MienError, match="output heatmaps is off"):
        check_parity(OffEngine(reference(built), lambda x: x * len(x)), built)


@pytest.mark.parametrize("task", ["detector", "landmarks", "embedder", "attributes"])
def test_the_parity_batch_is_real_faces_and_the_same_every_time(task):
    first, again = parity_batch(task, (128, 128)), parity_batch(task, (128, 128))

    np.testing.assert_array_equal(first, again)
    assert (4, 128, 128, 3) == first.shape
    assert 4 == len({picture.tobytes() for picture in first})


def test_the_faces_engines_are_proved_on_are_found_by_the_detector():
    detector = load_engine("detector", backend="eager")

    found = detect(detector, list(parity_batch("detector", detector.input_size)))

    assert [1, 1, 1, 1] == [len(each) for each in found]
    assert set(LIMITS) == {"f32", "f16", "bf16", "int8"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: (f / "weights.safetensors").write_bytes(b"x" * 100),
            "checksum is not the one in spec.json",
        ),
        (lambda f: (f / "weights.safetensors").unlink(), "missing; copy the whole checkpoint folder"),
        (lambda f: (f / "spec.json").write_text("{"), "not a model spec"),
        (lambda f: (f / "spec.json").unlink(), "spec.json: missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_in_words(weights, spoil, words):
    spoil(weights / "landmarks")

    with pytest.raises(MienError, match=words):
        load_checkpoint(weights / "landmarks")


def test_weights_that_do_not_fit_their_spec_are_refused_in_words(weights):
    path = weights / "landmarks" / "spec.json"
    raw = json.loads(path.read_text())
    raw["network_args"]["channels"] = 32
    path.write_text(json.dumps(raw))

    with pytest.raises(MienError, match="does not fit network StackedHourglass"):
        load_checkpoint(weights / "landmarks")


def test_unknown_names_are_wrong_use(weights):
    with pytest.raises(UsageError, match="known are detector"):
        load_engine("nose", weights=weights)
    with pytest.raises(UsageError, match="not one of auto"):
        load_engine("landmarks", backend="abacus", weights=weights)


def test_a_failed_build_leaves_nothing_behind(weights, tmp_path):
    (weights / "landmarks" / "weights.safetensors").write_bytes(b"x")

    with pytest.raises(MienError):
        load_engine("landmarks", weights=weights, cache=tmp_path / "cache")

    assert [] == [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("network", [MobileFaceNet(64), IResNet(64, 18, 0.25)])
def test_the_other_embedders_give_one_row_a_face(network):
    with torch.inference_mode():
        embedding = network.eval()(torch.zeros(2, 3, 112, 112))

    assert (2, 64) == embedding.shape


class OneFaceEngine:
    """A detector of 64x32 that sees one face of 16x20 px around (28, 12), twice."""

    backend = "fake"
    input_size = (64, 32)
    spec = ModelSpec("detector", "detector", "Detector", {}, (64, 32), ("scores", "sides"), threshold=0.5)

    def __call__(self, batch):
        scores, sides = np.zeros((1, 42), np.float32), np.ones((1, 42, 4), np.float32)
        scores[0, [11, 12]] = 0.9, 0.6
        sides[0, 11] = [1, 1.25, 1, 1.25]
        sides[0, 12] = [2, 1.25, 0, 1.25]
        return {"scores": scores, "sides": sides}


def test_a_detection_is_decoded_suppressed_and_scaled_back():
    found = detect(OneFaceEngine(), [np.zeros((64, 128, 3), np.uint8)])[0]

    assert [[40, 4, 72, 44]] == found.boxes_xyxy.tolist()
    assert [0.9] == pytest.approx(found.scores.tolist())


def test_detections_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Detections(np.zeros((2, 4), np.float32), np.zeros(3, np.float32))


@pytest.mark.parametrize("model", ["detector", "landmarks", "embedder", "attributes", "expression"])
def test_the_shipped_checkpoints_are_whole_and_say_what_they_are(model, tmp_path):
    shutil.copytree(WEIGHTS / model, tmp_path / model)

    network, spec = load_checkpoint(tmp_path / model)

    assert model == spec.name
    assert sum(p.numel() for p in network.parameters()) > 1e5
    card = (tmp_path / model / "card.md").read_text()
    assert "research and non-commercial" in card and "mien evaluate" in card


def test_the_shipped_weights_are_small():
    sizes = [path.stat().st_size for path in WEIGHTS.glob("*/weights.safetensors")]

    assert len(sizes) == 5 and sum(sizes) < 30e6
