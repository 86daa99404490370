"""Five expressions: the data's rules, the networks, the recipe, its figures."""

import pickle
import shutil
import zipfile
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch

from engines.checkpoint import load_checkpoint, make_network, save_checkpoint
from engines.errors import MienError, UsageError
from engines.expression import expression_spec, load_classifier
from engines.networks.expression import KINDS
from engines.networks.layers import ImageNetInput
from engines.runtime import WEIGHTS, load_engine
from engines.spec import EXPRESSIONS
from trainers.evaluation import evaluate_recipe
from trainers.expression import ModelOptions, wanted_probabilities
from trainers.expression import make_network as network_of
from trainers.expression_crops import aligned, changed
from trainers.expression_data import DataOptions, Picture, labelled_pictures, split
from trainers.expression_metrics import balanced_accuracy, confidently_other, weighted_f1, wilson
from trainers.recipes import train_recipe

PORTRAIT = Path(__file__).parents[1] / "samples" / "eileen_collins.jpg"


def folders(root: Path, each: int = 5) -> Path:
    for k, name in enumerate(EXPRESSIONS):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture = np.full((60, 50, 3), 40 * k + i, np.uint8)
            cv2.imwrite(str(root / name / f"{i}.png"), picture)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_gives_probabilities_through_its_checkpoint(kind, tmp_path):
    spec = expression_spec(kind)
    save_checkpoint(tmp_path / "expression", make_network(spec), spec, "# expression\n")
    engine = load_engine("expression", backend="eager", weights=tmp_path)

    found = engine(np.full((2, 112, 112, 3), 90, np.uint8))["probabilities"]

    assert (2, len(EXPRESSIONS)) == found.shape
    assert found.sum(1) == pytest.approx([1, 1], abs=1e-4)


def test_an_expression_model_is_built_and_proved_like_any_other(untrained, tmp_path):
    weights = untrained(expression_spec("cnn"))
    engine = load_engine("expression", backend="openvino", weights=weights, cache=tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), dtype=np.uint8)

    eager = load_engine("expression", backend="eager", weights=weights)
    assert eager(picture)["probabilities"] == pytest.approx(engine(picture)["probabilities"], abs=1e-3)


def test_imagenet_networks_get_what_torchvision_s_own_preparation_gives():
    pixels = torch.randint(0, 256, (1, 3, 4, 4)).float()  # BGR
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (pixels.flip(1) / 255 - mean[:, None, None]) / std[:, None, None]

    assert torch.allclose(wanted, ImageNetInput()((pixels - 127.5) / 128), atol=1e-4)


def test_a_face_trunk_starts_from_the_shipped_embedder():
    network = network_of(ModelOptions(start=str(WEIGHTS / "embedder")))
    embedder, _ = load_checkpoint(WEIGHTS / "embedder")

    assert torch.equal(network.trunk[0][0].weight, embedder.trunk[0][0].weight)


def test_expression_does_not_start_from_the_attributes():
    with pytest.raises(UsageError, match="different splits"):
        network_of(ModelOptions(start=str(WEIGHTS / "attributes")))


def test_a_resnet_starts_from_a_file_of_imagenet_weights(tmp_path):
    from torchvision import models

    torch.manual_seed(5)
    body = models.resnet18()
    torch.save({"state_dict": {f"module.{k}": v for k, v in body.state_dict().items()}}, tmp_path / "r.pt")

    network = network_of(ModelOptions("resnet18", start=str(tmp_path / "r.pt")))

    assert torch.equal(network.trunk[1].conv1.weight, body.conv1.weight)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "r.pt")

    with pytest.raises(MienError, match=r"r\.pt: does not fit this network; \d+ tensors lack"):
        network_of(ModelOptions("resnet18", start=str(tmp_path / "r.pt")))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mien_was_unpickled"),))


def test_code_in_a_foreign_file_is_not_run(tmp_path):
    mark = Path("/tmp/mien_was_unpickled")
    mark.unlink(missing_ok=True)
    for name, write in (
        ("a.pt", torch.save),
        ("b.ckpt", lambda it, path: path.write_bytes(pickle.dumps(it))),
    ):
        write({"state_dict": Evil()}, tmp_path / name)
        with pytest.raises(MienError, match="holds no plain tensors"):
            load_classifier(tmp_path / name)

    assert not mark.exists()


def test_the_union_keeps_confirmed_labels_of_the_five_classes(expression_sets):
    pictures, _ = labelled_pictures(DataOptions(str(expression_sets)))
    fer = [picture for picture in pictures if picture.source == "ferplus"]

    # Of 6 a class one has too few votes; the repeated first row counts once; three recur in another part.
    assert 5 * 5 - 3 == len(fer)
    assert min(picture.votes for picture in fer) >= 3
    assert not any("neutral" in picture.name for picture in pictures)


@pytest.mark.parametrize("votes", [0, 11, -1])
def test_a_number_of_votes_that_nobody_could_give_is_refused(expression_sets, votes):
    with pytest.raises(UsageError, match=rf"data\.min_votes={votes}: 1 to 10"):
        labelled_pictures(DataOptions(str(expression_sets), min_votes=votes))


def test_a_picture_is_taught_half_its_label_and_half_what_people_voted():
    voted = Picture("ferplus", "a", 1, "a", votes=4, shares=(0.0, 0.5, 0.0, 0.5, 0.0))
    sure = Picture("expw", "b", 4, "b")

    assert [[0, 0.75, 0, 0.25, 0], [0, 0, 0, 0, 1]] == wanted_probabilities([voted, sure]).tolist()


def test_near_duplicates_and_subjects_stay_on_one_side(expression_sets):
    pictures, parts = labelled_pictures(DataOptions(str(expression_sets)))
    sides: dict[tuple[str, str], set[str]] = {}
    for picture, part in zip(pictures, parts, strict=True):
        for of in (picture.group, picture.like or picture.name):
            sides.setdefault((picture.source, of), set()).add(str(part))

    assert {1} == {len(side) for side in sides.values()}
    assert any(p.like.endswith("_0.webp") and p.name.endswith("_0.webp") for p in pictures)


def test_the_split_has_its_shares_in_every_class_and_comes_out_the_same_again():
    pictures = [Picture("expw", f"{k}_{i}", k, f"{k}_{i}") for k in range(5) for i in range(100 * (k + 1))]

    parts = split(pictures)

    assert (parts == split(pictures)).all()
    for k in range(5):
        mine = parts[[picture.label == k for picture in pictures]]
        assert [0.64, 0.16, 0.20] == [
            pytest.approx((mine == p).mean(), abs=0.01) for p in ("train", "val", "test")
        ]


def test_class_folders_are_read_as_they_are_named(tmp_path):
    root = folders(tmp_path)
    (root / "Angry").rename(root / "angry")

    pictures, parts = labelled_pictures(DataOptions(str(root), "folders"))

    assert [5] * 5 == np.bincount([p.label for p in pictures]).tolist()
    assert {"train", "val", "test"} == set(parts)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root / "Sad"), "class Sad is empty"),
        (
            lambda root: [(root / "Fear" / f"{i}.png").unlink() for i in range(3)],
            "class Fear has 2 pictures, too few",
        ),
        (lambda root: (root / "Bored").mkdir(), "folder Bored: is none of Angry, Fear"),
    ],
)
def test_bad_folders_are_named_before_training(tmp_path, spoil, words):
    spoil(folders(tmp_path))

    with pytest.raises(MienError, match=words):
        labelled_pictures(DataOptions(str(tmp_path), "folders"))


def test_unreadable_pictures_are_all_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.expression_crops.why_no_gpu", lambda: None)  # eager: nothing is built
    root = folders(tmp_path / "images")
    (root / "Happy" / "1.png").write_bytes(b"no picture")
    (root / "Sad" / "2.png").write_bytes(b"")
    pictures, _ = labelled_pictures(DataOptions(str(root), "folders"))

    with pytest.raises(MienError) as caught:
        aligned(str(root), pictures, tmp_path / "run")

    assert not [*(tmp_path / "run").glob("*.npy")]
    assert "1.png is not an image" in str(caught.value) and "2.png is not an image" in str(caught.value)


def test_on_a_gpu_no_engine_is_built_to_align_folders(tmp_path, monkeypatch):
    asked = []

    def load(model, backend="auto", **more):
        asked.append((model, backend))
        return load_engine(model, backend="eager", **more)

    monkeypatch.setattr("trainers.expression_crops.load_engine", load)
    monkeypatch.setattr("trainers.expression_crops.why_no_gpu", lambda: None)
    root = folders(tmp_path / "images", each=1)

    crops = aligned(str(root), [Picture("folders", "Sad/0.png", 3, "0")], tmp_path / "run")

    assert [("detector", "eager"), ("landmarks", "eager")] == asked
    assert (1, 144, 144, 3) == crops.shape and 120 == crops[0].mean()


def test_a_label_out_of_range_and_a_missing_file_are_named(expression_sets, tmp_path):
    for name in ("emotion_masked", "ferplus", "ckplus"):
        shutil.copy(expression_sets / f"{name}.zip", tmp_path)
    with (
        zipfile.ZipFile(expression_sets / "expw.zip") as whole,
        zipfile.ZipFile(tmp_path / "expw.zip", "w") as part,
    ):
        for name in whole.namelist():
            if name not in ("labels.csv", "happy_1.webp"):
                part.writestr(name, whole.read(name))
        part.writestr(
            "labels.csv", whole.read("labels.csv").replace(b"fear_2.webp,fear", b"fear_2.webp,bored")
        )

    with pytest.raises(
        MienError, match=r"\(fear_2\.webp\): emotion 'bored' is none of .*; line 15: happy_1\.webp is missing"
    ):
        labelled_pictures(DataOptions(str(tmp_path)))


def test_a_changed_crop_can_be_repeated():
    stored = cv2.resize(cv2.imread(str(PORTRAIT)), (144, 144)).astype(np.uint8)

    once, again = (changed(np.random.default_rng(3), stored, masked=False) for _ in range(2))

    assert (112, 112, 3) == once.shape
    assert (once == again).all()
    assert (once != changed(np.random.default_rng(4), stored, masked=False)).any()


@pytest.mark.parametrize("model", ["face_trunk", "vit_tiny"])
def test_the_recipe_trains_and_is_measured(expression_sets, tmp_path, model):
    short = [
        "training=testing_2_epochs",
        "training.steps_per_epoch=2",
        "training.batch_size=4",
        "training.threads=1",
    ]
    more = (
        ["model.pretrain_epochs=1"]
        if model == "vit_tiny"
        else [f"model.start={WEIGHTS / 'embedder'}", "small=80", "small_share=0.5"]
    )

    folder = train_recipe(
        "expression", [f"data={expression_sets}", f"run={tmp_path}", f"model={model}", *short, *more]
    )
    assert {"kind": model, "dropout": 0.4, "enlarged": 1} == load_checkpoint(folder)[1].network_args
    if model == "vit_tiny":
        return

    figures = evaluate_recipe(
        "expression", [f"data={expression_sets}", f"weights={tmp_path}", f"run={tmp_path}", "backend=eager"]
    )
    names = " ".join(figures)
    wanted = (
        ">= 3 votes: accuracy",
        ">= 6 votes",
        "class-balanced",
        "weighted F1",
        "recall of Fear",
        "label noise",
    )
    assert not [words for words in wanted if words not in names]
    assert not [name for name, value in figures.items() if "nan" in str(value)]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model=resnet18", "model.start=imagenet: cannot be fetched here"),
        ("model=vit_tiny model.start=imagenet", "vit_tiny has no ImageNet weights"),
        ("model.pretrain_epochs=1", "face_trunk is not pretrained by masking"),
        ("small=20", "small=20: 32 to 112 px"),
        ("small=200", "small=200: 32 to 112 px"),
    ],
)
def test_a_model_that_cannot_be_made_is_told_before_a_picture_is_aligned(
    expression_sets, tmp_path, monkeypatch, setting, words
):
    def fetch(*_, **__):
        raise URLError("no network here")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)

    with pytest.raises(MienError, match=words):
        train_recipe("expression", [f"data={expression_sets}", f"run={tmp_path / 'run'}", *setting.split()])
    assert not list((tmp_path / "run").glob("crops-*"))


def test_one_size_is_all_that_the_transformer_knows(expression_sets, tmp_path):
    with pytest.raises(UsageError, match="small=64: vit_tiny knows one size"):
        settings = [f"data={expression_sets}", f"run={tmp_path}", "model=vit_tiny", "small=64"]
        train_recipe("expression", settings)


def test_figures_by_hand():
    labels, found = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])

    assert (2 / 3 + 1) / 2 == pytest.approx(balanced_accuracy(found, labels))
    assert 0.75 * 0.8 + 0.25 * 2 / 3 == pytest.approx(weighted_f1(found, labels))
    figure = wilson(9, 10)  # by the textbook: 0.596 to 0.982
    assert (0.9, 0.596, 0.982) == (
        figure.value,
        pytest.approx(figure.low, abs=1e-3),
        pytest.approx(figure.high, abs=1e-3),
    )


def test_confident_learning_doubts_what_is_surely_another_class():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.2, 0.8]], np.float32)

    assert [False, False, True, False] == confidently_other(probabilities, np.array([0, 0, 0, 1])).tolist()
