"""An attributes network that was trained on more than the attribute crop is fed that everywhere, or nowhere at all."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from bench.gpu_chain import chain
from daemon.analyze import Analyst
from daemon.config import Config
from daemon.pipeline import FacePipeline
from engines import build
from engines.build import build_engine
from engines.calibration import calibration_batch, parity_batch
from engines.errors import MienError
from engines.image_ops import HOST
from engines.runtime import WEIGHTS, load_face_engines, resolve
from engines.spec import ModelSpec
from tests.fakes import ANN, FakeAttributes, FakeDetector, fake_engines, scene, walk
from tests.test_pipeline import People, config_of
from trainers import evaluate_attributes
from trainers.averaging import average
from trainers.evaluation import evaluate_recipe
from trainers.ffhq import FfhqConfig, ffhq_spec
from trainers.ffhq_networks import WIDE_ROOM
from trainers.measuring import engine

WIDE = 112 + 2 * WIDE_ROOM


class Watched(FakeAttributes):
    """Keeps what it is fed; with room it is fed as much more as a wide crop shows."""

    def __init__(self, room=0):
        super().__init__(input_size=(112 + 2 * room,) * 2)
        self.spec = replace(self.spec, room=room)
        self.seen = []

    def __call__(self, batch):
        self.seen += list(batch)
        return super().__call__(batch[:, 10:-10, 10:-10])


def by_the_pipeline(attributes):
    pipeline = FacePipeline(fake_engines(attributes=attributes), config_of(), People(Ann=ANN))
    for each in walk([(ANN, 100, 60), (ANN, 100, 60)], num=10):
        pipeline.process([each])


def by_the_analyst(attributes, tmp_path):
    cv2.imwrite(str(tmp_path / "ann.png"), scene((ANN, 100, 60)))
    engines = fake_engines(detector=FakeDetector(input_size=(640, 384)), attributes=attributes)
    assert Analyst(engines, Config().quality, Config().identity).image(tmp_path / "ann.png").faces


def by_the_bench(attributes):
    chain(fake_engines(attributes=attributes), [scene((ANN, 100, 60))], HOST)


@pytest.mark.parametrize("feed", [by_the_pipeline, by_the_analyst, by_the_bench])
def test_a_wide_network_is_fed_the_face_as_large_as_it_was_in_training(feed, tmp_path):
    near, wide = Watched(), Watched(WIDE_ROOM)

    for attributes in (near, wide):
        feed(*((attributes, tmp_path) if feed is by_the_analyst else (attributes,)))

    assert len(near.seen) == len(wide.seen) > 0
    for inner, outer in zip(near.seen, wide.seen, strict=True):
        assert inner == pytest.approx(outer[WIDE_ROOM:-WIDE_ROOM, WIDE_ROOM:-WIDE_ROOM], abs=1)


def test_an_engine_is_proved_and_its_ranges_are_measured_on_what_it_is_fed(monkeypatch):
    monkeypatch.setattr("engines.calibration.NUM_CROPS", 4)
    inner = slice(WIDE_ROOM, -WIDE_ROOM)
    size, small = (WIDE, WIDE), (112, 112)

    pairs = [
        (parity_batch("attributes", small), parity_batch("attributes", size, WIDE_ROOM)),
        (
            calibration_batch("attributes", small)[0],
            calibration_batch("attributes", size, None, WIDE_ROOM)[0],
        ),
    ]

    for near, wide in pairs:
        assert near == pytest.approx(wide[:, inner, inner], abs=1)
        assert np.abs(near.astype(int) - parity_batch("attributes", size)[:, inner, inner]).mean() > 5


def test_a_wide_network_is_built_on_crops_as_wide(untrained, tmp_path, monkeypatch):
    weights = untrained(ffhq_spec(FfhqConfig(crop="wide", input_size=64)))
    request = resolve("attributes", "openvino", None, weights, tmp_path, precision="f32")
    asked = []

    def told(name, function, place):
        monkeypatch.setattr(name, lambda *given: asked.append(given[place]) or function(*given))

    told("engines.parity.parity_batch", parity_batch, 2)
    told("engines.calibration.calibration_batch", calibration_batch, 3)

    build_engine(request)
    build._source(replace(request, precision="int8"), None)

    assert [WIDE_ROOM, WIDE_ROOM] == asked


def test_networks_that_see_more_and_less_of_a_face_are_not_averaged(untrained, tmp_path):
    folders = [
        untrained(ffhq_spec(FfhqConfig(crop=crop, input_size=64))) / "attributes"
        for crop in ("attribute", "wide", "thumbnail")
    ]

    with pytest.raises(MienError, match="has another room"):
        average(folders[:2], tmp_path / "attributes")
    with pytest.raises(MienError, match="has another aligned"):
        average(folders[::2], tmp_path / "attributes")


def test_the_spec_of_an_ffhq_network_says_how_it_was_cropped(tmp_path):
    specs = {crop: ffhq_spec(FfhqConfig(crop=crop)) for crop in ("attribute", "wide", "thumbnail")}
    for crop, spec in specs.items():
        (tmp_path / f"{crop}.json").write_text(spec.to_json())

    assert {"attribute": (0, True), "wide": (32, True), "thumbnail": (0, False)} == {
        crop: (spec.room, spec.aligned) for crop, spec in specs.items()
    }
    assert specs == {crop: ModelSpec.load(tmp_path / f"{crop}.json") for crop in specs}
    assert not {"room", "aligned"} & set(json.loads(specs["attribute"].to_json()))


def test_a_spec_from_before_keeps_its_bytes():
    for path in WEIGHTS.glob("*/spec.json"):
        assert path.read_text() == ModelSpec.load(path).to_json()


def test_a_spec_with_less_than_no_room_is_refused():
    with pytest.raises(MienError, match="room must be 0 or more"):
        replace(ffhq_spec(FfhqConfig()), room=-1)


@pytest.fixture
def whole_pictures(untrained):
    """The folder of weights of a network that was trained on whole thumbnails."""
    return untrained(ffhq_spec(FfhqConfig(crop="thumbnail", input_size=64)))


def test_what_was_trained_on_whole_thumbnails_is_not_fed_crops(whole_pictures, sets):
    own = {"attributes": whole_pictures / "attributes"}
    engines = load_face_engines(backend="eager", detector_size=(64, 64), embedder=False, own=own)

    words = r"whole thumbnails.*Train one with `mien train ffhq crop=wide`"
    with pytest.raises(MienError, match=words):
        FacePipeline(engines, config_of())
    with pytest.raises(MienError, match=words):
        Analyst(engines, Config().quality, Config().identity)
    with pytest.raises(MienError, match=words):
        evaluate_recipe("attributes", [f"data={sets}", "backend=eager", f"weights={whole_pictures}"])


@pytest.mark.parametrize(("crop", "size"), [("wide", 64), ("thumbnail", 64), ("attribute", 64)])
def test_evaluation_crops_ffhq_as_the_spec_says(untrained, sets, monkeypatch, crop, size):
    weights = untrained(ffhq_spec(FfhqConfig(crop=crop, input_size=size)))
    asked = []
    thumbnails = evaluate_attributes.thumbnails
    monkeypatch.setattr(
        evaluate_attributes, "thumbnails", lambda c, part: asked.append(c.crop) or thumbnails(c, part)
    )

    figures = evaluate_recipe("ffhq", [f"data={sets}", f"weights={weights}", "backend=eager"])

    assert [crop] == asked and any("machine-made" in name for name in figures)


def test_attributes_are_measured_on_what_the_network_was_trained_on(sets, monkeypatch):
    near, wide = Watched(), Watched(WIDE_ROOM)

    for attributes in (near, wide):
        monkeypatch.setattr(
            evaluate_attributes,
            "engine",
            lambda config, model, attributes=attributes: (
                attributes if model == "attributes" else engine(config, model)
            ),
        )
        evaluate_recipe("attributes", [f"data={sets}", "backend=eager", "limit=9"])

    assert len(near.seen) == len(wide.seen) > 0
    for inner, outer in zip(near.seen, wide.seen, strict=True):
        assert (WIDE, WIDE, 3) == outer.shape
        assert inner == pytest.approx(outer[WIDE_ROOM:-WIDE_ROOM, WIDE_ROOM:-WIDE_ROOM], abs=2)


def test_the_shipped_network_sees_no_more_than_the_attribute_crop():
    spec = ModelSpec.load(WEIGHTS / "attributes" / "spec.json")

    assert (0, True) == (spec.room, spec.aligned)
