"""The measuring side: intervals, equal conditions, calibration, and pictures."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from daemon.cli import app
from engines.backends.eager import EagerEngine
from engines.checkpoint import load_checkpoint, save_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError, UsageError
from engines.networks import AttributesNet
from engines.runtime import WEIGHTS
from engines.spec import EMOTIONS, ModelSpec
from tests.face_sets import face, write_zip
from trainers.attribute_sets import (
    UNKNOWN,
    blacked_out,
    evenly,
    ferplus_rows,
    fill_black,
    mtfl,
    recurring,
)
from trainers.attributes import AttributesConfig, age_distribution, start_from
from trainers.bootstrap import Figure, bootstrap, share
from trainers.calibration import best_temperature, divide, expected_calibration_error, tempered
from trainers.evaluate_landmarks import coded, flicker, second_step
from trainers.evaluation import evaluate_recipe, figures_json
from trainers.ffhq import FfhqConfig
from trainers.recipes import spec_of
from trainers.verification import OpenSet, open_set
from trainers.zips import ImageZip

# Intervals


def test_an_interval_holds_the_true_mean_and_narrows_with_more_pictures():
    rng = np.random.default_rng(1)
    few, many = (share(rng.random(n) < 0.8) for n in (100, 10_000))

    assert few.low < 0.8 < few.high and many.low < 0.8 < many.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_a_figure_is_measured_again_on_what_was_drawn():
    seen = []

    def largest(rows):
        seen.append(len(rows))
        return float(rows.max())

    figure = bootstrap(largest, 50, rounds=20)

    assert (49.0, [50] * 21) == (figure.value, seen)
    assert figure.low < figure.high <= 49


def test_figures_are_written_with_unit_and_interval_and_go_to_json():
    figures = {
        "age": Figure(5.751, 5.5, 6.0, "years", 2),
        "gender": Figure(0.9, 0.88, 0.92, "%", 1),
        "t": "0.59",
    }

    assert ["5.75 years (5.50 to 6.00)", "90.0% (88.0% to 92.0%)", "0.59"] == [
        str(v) for v in figures.values()
    ]
    told = json.loads(figures_json(figures))
    assert (0.88, "0.59") == (told["gender"]["low"], told["t"]["text"])


# Landmarks

FIVE = np.array([[0, 0], [10, 0], [5, 5], [2, 9], [8, 9]], np.float32)


def test_flicker_is_the_mean_step_over_the_interocular_distance():
    points, right = FIVE, np.array([1, 0], np.float32)

    assert 0.1 == pytest.approx(flicker([points, points + right, points, None, points]))
    assert flicker([points, None, points]) is None


def test_steady_movement_is_no_jitter():
    points, right = FIVE, np.array([1, 0], np.float32)

    assert 0.0 == second_step([points - 2], points, [points + 2])
    assert 2 / np.sqrt(3) / 10 == pytest.approx(second_step([points + right], points, [points + right]))
    assert second_step([points + 50], points, [points]) is None


def test_a_still_clip_has_noise_of_its_own_in_every_frame():
    picture, _ = face(np.random.default_rng(0), 160, 30, 0.4)

    frames = coded(picture, np.random.default_rng(0))

    assert 12 == len(frames)
    assert 0 < np.abs(frames[0].astype(int) - frames[-1]).mean() < 10


# Embedder


def test_open_set_identification_of_separable_people_is_perfect():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(20), 8)
    embeddings = np.eye(32, dtype=np.float32)[identity] + rng.normal(0, 0.02, (160, 32)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    deals = open_set(embeddings, identity)

    assert [1.0, 1.0] == [deal.detection_and_identification(0.01) for deal in deals]
    assert [10 * 5 + 10 * 8] * 2 == [len(deal.person) for deal in deals]
    assert not set(deals[0].person[deals[0].enrolled]) & set(deals[1].person[deals[1].enrolled])


def test_a_probe_counts_only_above_the_threshold_that_few_strangers_pass():
    enrolled = np.array([True] * 4 + [False] * 100)
    best = np.concatenate(([0.9, 0.8, 0.3, 0.9], np.linspace(0, 0.5, 100))).astype(np.float32)
    right = np.array([True, True, True, False] + [False] * 100)
    deal = OpenSet(np.arange(104), enrolled, best, right)

    assert 0.5 == deal.detection_and_identification(0.01)
    assert 0.75 == deal.detection_and_identification(0.60)


# Attributes


def test_a_temperature_takes_back_false_certainty():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 8))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = np.array([rng.choice(8, p=p) for p in honest])
    boastful = tempered(honest.astype(np.float32), 0.4)

    temperature = best_temperature(boastful, label)

    assert 2.5 == pytest.approx(temperature, rel=0.1)
    assert expected_calibration_error(boastful, label) > 0.15
    assert 0.03 > expected_calibration_error(tempered(boastful, temperature), label)


def test_a_folded_temperature_is_in_the_engines_probabilities():
    network = AttributesNet(widths=(8, 8, 16, 16)).eval()
    spec = ModelSpec("a", "attributes", "AttributesNet", {}, (112, 112), ("age_years", "female", "emotion"))
    engine = EagerEngine(Deployed(network, spec), spec, (112, 112))
    batch = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    before = engine(batch)

    divide(network.emotion[-1], 2.5)

    after = engine(batch)
    assert tempered(before["emotion"], 2.5) == pytest.approx(after["emotion"], abs=1e-5)
    assert (before["female"] == after["female"]).all()


def test_the_age_is_the_mean_of_its_distribution():
    network = AttributesNet(widths=(8, 8, 16, 16), age_bins=101).eval()
    logits = age_distribution(torch.tensor([4.0, 33.5]), 101).log()

    assert [4.0, 33.5] == pytest.approx(network.years_of(logits).tolist(), abs=0.4)
    assert (2,) == network(torch.zeros(2, 3, 112, 112))[0].shape


def test_a_larger_input_starts_from_the_smaller_ones_trunk():
    network = AttributesNet(input_size=224)
    start_from(network, str(WEIGHTS / "embedder"))

    old = load_checkpoint(WEIGHTS / "embedder")[0].trunk.state_dict()
    new = network.trunk.state_dict()
    assert all((old[k] == new[k]).all() for k in old if old[k].shape == new[k].shape)
    pool = next(k for k in old if old[k].shape[-2:] == (7, 7))
    assert old[pool].sum((2, 3)) == pytest.approx(new[pool].sum((2, 3)), abs=0.05)
    assert (1, 8) == network.eval()(torch.zeros(1, 3, 224, 224))[2].shape


def test_a_crop_with_less_room_starts_from_the_part_of_the_wider_one_that_it_sees(tmp_path):
    wide = AttributesNet(input_size=176)
    spec = spec_of("ffhq", FfhqConfig(input_size=176, crop="wide"))
    save_checkpoint(tmp_path / "wide", wide, spec, "")
    network, again = AttributesNet(), AttributesNet(input_size=176)
    start_from(network, str(tmp_path / "wide"))
    start_from(again, str(tmp_path / "wide"), room=32)

    (seen,) = (k for k, v in wide.trunk.state_dict().items() if v.shape[-2:] == (11, 11))
    old = wide.trunk.state_dict()[seen]
    assert old[..., 2:-2, 2:-2].half().equal(network.trunk.state_dict()[seen].half())
    assert old.half().equal(again.trunk.state_dict()[seen].half())


def test_a_wider_crop_at_the_same_size_begins_blind_to_what_the_start_did_not_see(tmp_path):
    near = AttributesNet(input_size=224)
    save_checkpoint(tmp_path / "near", near, spec_of("ffhq", FfhqConfig(input_size=224)), "")
    network = AttributesNet(input_size=224)
    start_from(network, str(tmp_path / "near"), room=32)

    (seen,) = (k for k, v in network.trunk.state_dict().items() if v.shape[-2:] == (14, 14))
    places = network.trunk.state_dict()[seen]
    assert 0 == places[..., 0, :].abs().max() and 0 < places[..., 7, 7].abs().max()


def test_only_darkness_that_reaches_the_edge_is_background():
    image = np.zeros((60, 60, 3), np.uint8)
    image[10:50, 10:50] = 120
    image[25:30, 20:25] = 3  # an eye

    background = blacked_out(image)
    filled = fill_black(np.random.default_rng(0), np.where(background[..., None], 0, np.maximum(image, 1)))

    assert background[:10].all() and not background[10:50, 10:50].any()
    assert (filled[25:30, 20:25] == 3).all() and filled[:10].mean() > 3


def test_a_part_of_fer_that_is_not_there_is_named(tmp_path):
    row = {"path": "a.webp", "usage": "Training", "dup_of": "", "unknown": 0} | {
        f"v_{e}": 1 for e in EMOTIONS
    }
    write_zip(tmp_path / "ferplus.zip", {"a.webp": np.zeros((48, 48, 3), np.uint8)}, [row])

    with ImageZip(tmp_path, "ferplus") as data:
        assert 1 == len(ferplus_rows(data, "train"))
        with pytest.raises(MienError, match=r"ferplus\.zip: no voted row with the usage PublicTest"):
            ferplus_rows(data, "val")


def test_fer_s_near_duplicates_are_left_out_of_the_parts_that_come_before(tmp_path):
    """The set names them with another suffix than its own pictures have."""

    def row(name, usage, dup_of=""):
        return {"path": f"{name}.webp", "usage": usage, "dup_of": dup_of, "unknown": 0} | {
            f"v_{emotion}": 3 if emotion == "anger" else 1 for emotion in EMOTIONS
        }

    rows = [
        row("a", "Training", "b.png"),
        row("b", "PrivateTest"),
        row("c", "Training", "a.png"),
        row("d", "PublicTest", "e.png"),
        row("e", "Training"),
        row("f", "Training", "g.png"),
        row("g", "Training"),
        row("h", "PrivateTest"),
    ]
    blank = np.zeros((48, 48, 3), np.uint8)
    write_zip(tmp_path / "ferplus.zip", {each["path"]: blank for each in rows}, rows)

    with ImageZip(tmp_path, "ferplus") as data:
        parts = {
            part: "".join(r["path"][0] for r in ferplus_rows(data, part)) for part in ("train", "val", "test")
        }
        again = recurring(data)

    assert {"train": "fg", "val": "d", "test": "bh"} == parts
    assert {f"{name}.webp" for name in "abcde"} == again


def test_attributes_are_measured_by_group_with_pictures(sets, tmp_path):
    figures = evaluate_recipe("attributes", [f"data={sets}", "backend=eager", f"plots={tmp_path}"])

    assert any("machine-made labels" in name for name in figures)
    assert "folded into the network" in figures["emotion temperature, from FER+ PublicTest"]
    assert {"age.png", "emotions.png", "reliability.png"} == {path.name for path in tmp_path.iterdir()}
    assert all(cv2.imread(str(path)).std() > 5 for path in tmp_path.iterdir())


# The command


def test_the_command_prints_json_alone_and_draws_where_it_is_told(sets, tmp_path):
    words = ["evaluate", "landmarks", f"data={sets}", "backend=eager", "limit=4", "--json"]
    result = CliRunner().invoke(app, [*words, "--plots", str(tmp_path)])

    assert 0 == result.exit_code, result.output
    figures = json.loads(result.stdout)
    nme = next(value for name, value in figures.items() if name.startswith("NME"))
    assert nme["low"] <= nme["value"] <= nme["high"] and "%" == nme["unit"]
    assert {"landmarks.png", "landmark_errors.png"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("typo", "there is no checkpoint .*typo/embedder; name the folder that holds embedder, or embedder itself"),
        ("run/detector", "is itself a checkpoint; name the folder that holds embedder"),
    ],
)  # fmt: skip
def test_weights_without_the_model_are_refused_and_the_card_left_alone(sets, tmp_path, named, words):
    for model in ("detector", "embedder"):
        shutil.copytree(WEIGHTS / model, tmp_path / "run" / model)
    card = tmp_path / "run" / "embedder" / "card.md"
    before = card.read_text()
    settings = [f"data={sets}", "backend=eager", f"weights={tmp_path / named}"]

    result = CliRunner().invoke(app, ["evaluate", "recognition", *settings, "--write-card", str(card.parent)])
    with pytest.raises(UsageError, match=f"weights=.*{named}: {words}"):
        evaluate_recipe("recognition", settings)

    assert isinstance(result.exception, UsageError)
    assert before == card.read_text()


def test_weights_may_be_the_checkpoint_s_own_folder_and_other_models_are_the_shipped_ones(
    sets, tmp_path, untrained
):
    spec = ModelSpec("embedder", "embedder", "FaceResNet", {}, (112, 112), ("embedding",), threshold=0.5)
    folder = untrained(spec)
    settings = [f"data={sets}", "backend=eager"]

    inside, itself = (
        evaluate_recipe("recognition", [*settings, f"weights={each}"])
        for each in (folder, folder / "embedder")
    )

    assert inside == itself != evaluate_recipe("recognition", settings)


def test_mtfl_teaches_gender_alone_and_only_by_its_training_part(sets):
    faces = mtfl(AttributesConfig(data=str(sets)))

    with ImageZip(str(sets), "mtfl") as data:
        trained = {row["file"]: row["gender"] for row in data.rows() if row["split"] == "train"}
    assert [trained[name] == "2" for name in faces.names] == faces.female.astype(bool).tolist()
    assert len(trained) == len(faces) and {0.0, 1.0} == set(faces.female.tolist())
    assert (faces.age == UNKNOWN).all() and (faces.emotion == UNKNOWN).all()


def test_a_limit_takes_rows_from_all_over_a_sorted_list():
    assert [0, 2, 4, 6, 8] == evenly(range(10), 5)
    assert [0, 3, 6] == evenly(range(10), 3)
    assert [0, 1] == evenly(range(2), 5) == evenly(range(2), 0)
