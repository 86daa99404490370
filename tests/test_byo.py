"""A user's own models in a stage's place: trained here, or ONNX beside OpenCV's detector and ONNX Runtime."""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from daemon.config import EnginesConfig
from engines.backends.onnx_engine import OnnxEngine
from engines.errors import MienError, UsageError
from engines.manifest import EngineManifest
from engines.onnx_spec import OnnxSpec
from engines.runtime import cached, load_engine, load_face_engines, resolve, spec_of, why_unusable
from engines.spec import ModelSpec
from engines.stages import detect, embed
from tests.onnx_files import write_embedder

ROOT = Path(__file__).parents[1]
TEACHERS = ROOT.parent / "shared" / "teachers"
needs_models = pytest.mark.skipif(
    not TEACHERS.is_dir(), reason="the ONNX models are not beside this checkout"
)
YUNET = {
    "onnx": str(TEACHERS / "yunet_n_dynamic.onnx"),
    "task": "detector",
    "decoding": "yunet",
    "threshold": 0.6,
}
EMBEDDER = {
    "onnx": str(TEACHERS / "mobilefacenet_192.onnx"),
    "task": "embedder",
    "decoding": "embedding",
    "layout": "NHWC",
    "colour": "RGB",
    "mean": 127.5,
    "std": 128,
    "batch": 2,
    "input_size": [112, 112],
    "threshold": 0.4,
}
PORTRAITS = ("eileen_collins.jpg", "grace_hopper.jpg")


def write(folder, content, **changes):
    path = folder / "mine.json"
    path.write_text(json.dumps(content | changes))
    return path


def crops(n):
    return np.random.default_rng(3).integers(0, 256, (n, 112, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@needs_models
def test_yunet_finds_what_opencv_finds_with_it(tmp_path, cache):
    engine = load_engine(
        "detector", backend="openvino", size=(640, 640), cache=cache, own=write(tmp_path, YUNET)
    )
    theirs = cv2.FaceDetectorYN.create(YUNET["onnx"], "", (512, 512), 0.6, 0.4)

    for name in PORTRAITS:
        image = cv2.imread(str(ROOT / "samples" / name))
        theirs.setInputSize(image.shape[1::-1])
        rows = theirs.detect(image)[1]
        found = detect(engine, [image])[0]
        assert len(rows) == len(found) == 1
        box = np.concatenate((rows[0, :2], rows[0, :2] + rows[0, 2:4]))
        np.testing.assert_allclose(box, found.boxes_xyxy[0], atol=2.0)
        assert rows[0, -1] == pytest.approx(found.scores[0], abs=0.02)


@needs_models
def test_an_embedder_of_a_batch_of_two_gives_one_row_a_face_as_onnx_runtime_does(tmp_path, cache):
    onnxruntime = pytest.importorskip("onnxruntime")
    engine = load_engine("embedder", backend="openvino", cache=cache, own=write(tmp_path, EMBEDDER))
    session = onnxruntime.InferenceSession(EMBEDDER["onnx"], providers=["CPUExecutionProvider"])
    images = crops(3)
    fed = (np.concatenate((images, images[2:]))[..., ::-1].astype(np.float32) - 127.5) / 128
    rows = np.concatenate([session.run(None, {"input": fed[i : i + 2]})[0] for i in (0, 2)])[:3]

    embeddings = embed(engine, images)

    np.testing.assert_allclose(rows / np.linalg.norm(rows, axis=1, keepdims=True), embeddings, atol=1e-4)
    assert 0.4 == engine.spec.threshold


@needs_models
def test_a_built_model_is_taken_from_the_cache_until_its_spec_changes(tmp_path):
    cache = tmp_path / "cache"
    path = write(tmp_path, EMBEDDER)
    load_engine("embedder", backend="openvino", cache=cache, own=path)
    request = resolve("embedder", "openvino", cache=cache, own=path)

    assert why_unusable(request) is None
    assert str(path) in [str(each.checkpoint) for each in cached(cache)]
    assert EngineManifest.load(request.folder).parity["embedding"] < 1e-3
    write(tmp_path, EMBEDDER, threshold=0.5)
    assert "the spec has changed" == why_unusable(request)


@needs_models
@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        (EMBEDDER, {"batch": 1}, r"its input is \[2,112,112,3\].*correct the spec"),
        (EMBEDDER, {"batch": None}, r"its input is \[2,112,112,3\].*correct the spec"),
        (EMBEDDER, {"layout": "NCHW"}, "correct the spec"),
        (EMBEDDER, {"input_size": [96, 96]}, "fed aligned faces of 112x112 px"),
        (EMBEDDER, {"outputs": ["rows"]}, "has no output 'rows'.*it has embeddings"),
        (YUNET, {"decoding": "scrfd", "input_size": [64, 64]}, "name scores, then boxes"),
        (
            EMBEDDER,
            {"task": "detector", "decoding": "yunet", "input_size": None, "batch": 2},
            "correct|no output",
        ),
    ],
)
def test_a_file_whose_shapes_do_not_fit_its_spec_is_refused_in_words(tmp_path, content, changes, words):
    path = write(tmp_path, content, **changes)
    task = changes.get("task", content["task"])

    with pytest.raises(MienError, match=words):
        load_engine(task, backend="openvino", size=None, cache=tmp_path / "cache", own=path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoding": "magic"}, "decoding 'magic' is not one of yunet, scrfd"),
        ({"colour": "CMYK"}, "colour 'CMYK' is not one of BGR, RGB"),
        ({"treshold": 0.5}, "unknown key 'treshold'; did you mean 'threshold'"),
        ({"std": 0}, "std above 0"),
        ({"input_size": [100, 100]}, "multiples of 32"),
        ({"onnx": "nothing.onnx"}, "which is not there"),
        ({"mean": "grey"}, "mean 'grey' is not a number"),
        ({"threshold": "high"}, "threshold 'high' is not a number"),
        ({"threshold": [0.5]}, r"threshold \[0.5\] is not a number"),
        ({"threshold": 40}, "threshold 40.0 of a detector is not between 0 and 1"),
        ({"threshold": float("nan")}, "threshold nan of a detector"),
        (
            {"task": "embedder", "decoding": "embedding", "threshold": -1.5},
            "threshold -1.5 of an embedder is not within -1 to 1",
        ),
    ],
)
def test_a_spec_that_is_wrong_says_where(tmp_path, changes, words):
    (tmp_path / "some.onnx").write_bytes(b"")
    path = write(tmp_path, YUNET | {"onnx": "some.onnx"}, **changes)

    with pytest.raises(MienError, match=words):
        OnnxSpec.load(path)


def test_what_is_no_onnx_file_is_refused_in_words(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"not a model")
    path = write(tmp_path, YUNET, onnx="some.onnx")

    with pytest.raises(MienError, match="not an ONNX file that OpenVINO reads"):
        load_engine("detector", backend="openvino", cache=tmp_path / "cache", own=path)


@pytest.mark.parametrize("backend", ["aot_inductor", "eager"])
def test_other_backends_refuse_it_in_words(tmp_path, backend):
    (tmp_path / "some.onnx").write_bytes(b"")
    path = write(tmp_path, YUNET, onnx="some.onnx")

    with pytest.raises(UsageError, match=f"runs on openvino and on tensorrt, not on {backend}"):
        load_engine("detector", backend=backend, own=path)
    with pytest.raises(UsageError, match="a spec for a detector, not for the embedder"):
        load_engine("embedder", backend="openvino", own=path)


def test_scrfd_boxes_lie_where_its_locations_and_distances_say(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"")
    spec = OnnxSpec.load(write(tmp_path, YUNET, onnx="some.onnx", decoding="scrfd"))
    counts = (64, 16, 4)
    scores = [np.zeros((1, 2 * count, 1), np.float32) for count in counts]
    sides = [np.ones((1, 2 * count, 4), np.float32) for count in counts]
    scores[0][0, 2 * 9 + 1] = 0.9  # second anchor of location 9 of stride 8: corner (8, 8)
    sides[0][0, 2 * 9 + 1] = 0.5, 0.75, 3, 2  # box 4, 2, 32, 24

    decoded = spec.decode([*scores, *sides], (64, 64))

    centre = np.array([12, 12])
    left_top = centre - decoded["sides"][0, 9, :2] * 8
    right_bottom = centre + decoded["sides"][0, 9, 2:] * 8
    assert [4, 2, 32, 24] == [*left_top, *right_bottom]
    assert 9 == decoded["scores"][0].argmax()


COLOURS = {"task": "embedder", "decoding": "embedding"}


def own_embedder(folder, **changes):
    folder.mkdir(exist_ok=True)
    file = write_embedder(folder / "own.onnx", **changes)
    return write(folder, COLOURS, onnx=str(file))


def means(batch):
    rows = batch.reshape(len(batch), -1, 3).mean(1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("compared", [True, False])
def test_a_file_in_float16_is_fed_compared_and_decoded_without_an_overflow(tmp_path, monkeypatch, compared):
    pytest.importorskip("onnxruntime")
    if not compared:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name)
        )
    own = own_embedder(tmp_path / "half", half=True, scale=8)  # the squares of its numbers are over 65,504

    engine = load_engine("embedder", backend="openvino", cache=tmp_path / "cache", own=own)

    found = engine(crops(3))["embedding"]
    np.testing.assert_allclose(found, means(crops(3)), atol=2e-3)
    told = EngineManifest.load(next((tmp_path / "cache").glob("embedder*"))).parity_reference
    assert told.startswith("onnxruntime" if compared else "none")


def test_weights_beside_a_file_are_a_part_of_it(tmp_path):
    own, cache, told = own_embedder(tmp_path / "own", scale=1), tmp_path / "cache", []
    options = {"backend": "openvino", "cache": cache, "own": own, "progress": told.append}
    before = load_engine("embedder", **options).spec.weights_sha256
    load_engine("embedder", **options)
    assert 1 == len(told) and spec_of("embedder", own).weights_sha256 == before

    own_embedder(tmp_path / "own", scale=2)

    assert load_engine("embedder", **options).spec.weights_sha256 != before
    assert "the weights have changed" in told[1]


def test_weights_in_a_folder_beside_a_file_are_a_part_of_it_and_what_it_does_not_name_is_not(tmp_path):
    for place in ("data/w.bin", "data/deep/v.bin", "data/unnamed.bin", "other/w.bin", "w.bin"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"before")
    (tmp_path / "some.onnx").write_bytes(b"location data/w.bin location data/deep/v.bin")
    spec = OnnxSpec.load(write(tmp_path, COLOURS, onnx="some.onnx"))

    def changes(place):
        before = spec.sha256()
        (tmp_path / place).write_bytes(b"after")
        return before != spec.sha256()

    assert [True, True] == [changes(place) for place in ("data/w.bin", "data/deep/v.bin")]
    assert [False, False] == [changes(place) for place in ("data/unnamed.bin", "other/w.bin")]


def test_which_of_several_outputs_is_the_embedding_has_to_be_said(tmp_path):
    own, cache = own_embedder(tmp_path / "own", norm=True), tmp_path / "cache"
    with pytest.raises(MienError, match="has the outputs norm, output; name the embedding's as outputs"):
        load_engine("embedder", backend="openvino", cache=cache, own=own)
    named = write(tmp_path / "own", COLOURS, onnx="own.onnx", outputs="norm")
    with pytest.raises(MienError, match="correct input_size, decoding or outputs"):
        load_engine("embedder", backend="openvino", cache=cache, own=named)

    named = write(tmp_path / "own", COLOURS, onnx="own.onnx", outputs="output")
    engine = load_engine("embedder", backend="openvino", cache=cache, own=named)
    np.testing.assert_allclose(engine(crops(2))["embedding"], means(crops(2)), atol=1e-3)


def test_outputs_of_scrfd_have_to_be_named(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"")
    spec = OnnxSpec.load(write(tmp_path, YUNET, onnx="some.onnx", decoding="scrfd"))

    with pytest.raises(MienError, match="has the outputs 448, 451; name scores, then boxes, of strides 8"):
        spec.output_names(("448", "451"))


def test_an_embedder_of_another_size_than_faces_are_cut_to_is_refused(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"")
    with pytest.raises(MienError, match="an embedder is fed aligned faces of 112x112 px"):
        OnnxSpec.load(write(tmp_path, COLOURS, onnx="some.onnx", input_size=[160, 160]))


@pytest.mark.parametrize(("batch", "calls"), [(None, [4, 4, 1]), (2, [2, 2, 2, 2, 2])])
def test_no_more_pictures_than_a_model_takes_are_given_to_it_at_once(tmp_path, batch, calls):
    (tmp_path / "some.onnx").write_bytes(b"")
    own = write(tmp_path, COLOURS, onnx="some.onnx", batch=batch)
    request, spec, seen = resolve("embedder", "openvino", own=own, max_batch=4), OnnxSpec.load(own), []

    def run(pictures):
        seen.append(len(pictures))
        return [pictures.reshape(len(pictures), -1)[:, :3].astype(np.float16)]

    engine = OnnxEngine(run, spec, request, spec.model_spec((112, 112), ""))

    assert (9, 3) == engine(crops(9))["embedding"].shape and calls == seen


def test_runs_of_one_name_do_not_share_an_engine(tmp_path, trained):
    names = set()
    for run in ("a/lr0.1", "a/lr0.01", "b/lr0.1"):
        shutil.copytree(trained, tmp_path / run / "landmarks")
        names.add(resolve("landmarks", "openvino", own=tmp_path / run / "landmarks").folder.name)
    assert 3 == len(names)


LANDMARKS = ModelSpec(
    "landmarks", "landmarks", "StackedHourglass", {"stacks": 1, "channels": 16}, (128, 128), ("heatmaps",)
)


@pytest.fixture(scope="module")
def trained(untrained, tmp_path_factory):
    """A run's folder as `mien train landmarks` leaves it."""
    run = tmp_path_factory.mktemp("runs") / "night"
    shutil.copytree(untrained(LANDMARKS), run)
    return run / "landmarks"


def test_weights_trained_here_take_a_stage_s_place_and_leave_the_shipped_engine_alone(trained, cache):
    own = resolve("landmarks", "openvino", cache=cache, own=trained)
    shipped = resolve("landmarks", "openvino", cache=cache)

    engine = load_engine("landmarks", backend="openvino", cache=cache, own=trained)

    eager = load_engine("landmarks", backend="eager", own=trained)
    batch = np.random.default_rng(4).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    got, want = engine(batch)["heatmaps"], eager(batch)["heatmaps"]
    assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()
    assert own.folder.name.startswith("landmarks+night.") and not shipped.folder.exists()
    assert trained in [request.checkpoint for request in cached(cache)]
    assert why_unusable(own) is None


def test_the_configuration_names_models_of_one_s_own(trained, tmp_path):
    config = EnginesConfig.model_validate({"landmarks": str(trained), "backend": "eager"})

    engines = load_face_engines(**config.for_faces(), embedder=False, attributes=False)

    assert "StackedHourglass" == engines.landmarks.spec.network
    assert {"stacks": 1, "channels": 16} == engines.landmarks.spec.network_args
    assert "Detector" == engines.detector.spec.network
    assert spec_of("landmarks", trained).weights_sha256 == engines.landmarks.spec.weights_sha256


def test_weights_of_another_model_and_what_is_no_model_are_refused_in_words(trained, tmp_path):
    with pytest.raises(UsageError, match="holds weights of landmarks, not of embedder"):
        resolve("embedder", own=trained)
    with pytest.raises(UsageError, match="neither the folder of a checkpoint nor"):
        resolve("embedder", own=tmp_path / "nothing")
    with pytest.raises(MienError, match=r"spec\.json: missing"):
        resolve("embedder", own=tmp_path)


def test_a_model_named_from_where_it_lies_is_the_same(trained, monkeypatch):
    named = resolve("landmarks", "openvino", own=trained)
    monkeypatch.chdir(trained.parent)

    assert named == resolve("landmarks", "openvino", own=Path("landmarks"))
