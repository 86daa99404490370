"""`mien engines build, list, verify, clean`, as a user types them; one real engine."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from engines.build import build_engine
from engines.errors import UsageError
from engines.runtime import WEIGHTS, resolve

NAME = "landmarks-128x128-openvino-cpu-f32"


def mien(*words):
    """Exit code and all that was said."""
    result = CliRunner().invoke(app, ["engines", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    cache = tmp_path_factory.mktemp("engines")
    code, said = mien("build", "landmarks", "--precision", "f32", "--cache", cache)
    assert code == 0 and "landmarks 128x128 for openvino f32: built in" in said and "parity" in said
    return cache


@pytest.fixture
def cache(built_once, tmp_path):
    return shutil.copytree(built_once, tmp_path / "cache")


def test_what_is_in_order_is_not_built_again_unless_forced(cache):
    before = (cache / NAME / "manifest.json").read_text()

    assert (0, "landmarks 128x128 for openvino f32: in order\n") == mien(
        "build", "landmarks", "--precision", "f32", "--cache", cache
    )
    assert before == (cache / NAME / "manifest.json").read_text()

    code, said = mien("build", "landmarks", "--precision", "f32", "--cache", cache, "--force")
    assert code == 0 and "building landmarks 128x128 for openvino f32: asked for" in said
    assert before != (cache / NAME / "manifest.json").read_text()


def test_the_list_is_whole_in_a_pipe_and_tells_what_is_wrong(cache):
    (cache / NAME / "model.blob").write_bytes(b"damaged")

    code, said = mien("list", "--cache", cache)

    assert code == 0 and str(cache) in said.splitlines()[0]
    (row,) = [line for line in said.splitlines() if "128x128" in line]
    for words in ("landmarks", "openvino", "cpu", "f32", "model.blob is missing or damaged"):
        assert words in row
    assert "…" not in said


@pytest.mark.parametrize("file", ["weights.safetensors", "spec.json"])
def test_the_list_tells_which_part_of_a_model_of_one_s_own_is_missing(cache, tmp_path, file):
    own = shutil.copytree(WEIGHTS / "landmarks", tmp_path / "own" / "landmarks")
    request = resolve("landmarks", "openvino", cache=cache, precision="f32", own=own)
    engine = (cache / NAME).rename(request.folder)
    told = json.loads((engine / "manifest.json").read_text())
    (engine / "manifest.json").write_text(json.dumps(told | {"source": str(own)}))
    (own / file).unlink()

    code, said = mien("list", "--cache", cache)

    assert code == 0 and f"landmarks/{file}:missing;copythewhole" in "".join(said.replace("│", "").split())


def test_pictures_to_calibrate_on_are_for_int8_alone(cache, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        "daemon.commands.engines._built",
        lambda request, calibrate, _: built.append((request.model, calibrate)),
    )

    said = mien("build", "--precision", "mixed", "--cache", cache, "--calibrate", tmp_path)[1]

    assert [("detector", None), ("embedder", tmp_path), ("attributes", tmp_path)] == built
    assert "landmarks 128x128 for openvino f32: in order" in said
    with pytest.raises(UsageError, match="--calibrate: none of these engines is int8"):
        mien("build", "landmarks", "--precision", "f32", "--cache", cache, "--calibrate", tmp_path)


def test_pictures_to_calibrate_on_count_though_another_has_built_the_engine_meanwhile(
    cache, tmp_path, monkeypatch
):
    calibrated = []
    monkeypatch.setattr(
        "engines.build._build", lambda request, folder, calibrate: calibrated.append(calibrate)
    )
    request = resolve("landmarks", "openvino", cache=cache, precision="f32")

    build_engine(request, force=False)
    assert [] == calibrated
    build_engine(request, tmp_path, force=False)
    assert [tmp_path] == calibrated


def test_verify_proves_each_engine_again_and_fails_for_one_that_is_another(cache):
    assert mien("verify", "--cache", cache)[1].startswith(
        "landmarks 128x128 for openvino f32: in order, parity"
    )

    (cache / NAME).rename(cache / "landmarks-64x64-openvino-cpu-f32")

    code, said = mien("verify", "--cache", cache)
    assert code == 1
    assert "landmarks 64x64 for openvino f32: what lies there was built as landmarks 128x128" in said


def test_clean_removes_one_model_or_all(cache):
    assert (0, f"{cache}: 0 engines removed\n") == mien("clean", "detector", "--cache", cache)
    assert (0, f"{cache}: 1 engines removed\n") == mien("clean", "--cache", cache)
    assert [] == [path.name for path in cache.iterdir() if path.name.startswith("landmarks")]


def test_verify_of_an_empty_cache_says_what_makes_engines(tmp_path):
    with pytest.raises(Exception, match="no engine here; `mien engines build` makes them"):
        mien("verify", "--cache", tmp_path)


def test_a_configuration_gets_what_its_cameras_run_with_whatever_it_says_of_rebuilding(cache, tmp_path):
    config = tmp_path / "config.yaml"
    sizes = "".join(
        f"  - {{name: c{n}, source: x.mp4, detector_size: {size}, age: false, gender: false, emotion: false}}\n"
        for n, size in enumerate(("[64, 64]", "[96, 64]", "[64, 64]"))
    )
    config.write_text(
        f"cameras:\n{sizes}"
        f"engines: {{backend: openvino, precision: f32, rebuild: never, cache_dir: {cache}}}\n"
    )

    code, said = mien("build", "--config", config)

    assert code == 0
    lines = [line for line in said.splitlines() if "in order" in line]
    assert ["detector 64x64", "landmarks 128x128", "embedder 112x112", "detector 96x64"] == [
        line.partition(" on openvino")[0] for line in lines
    ]
    assert {"detector-64x64", "detector-96x64", "embedder-112x112", "landmarks-128x128"} == {
        path.name.removesuffix("-openvino-cpu-f32")
        for path in cache.iterdir()
        if path.name[0] != "." and path.is_dir()
    }


def test_a_configuration_without_a_camera_and_one_beside_a_model_are_refused_in_words(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("cameras:\n  - {name: c, source: x.mp4, enabled: false}\n")

    with pytest.raises(UsageError, match="no camera of the configuration is enabled"):
        mien("build", "--config", config)
    with pytest.raises(UsageError, match="--config: says itself what is built; leave MODEL"):
        mien("build", "landmarks", "--config", config)
