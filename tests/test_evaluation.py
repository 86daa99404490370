"""The measuring side: intervals, equal conditions, calibration, FFHQ's and WIDER FACE's layouts, and pictures."""

import json
import zipfile

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from daemon.cli import app
from engines.backends.eager import EagerEngine
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.errors import MienError, UsageError
from engines.networks import AttributesNet
from engines.runtime import WEIGHTS
from engines.spec import EMOTIONS, ModelSpec
from engines.stages import Detections
from tests.face_sets import face, ffhq_label, write_all
from trainers.attribute_sets import blacked_out, fill_black
from trainers.attributes import age_distribution, start_from
from trainers.bootstrap import Figure, bootstrap, share
from trainers.calibration import best_temperature, divide, expected_calibration_error, tempered
from trainers.detection_metrics import Truth, judge
from trainers.detector_truths import judged_scene, painted
from trainers.evaluate_landmarks import coded, flicker, second_step
from trainers.evaluation import evaluate_recipe, figures_json
from trainers.ffhq import FfhqConfig, load_state, make_network
from trainers.ffhq_layout import ffhq_part, open_ffhq
from trainers.recipes import train_recipe
from trainers.verification import OpenSet, open_set
from trainers.wider import load_wider, read_list


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_all(folder)
    return folder


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


# Detector


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def found(*scored):
    return Detections(boxes(*[s[1:] for s in scored]), np.array([s[0] for s in scored], np.float32))


def test_average_precision_of_drawn_images_is_that_of_the_repeated_set():
    detections = [found((0.9, 0, 0, 40, 40)), found((0.8, 100, 0, 140, 40)), found((0.7, 0, 0, 40, 40))]
    truths = [Truth(boxes((0, 0, 40, 40)), boxes()) for _ in range(3)]
    judged = judge(detections, truths, 16)
    rows = np.array([0, 1, 1])

    drawn = judge([detections[i] for i in rows], [truths[i] for i in rows], 16)

    assert drawn.average_precision() == pytest.approx(judged.average_precision(judged.weights(rows)))
    assert drawn.precision_recall(0.5) == pytest.approx(judged.precision_recall(0.5, judged.weights(rows)))


def test_false_alarms_are_counted_by_image_above_the_threshold():
    detections = [found((0.9, 0, 0, 40, 40), (0.8, 100, 0, 140, 40), (0.3, 200, 0, 240, 40)), found()]
    truths = [Truth(boxes((0, 0, 40, 40)), boxes()), Truth(boxes(), boxes())]

    assert [1, 0] == judge(detections, truths, 32).false_alarms(0.5).tolist()


def row(origin, score, *box):
    return {
        "origin": origin,
        "score": score,
        **dict(zip(("x1", "y1", "x2", "y2"), map(str, box), strict=True)),
    }


def test_human_boxes_are_the_truth_where_there_are_any_and_scrfd_elsewhere():
    image = np.zeros((100, 200, 3), np.uint8)
    rows = [
        row("scrfd", "0.9", 0, 0, 40, 40),
        row("scrfd", "0.4", 60, 0, 90, 40),
        row("scrfd", "0.1", 5, 5, 9, 9),
    ]

    machine = judged_scene(image, rows).truth
    human = judged_scene(image, [*rows, row("human", "", 150, 60, 220, 90)]).truth

    assert ([[0, 0, 40, 40]], [[60, 0, 90, 40]]) == (machine.faces.tolist(), machine.ignored.tolist())
    assert [[150, 60, 200, 90]] == human.faces.tolist()
    assert 2 == len(human.ignored)


def test_painting_over_leaves_nothing_of_a_labelled_box_and_all_of_the_rest():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    scene = judged_scene(image, [row("yunet", "0.2", 20, 20, 50, 50)])

    covered = painted(scene, 3)

    changed = (covered != image).any(2)
    assert changed[22:48, 22:48].mean() > 0.9
    assert not changed[:, 60:].any() and not changed[55:].any()
    assert (covered == painted(scene, 3)).all()


WIDER = """0--Parade/a.jpg
3
10 12 30 40 0 0 0 0 0 0
100 20 8 9 2 0 0 1 2 0
50 50 0 0 0 0 0 0 0 0
1--Handshaking/none.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
1
5 6 20 30 0 0 0 0 0 0
"""


@pytest.fixture
def wider(tmp_path):
    (tmp_path / "wider_face_split").mkdir()
    for split in ("val", "train"):
        (tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt").write_text(WIDER)
        for name in ("0--Parade/a.jpg", "1--Handshaking/none.jpg", "1--Handshaking/b.jpg"):
            path = tmp_path / f"WIDER_{split}/images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return tmp_path


def test_wider_face_is_read_with_its_invalid_boxes_in_doubt(wider):
    first, none, second = load_wider(wider, "train", max_side=80)

    assert ([[5, 6, 20, 26]], [[50, 10, 54, 14.5]]) == (first.faces.tolist(), first.doubtful.tolist())
    assert ((60, 80, 3), 0, 1) == (first.image.shape, len(none.faces), len(second.faces))


@pytest.mark.parametrize(
    ("text", "words"),
    [("a.jpg\n2\n1 2 3 4\n", "'a.jpg' does not fit"), ("a.jpg\nmany\n", "'a.jpg'"), ("a.jpg\n", "'a.jpg'")],
)
def test_a_wider_list_that_does_not_fit_is_named(tmp_path, text, words):
    (tmp_path / "list.txt").write_text(text)

    with pytest.raises(MienError, match=words):
        read_list(tmp_path / "list.txt")


def test_a_missing_wider_picture_is_named(wider):
    (wider / "WIDER_val/images/1--Handshaking/b.jpg").unlink()

    with pytest.raises(MienError, match=r"b\.jpg: missing"):
        load_wider(wider, "val")


def test_the_detector_is_measured_on_wider_face_too(sets, wider, tmp_path):
    settings = [f"data={sets}", f"wider={wider}", "backend=eager", f"plots={tmp_path / 'plots'}"]
    figures = evaluate_recipe("detector", settings)

    assert any(name.startswith("AP of ours, 3 WIDER FACE val") for name in figures)
    assert {"precision_recall_held-out.png", "precision_recall_wider.png"} == {
        path.name for path in (tmp_path / "plots").iterdir()
    }


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


def test_only_darkness_that_reaches_the_edge_is_background():
    image = np.zeros((60, 60, 3), np.uint8)
    image[10:50, 10:50] = 120
    image[25:30, 20:25] = 3  # an eye

    background = blacked_out(image)
    filled = fill_black(np.random.default_rng(0), np.where(background[..., None], 0, np.maximum(image, 1)))

    assert background[:10].all() and not background[10:50, 10:50].any()
    assert (filled[25:30, 20:25] == 3).all() and filled[:10].mean() > 3


def test_attributes_are_measured_by_group_with_pictures(sets, tmp_path):
    figures = evaluate_recipe("attributes", [f"data={sets}", "backend=eager", f"plots={tmp_path}"])

    assert any("machine-made labels" in name for name in figures)
    assert "folded into the network" in figures["emotion temperature, from FER+ PublicTest"]
    assert {"age.png", "emotions.png", "reliability.png"} == {path.name for path in tmp_path.iterdir()}
    assert all(cv2.imread(str(path)).std() > 5 for path in tmp_path.iterdir())


# FFHQ


def ffhq_tree(folder, n=60):
    """The public layout in a folder, with PNG thumbnails."""
    rng = np.random.default_rng(281)
    for name in ("thumbnails", "json"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        cv2.imwrite(str(folder / f"thumbnails/{i:05d}.png"), face(rng, 128, 32, 0.46)[0])
        (folder / f"json/{i:05d}.json").write_text(json.dumps(ffhq_label(rng, i)))
    return folder


def test_ffhq_is_split_by_the_hash_of_its_webp_name_in_folder_and_zip(tmp_path):
    folder = ffhq_tree(tmp_path / "ffhq")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))

    parts = {}
    for part in ("train", "val", "test"):
        with open_ffhq(tmp_path) as from_folder, open_ffhq(tmp_path / "packed.zip") as from_zip:
            parts[part] = [row.image for row in from_folder.faces(part)]
            assert parts[part] == [row.image for row in from_zip.faces(part)]

    assert 60 == len(set().union(*parts.values())) == sum(map(len, parts.values()))
    assert (
        "test" == ffhq_part("thumbnails/00004.png") == ffhq_part("00004.webp")
        or ffhq_part("00004.webp") in parts
    )


def test_ffhq_labels_that_do_not_fit_are_all_named(tmp_path):
    folder = ffhq_tree(tmp_path / "ffhq")
    train = [p.stem for p in sorted((folder / "thumbnails").iterdir()) if ffhq_part(p.name) == "train"]
    label = ffhq_label(np.random.default_rng(0), 0)
    label[0]["faceAttributes"]["age"] = 300
    (folder / f"json/{train[0]}.json").write_text(json.dumps(label))
    (folder / f"json/{train[1]}.json").unlink()
    (folder / f"json/{train[2]}.json").write_text("{")
    (folder / f"json/{train[3]}.json").write_text("[]")  # the machine saw no face: left out

    with open_ffhq(tmp_path) as data, pytest.raises(MienError) as error:
        data.faces("train")

    assert all(name in str(error.value) for name in train[:3]) and train[3] not in str(error.value)
    assert "age 300.0 is out of range" in str(error.value)


FFHQ_SHORT = [
    "crop=thumbnail",
    "input_size=64",
    "fit.batch_size=16",
    "fit.threads=2",
    "picture_every=1",
    "start=",
]


def test_the_ffhq_recipe_leaves_what_the_seed_left_and_resumes(tmp_path):
    folder = ffhq_tree(tmp_path / "ffhq")
    settings = [f"data={folder}", f"run={tmp_path / 'run'}", *FFHQ_SHORT]
    train_recipe("ffhq", [*settings, "fit.epochs=1"])

    checkpoint = train_recipe("ffhq", [*settings, "fit.epochs=2"])

    run = tmp_path / "run"
    assert [1, 2] == [row["epoch"] for row in json.loads((run / "history.json").read_text())]
    assert {"epoch_001", "epoch_002"} == {p.name for p in run.glob("epoch_*")}
    assert all(cv2.imread(str(run / f"history_00{n}.png")) is not None for n in (1, 2))
    best = json.loads((checkpoint / "metadata.json").read_text())
    history = json.loads((run / "history.json").read_text())
    assert best["epoch"] == min(history, key=lambda r: r["val_loss"])["epoch"]
    assert ("thumbnail", 64) == (best["crop"], best["options"]["input_size"])
    network, spec = load_checkpoint(checkpoint)
    assert ((64, 64), EMOTIONS) == (spec.input_size, spec.labels)
    kept = load_file(run / "best_model.safetensors")
    assert all(
        torch.allclose(v.half().float(), network.state_dict()[k])
        for k, v in kept.items()
        if v.is_floating_point()
    )
    figures = evaluate_recipe("ffhq", [f"data={folder}", f"weights={run}", "backend=eager"])
    assert 3 == len(figures) and all("machine-made" in name for name in figures)


def test_the_ffhq_network_may_be_a_torchvision_backbone_from_a_state_dict(tmp_path):
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    torch.save(mobilenet_v3_small().state_dict(), tmp_path / "backbone.pt")
    config = FfhqConfig(backbone="mobilenet_v3_small", start=str(tmp_path / "backbone.pt"), input_size=64)

    network = make_network(config).eval()

    first = torch.load(tmp_path / "backbone.pt", weights_only=True)["features.0.0.weight"]
    assert (first == network.trunk.state_dict()["features.0.0.weight"]).all()
    assert (2,) == network(torch.zeros(2, 3, 64, 64))[1].shape


def test_a_state_dict_of_something_else_and_a_pickle_with_code_are_refused(tmp_path):
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"trunk.x": FfhqConfig()}, tmp_path / "code.pt")

    with pytest.raises(MienError, match="none of its 1 tensors fits"):
        load_state(AttributesNet(widths=(8, 8, 16, 16)), tmp_path / "other.safetensors")
    with pytest.raises(MienError, match="not a plain file of tensors"):
        load_state(AttributesNet(widths=(8, 8, 16, 16)), tmp_path / "code.pt")
    with pytest.raises(UsageError, match="backbone=NAME"):
        make_network(FfhqConfig(start="imagenet"))


# The command


def test_the_command_prints_json_alone_and_draws_where_it_is_told(sets, tmp_path):
    words = ["evaluate", "landmarks", f"data={sets}", "backend=eager", "limit=4", "--json"]
    result = CliRunner().invoke(app, [*words, "--plots", str(tmp_path)])

    assert 0 == result.exit_code, result.output
    figures = json.loads(result.stdout)
    nme = next(value for name, value in figures.items() if name.startswith("NME"))
    assert nme["low"] <= nme["value"] <= nme["high"] and "%" == nme["unit"]
    assert {"landmarks.png", "landmark_errors.png"} == {path.name for path in tmp_path.iterdir()}
