"""Every recipe trains, resumes, writes a checkpoint that loads, and is measured: on a handful of pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.calibration import shipped_faces
from engines.checkpoint import load_checkpoint
from engines.errors import MienError, UsageError
from engines.geometry import Floats
from engines.networks import Detector
from engines.runtime import WEIGHTS, load_engine
from engines.spec import ModelSpec
from engines.stages import Detections
from trainers.detection_metrics import Truth, judge
from trainers.detector import DetectorConfig, DetectorRecipe
from trainers.evaluation import evaluate_recipe
from trainers.fit import FitOptions, image_batch, warm_cosine
from trainers.landmarks import LandmarksConfig
from trainers.options import override
from trainers.recipes import make_config, put_into_card, train_recipe
from trainers.scenes import assign, merge_labels
from trainers.transforms import LANDMARK_SWAP, replicate_black_border
from trainers.verification import best_threshold, tar_at_far, ten_fold_accuracy

TEACHER = Path(__file__).parents[2] / "shared/teachers/mobilefacenet_192.onnx"
SHORT = ["fit.epochs=1", "fit.steps_per_epoch=2", "fit.batch_size=4", "fit.threads=2", "limit=12"]


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [
        ("detector", ["crop=128"]),
        ("landmarks", []),
        ("recognition", []),
        (
            "attributes",
            [
                f"start={WEIGHTS / 'embedder'}",
                f"learn_from={WEIGHTS / 'attributes'}",
                "input_size=80",
                "small=48",
            ],
        ),
    ],
)
def test_a_recipe_trains_and_its_checkpoint_runs(sets, tmp_path, recipe, extra):
    folder = train_recipe(recipe, [f"data={sets}", f"run={tmp_path}", *SHORT, *extra])

    network, spec = load_checkpoint(folder)
    size = (128, 128) if recipe == "detector" else None
    engine = load_engine(folder.name, backend="eager", size=size, weights=folder.parent)
    side = {"recognition": 112, "attributes": 80}.get(recipe, 128)
    outputs = engine(np.zeros((1, side, side, 3), np.uint8))
    assert spec.outputs == tuple(outputs)
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert all(torch.isfinite(p).all() for p in network.parameters())


SHALLOW = ["blocks=0,1,1", "towers=1,2,2"]
DEEP = ModelSpec("detector", "detector", "Detector", {"width": 8, "neck": 8}, (64, 64), ("scores", "sides"))


def test_a_shallower_detector_takes_the_layers_it_has_from_a_deeper_one(sets, tmp_path, untrained):
    deep = untrained(DEEP) / "detector"
    settings = [f"data={sets}", f"run={tmp_path}", *SHORT, "crop=64", "width=8", "neck=8", f"start={deep}"]

    folder = train_recipe("detector", [*settings, f"learn_from={deep}", *SHALLOW, "fit.learning_rate=0"])

    before, after = (load_checkpoint(each)[0].state_dict() for each in (deep, folder))
    assert all(torch.equal(before[name], after[name]) for name in after if name.endswith("weight"))
    gone = {name.rpartition(".")[0] for name in set(before) - set(after)}
    assert {"stem.2.first.0", "stage3.2.first.0", "stage4.2.first.0", "heads.0.tower.1.0"} <= gone
    assert not [name for name in gone if name.startswith(("stage5", "heads.1", "heads.2"))]
    assert "as_model" in json.loads((tmp_path / "metrics.json").read_text())


def test_another_network_goes_where_training_is():
    model = Detector()
    recipe = DetectorRecipe(Detector(), DetectorConfig(), model).to("meta")

    recipe.on_fit_start()

    assert {"meta"} == {each.device.type for each in model.parameters()}
    assert not [name for name in recipe.state_dict() if name.startswith("model")]


def test_another_network_s_answers_are_a_loss_until_they_are_one_s_own():
    model = load_checkpoint(WEIGHTS / "detector")[0]
    recipe = DetectorRecipe(Detector(), DetectorConfig(crop=224), model)
    image = image_batch(torch.from_numpy(np.stack([face.image for face in shipped_faces()])))
    logits, sides = (each.detach() for each in model(image))

    same, overlap = recipe.like_model(model, image, logits, sides)
    shifted, less = recipe.like_model(model, image, logits - 1, sides * 1.3)

    assert (0.0, 1.0) == (pytest.approx(float(same), abs=1e-5), pytest.approx(float(overlap), abs=1e-5))
    assert float(shifted) > 0.1 and float(less) < 0.9


def test_a_deeper_detector_does_not_start_from_a_shallower_one(sets, tmp_path):
    start = f"start={WEIGHTS / 'detector'}"

    with pytest.raises(UsageError, match=r"has no weights for .*; set width, neck, blocks and towers"):
        train_recipe("detector", [f"data={sets}", f"run={tmp_path}", *SHORT, start, "blocks=1,3,2"])


@pytest.mark.parametrize("recipe", ["detector", "landmarks", "recognition", "attributes"])
def test_a_file_to_start_from_is_not_taken_for_a_checkpoint(sets, tmp_path, recipe):
    file = WEIGHTS / "embedder" / "weights.safetensors"

    with pytest.raises(
        MienError, match=r"weights\.safetensors: is not a checkpoint, which is a folder.*card\.md"
    ):
        train_recipe(recipe, [f"data={sets}", f"run={tmp_path}", *SHORT, f"start={file}"])


def test_without_identities_and_without_a_teacher_there_is_nothing_to_learn_from(sets, tmp_path):
    with pytest.raises(UsageError, match=r"without identities .* set teacher="):
        train_recipe("recognition", [f"data={sets}", f"run={tmp_path}", *SHORT, "labelled=false"])


def test_frozen_layers_stay_as_they_are_and_the_others_learn(sets, tmp_path):
    start = WEIGHTS / "embedder"
    settings = [f"data={sets}", f"run={tmp_path}", *SHORT, f"start={start}", "fit.learning_rate=0.1"]

    folder = train_recipe("recognition", [*settings, "frozen=5"])

    before, after = (load_checkpoint(f)[0].state_dict() for f in (start, folder))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(tuple(f"trunk.{i}." for i in range(5)))} <= same
    assert not [name for name in same if name.startswith("trunk.5.")]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["frozen=2"], "name weights with start="),
        (["frozen=13", f"start={WEIGHTS / 'embedder'}"], "13 layers"),
    ],
)
def test_layers_that_cannot_be_frozen_are_said_before_any_data_is_read(tmp_path, extra, words):
    with pytest.raises(UsageError, match=words):
        train_recipe("recognition", [f"data={tmp_path}", f"run={tmp_path}", *SHORT, *extra])


@pytest.mark.skipif(not TEACHER.is_file(), reason="needs the teacher's ONNX file in ../shared/teachers")
def test_an_embedder_that_learns_from_a_teacher_alone_sees_no_labelled_person(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.recognition.celeba_faces", None)  # calling it would fail
    settings = [f"data={sets}", f"run={tmp_path}", *SHORT, "labelled=false", f"teacher={TEACHER}"]

    folder = train_recipe("recognition", settings)

    card = (folder / "card.md").read_text()
    assert ("embedding",) == load_checkpoint(folder)[1].outputs
    assert "labelled=False" in card and "celeba_faces.zip" not in card and "mtfl.zip" in card
    assert "teacher=mobilefacenet_192.onnx" in card and str(TEACHER.parent) not in card


def test_a_run_resumes_after_its_last_whole_epoch(sets, tmp_path, capsys):
    settings = [f"data={sets}", f"run={tmp_path}", *SHORT]
    train_recipe("landmarks", settings)

    train_recipe("landmarks", [*settings, "fit.epochs=2"])

    epochs = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["1/1", "2/2"] == epochs


@pytest.mark.parametrize("recipe", ["detector", "landmarks", "recognition", "attributes"])
def test_a_recipe_is_measured_through_the_shipped_engines(sets, recipe):
    figures = evaluate_recipe(recipe, [f"data={sets}", "backend=eager"])

    assert figures
    assert all("nan" not in str(value) for value in figures.values())


def test_figures_replace_the_old_ones_in_a_card(tmp_path):
    for figures in ({"NME": "9 %"}, {"NME": "5 %", "FR": "1 %"}):
        put_into_card(tmp_path, "landmarks", figures)

    card = (tmp_path / "card.md").read_text()
    assert "| NME | 5 % |\n| FR | 1 % |" in card
    assert "9 %" not in card and 1 == card.count("mien evaluate landmarks")


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(MienError, match=r"mtfl\.zip.*set data=FOLDER"):
        train_recipe("landmarks", [f"data={tmp_path}", f"run={tmp_path}"])


def test_options_are_set_by_key_and_keep_their_type():
    config = override(LandmarksConfig(), ["limit=5", "fit.learning_rate=1e-3", "data=/x=y"])

    assert (5, 1e-3, "/x=y") == (config.limit, config.fit.learning_rate, config.data)
    for written in ("1,2,2", "[1, 2, 2]"):
        assert (1, 2, 2) == override(DetectorConfig(), [f"blocks={written}"]).blocks


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("limits=5", "did you mean 'limit'"),
        ("fit.epoch=5", "did you mean 'epochs'"),
        ("fit=5", "is a group"),
        ("limit=many", "is not of type int"),
        ("limit", "write it as key=value"),
        ("limit.x=1", "has no parts"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest(setting, words):
    with pytest.raises(UsageError, match=words):
        override(LandmarksConfig(), [setting])


@pytest.mark.parametrize("text", ["1,2", "1,2,-1", "1,2,many", "2"])
def test_numbers_that_are_too_few_or_none_are_refused(text):
    with pytest.raises(UsageError, match="3 whole numbers"):
        override(DetectorConfig(), [f"blocks={text}"])


def test_every_recipe_has_options():
    assert isinstance(make_config("detector", []).fit, FitOptions)


def boxes(*rows: tuple[float, float, float, float]) -> Floats:
    return np.array(rows, np.float32).reshape(-1, 4)


def row(origin, score, box):
    return {
        "origin": origin,
        "score": score,
        **dict(zip(("x1", "y1", "x2", "y2"), map(str, box), strict=True)),
    }


def test_labels_of_several_origins_merge_and_doubt_stays_doubt():
    face, faint, yunet_only, human = (0, 0, 40, 50), (100, 0, 120, 25), (200, 0, 240, 50), (300, 0, 340, 50)
    rows = [
        row("scrfd", "0.9", face),
        row("yunet", "0.8", (1, 1, 41, 50)),
        row("scrfd", "0.4", faint),
        row("yunet", "0.9", yunet_only),
        row("human", "", human),
    ]

    faces, doubtful = merge_labels(rows)

    assert [list(face), list(human)] == faces.tolist()
    assert {tuple(faint), tuple(yunet_only)} == {tuple(box) for box in doubtful.astype(int).tolist()}


def test_a_face_teaches_the_level_of_its_size_and_doubt_is_not_judged():
    from engines.geometry import location_centres

    centres, strides = location_centres((320, 320), (8, 16, 32))
    target, _ = assign(boxes((100, 100, 130, 130)), boxes((200, 200, 260, 260)), centres, strides)

    assert {8.0} == set(strides[target == 1])
    assert (np.abs(centres[target == 1] - 115) < 15).all()
    inside = ((centres > 200) & (centres < 260)).all(1)
    assert (target[inside] == -1).all()


def test_average_precision_by_hand():
    found = [
        Detections(
            boxes((0, 0, 40, 40), (100, 0, 140, 40), (200, 0, 240, 40)), np.array([0.9, 0.8, 0.7], np.float32)
        )
    ]
    truth = [Truth(boxes((0, 0, 40, 40), (200, 0, 240, 40)), boxes())]

    judged = judge(found, truth, 32)

    assert (2 / 3, 1.0) == pytest.approx(judged.precision_recall(0.5))
    assert 0.5 + 0.5 * 2 / 3 == pytest.approx(judged.average_precision())
    assert 0.7 == pytest.approx(judged.threshold_at_recall(1.0))


def test_small_and_doubtful_faces_count_neither_way():
    found = [Detections(boxes((0, 0, 20, 20), (100, 0, 140, 40)), np.array([0.9, 0.8], np.float32))]
    truth = [Truth(boxes((0, 0, 20, 20)), boxes((100, 0, 140, 40)))]

    judged = judge(found, truth, 32)

    assert (0, 0) == (judged.num_faces, len(judged.scores))


def test_verification_of_separable_pairs_is_perfect():
    same = np.array([True, False] * 20)
    similarity = np.where(same, 0.8, 0.1).astype(np.float32) + np.linspace(0, 0.05, 40, dtype=np.float32)

    assert (1.0, 0.0) == ten_fold_accuracy(similarity, same, np.arange(40) // 4)
    assert 1.0 == tar_at_far(similarity, same, 0.01)[0]
    assert 0.15 < best_threshold(similarity, same) < 0.81


def test_the_rate_warms_up_and_ends_low():
    assert warm_cosine(0) < 0.1 < 0.9 < warm_cosine(0.05) <= 1.0
    assert 0.01 == pytest.approx(warm_cosine(1.0))


def test_black_borders_are_filled_from_the_picture():
    image = np.full((60, 60, 3), 120, np.uint8)
    image[:20], image[:, 50:] = 0, 0

    filled = replicate_black_border(image)

    assert 120 == filled.min()


def test_mirroring_swaps_left_and_right():
    assert [1, 0, 2, 4, 3] == list(LANDMARK_SWAP)
