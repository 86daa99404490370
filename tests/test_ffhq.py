"""FFHQ's public layout and the recipe that the seed trained on it."""

import json
import zipfile
from dataclasses import replace
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import mobilenet_v3_small, resnet18

from engines.checkpoint import load_checkpoint, save_checkpoint
from engines.errors import MienError, UsageError
from engines.networks import AttributesNet
from engines.runtime import WEIGHTS
from engines.spec import EMOTIONS
from tests.face_sets import face, ffhq_label
from trainers.evaluation import evaluate_recipe
from trainers.faces import FaceFinder
from trainers.ffhq import (
    FfhqConfig,
    FfhqSamples,
    cropped,
    ffhq_spec,
    mtfl_faces,
    parts,
    thumbnails,
)
from trainers.ffhq_layout import ffhq_part, open_ffhq
from trainers.ffhq_networks import load_state, make_network
from trainers.provenance import provenance
from trainers.recipes import train_recipe


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
    assert ((64, 64), EMOTIONS, False) == (spec.input_size, spec.labels, spec.aligned)
    kept = load_file(run / "best_model.safetensors")
    assert all(
        torch.allclose(v.half().float(), network.state_dict()[k])
        for k, v in kept.items()
        if v.is_floating_point()
    )
    begun = make_network(FfhqConfig(start=str(run / "last.ckpt"), input_size=64)).state_dict()
    averaged = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.equal(averaged[f"averaged.module.{name}"]) for name, value in begun.items())
    figures = evaluate_recipe("ffhq", [f"data={folder}", f"weights={run}", "backend=eager"])
    assert 6 == len(figures) and all("machine-made" in name for name in figures)  # once, and from both sides


def test_a_run_that_its_time_ends_leaves_its_last_epoch_and_the_curves(sets, tmp_path):
    settings = [f"data={sets}", f"run={tmp_path}", *FFHQ_SHORT, "picture_every=5", "fit.epochs=9"]

    train_recipe("ffhq", [*settings, "fit.until=1"])

    assert [1] == [row["epoch"] for row in json.loads((tmp_path / "history.json").read_text())]
    assert (tmp_path / "epoch_001" / "metadata.json").is_file() and (tmp_path / "history_001.png").is_file()


def test_the_history_is_replaced_as_a_whole_file(sets, tmp_path):
    settings = [f"data={sets}", f"run={tmp_path}", *FFHQ_SHORT, "fit.until=1"]
    train_recipe("ffhq", settings)
    (tmp_path / "before.json").hardlink_to(tmp_path / "history.json")

    train_recipe("ffhq", settings)

    assert [1, 2] == [
        len(json.loads((tmp_path / f"{name}.json").read_text())) for name in ("before", "history")
    ]


def test_a_wide_crop_has_the_daemon_s_in_its_middle_and_begins_with_what_it_showed(tmp_path):
    with open_ffhq(ffhq_tree(tmp_path)) as data:
        image = data.images.image(data.faces("train")[0].image)
    finder = FaceFinder()
    near, wide, half = (cropped(image, finder, size, room) for size, room in ((112, 0), (176, 32), (88, 32)))
    assert near == pytest.approx(wide[32:-32, 32:-32], abs=1)
    assert 6 > np.abs(cv2.resize(wide, (88, 88), interpolation=cv2.INTER_AREA).astype(int) - half).mean()

    shipped = load_checkpoint(WEIGHTS / "attributes")[0].state_dict()
    network = make_network(FfhqConfig(crop="wide", input_size=176, age_bins=101)).state_dict()
    enlarged = {name for name in shipped if network[name].shape != shipped[name].shape}
    (pool,) = enlarged
    assert (7, 11) == (shipped[pool].shape[-1], network[pool].shape[-1])
    assert network[pool][:, :, 2:-2, 2:-2].equal(shipped[pool])
    assert float(network[pool].abs().sum()) == pytest.approx(float(shipped[pool].abs().sum()), rel=1e-5)
    assert all(network[name].equal(shipped[name]) for name in shipped if name not in enlarged)


def test_the_ffhq_network_may_be_a_torchvision_backbone_from_a_state_dict(tmp_path):
    torch.manual_seed(0)
    torch.save(mobilenet_v3_small().state_dict(), tmp_path / "backbone.pt")
    config = FfhqConfig(backbone="mobilenet_v3_small", start=str(tmp_path / "backbone.pt"), input_size=64)

    network = make_network(config).eval()

    first = torch.load(tmp_path / "backbone.pt", weights_only=True)["features.0.0.weight"]
    assert (first == network.trunk.state_dict()["body.features.0.0.weight"]).all()
    assert (2,) == network(torch.zeros(2, 3, 64, 64))[1].shape


def test_imagenet_s_weights_arrive_under_the_names_that_layers_had_before(monkeypatch):
    from torchvision.models import densenet121

    own = densenet121().state_dict()
    kept = [name for name in own if not name.endswith("num_batches_tracked")]  # which came later, too
    published = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): own[name] for name in kept}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(published))

    trunk = make_network(FfhqConfig(backbone="densenet121", start="imagenet")).trunk.state_dict()

    assert not published.keys() <= own.keys()
    assert all(value.equal(own[name.removeprefix("body.")]) for name, value in trunk.items())


def pictured(body):
    """Pictures (2, 3, 64, 64), BGR, as training normalises them, and what `body` says of them as torchvision feeds."""
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - 127.5) / 128, body((pixels.flip(1) / 255 - mean[:, None, None]) / std[:, None, None])


@pytest.fixture
def imagenet(monkeypatch, tmp_path):
    """A small network whose random weights pass for ImageNet's: fetched, and in the file imagenet.pt."""
    torch.manual_seed(0)
    body = resnet18().eval()
    state = body.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    torch.save(state, tmp_path / "imagenet.pt")
    body.fc = torch.nn.Identity()
    return body


@pytest.mark.parametrize("start", ["imagenet", "imagenet.pt"])
@torch.inference_mode()
def test_weights_of_imagenet_are_fed_as_imagenet_was_in_training_and_in_use(imagenet, tmp_path, start):
    start = start if start == "imagenet" else str(tmp_path / start)
    config = FfhqConfig(backbone="resnet18", start=start, input_size=64)

    network = make_network(config).eval()

    images, wanted = pictured(imagenet)
    assert torch.allclose(wanted, network.trunk(images), atol=1e-4)
    assert not torch.allclose(wanted, imagenet(images), atol=0.1)
    spec = save_checkpoint(tmp_path / "attributes", network, ffhq_spec(config), "# a card\n")
    used, _ = load_checkpoint(tmp_path / "attributes")
    assert True is spec.network_args["imagenet_input"]
    assert torch.allclose(wanted, used.trunk(images), atol=0.02)  # weights in half precision


@torch.inference_mode()
def test_what_began_without_imagenet_goes_on_without_its_input_and_what_began_with_it_with_it(
    imagenet, tmp_path
):
    for name, start in (("plain", ""), ("fed", "imagenet")):
        config = FfhqConfig(backbone="resnet18", start=start, input_size=64)
        first = make_network(config)
        torch.save(first.state_dict(), tmp_path / f"{name}.pt")
        again = replace(config, start=str(tmp_path / f"{name}.pt"))

        assert ffhq_spec(config) == ffhq_spec(again)
        assert (name == "fed") == ffhq_spec(again).network_args.get("imagenet_input", False)
        assert all(
            value.equal(first.state_dict()[n]) for n, value in make_network(again).state_dict().items()
        )
        (tmp_path / f"{name}.pt").unlink()
        assert ffhq_spec(config) == ffhq_spec(again)  # the card is written when training has ended

    plain = AttributesNet(backbone="resnet18")
    assert f"trunk.{next(iter(resnet18().state_dict()))}" in plain.state_dict()
    assert "imagenet_input" not in ffhq_spec(FfhqConfig(start=str(WEIGHTS / "attributes"))).network_args


def test_a_state_dict_of_something_else_and_a_pickle_with_code_are_refused(tmp_path):
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"trunk.x": FfhqConfig()}, tmp_path / "code.pt")

    with pytest.raises(
        MienError,
        match=r"of the trunk's \d+ tensors are not in it, or of another shape, 0\.0\.weight first",
    ):
        load_state(AttributesNet(widths=(8, 8, 16, 16)), tmp_path / "other.safetensors")
    with pytest.raises(MienError, match="holds no plain tensors"):
        load_state(AttributesNet(widths=(8, 8, 16, 16)), tmp_path / "code.pt")
    with pytest.raises(UsageError, match="backbone=NAME"):
        make_network(FfhqConfig(start="imagenet"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["backbone=resnet99"], "backbone=resnet99: torchvision has no such classifier"),
        (["input_size=200"], "input_size=200: must be a multiple of 16, from 32 on"),
        (["picture_every=-1"], "picture_every=-1: must be 0 or more"),
        (["backbone=squeezenet1_0"], "does not end in a linear layer"),
        (["backbone=resnet18", f"start={WEIGHTS / 'embedder'}"], "with backbone=resnet18 name a file"),
        (["backbone=resnet18", "start=imagenet"], r"start=imagenet: cannot be fetched here \(.*no route"),
        (["start=gone.pt"], "gone.pt: no such file"),
        (["start=gone"], "gone: no such file"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_before_any_data_are_read(
    tmp_path, monkeypatch, settings, words
):
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)

    with pytest.raises(MienError, match=words):
        train_recipe("ffhq", [f"data={tmp_path / 'none'}", f"run={tmp_path / 'run'}", *settings])


def test_a_lightning_checkpoint_starts_a_trunk_as_its_state_dict_does(tmp_path):
    torch.manual_seed(0)
    state = make_network(FfhqConfig(start="")).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "whole.ckpt")

    network = make_network(FfhqConfig(start=str(tmp_path / "whole.ckpt")))

    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_half_of_another_network_is_not_taken(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "18.pt")

    with pytest.raises(MienError, match=r"18\.pt: \d+ of the trunk's \d+ tensors .*set backbone"):
        make_network(FfhqConfig(backbone="resnet34", start=str(tmp_path / "18.pt")))


def test_labels_of_every_part_are_looked_at_before_a_picture_is(tmp_path, monkeypatch):
    folder = ffhq_tree(tmp_path / "ffhq")
    held_out = next(p.stem for p in sorted((folder / "json").iterdir()) if ffhq_part(p.name) == "val")
    (folder / f"json/{held_out}.json").write_text("{")
    monkeypatch.setattr("trainers.ffhq.thumbnails", lambda *_: pytest.fail("a picture is looked at"))

    with pytest.raises(MienError, match=held_out):
        train_recipe("ffhq", [f"data={folder}", f"run={tmp_path / 'run'}", *FFHQ_SHORT])


def test_all_pictures_that_cannot_be_read_are_named(tmp_path):
    folder = ffhq_tree(tmp_path / "ffhq")
    broken = [p for p in sorted((folder / "thumbnails").iterdir()) if ffhq_part(p.name) == "train"][:2]
    for path in broken:
        path.write_bytes(b"not a picture")

    with pytest.raises(MienError) as told:
        train_recipe("ffhq", [f"data={folder}", f"run={tmp_path / 'run'}", *FFHQ_SHORT])
    assert all(path.name in str(told.value) for path in broken)


def test_pictures_of_the_curves_may_be_left_to_the_end(sets, tmp_path):
    settings = [f"data={sets}", f"run={tmp_path}", *FFHQ_SHORT, "picture_every=0", "fit.epochs=2"]

    checkpoint = train_recipe("ffhq", settings)

    assert ["history_002.png"] == [path.name for path in tmp_path.glob("history_*.png")]
    assert "at most 2 epochs of all faces in batches of 16" in (checkpoint / "card.md").read_text()


def test_a_backbone_that_knows_nothing_yet_is_told(capsys):
    make_network(FfhqConfig(backbone="mobilenet_v3_small"))

    assert "backbone=mobilenet_v3_small: from scratch; start=imagenet" in capsys.readouterr().out


def test_mtfl_teaches_gender_beside_ffhq_and_nothing_else(sets, tmp_path):
    config = FfhqConfig(data=str(sets), crop="wide", input_size=88)
    faces, others = thumbnails(config, "train"), mtfl_faces(config)
    samples = FfhqSamples(faces, others)
    samples.length = len(samples)

    images, age, female, emotion = map(np.stack, zip(*(samples[i] for i in range(len(samples))), strict=True))

    assert 2 * len(faces) == len(samples) and (88, 88, 3) == images.shape[1:]
    assert sorted(faces.age) == sorted(age[0::2]) and {-1.0} == set(age[1::2])
    assert (emotion[1::2] == -1).all() and set(female[1::2]) <= {0.0, 1.0}
    given = [torch.from_numpy(each) for each in (age, female, emotion)]
    outputs = (torch.full_like(given[0], 30.0), torch.zeros_like(given[0]), torch.zeros(len(age), 8))
    years, gender, divergence = parts(outputs, *given)
    assert float(years) == pytest.approx(np.abs(faces.age - 30).mean(), rel=1e-5)
    assert float(gender) == pytest.approx(np.log(2)) and torch.isfinite(divergence)
    none = parts(tuple(each[1::2] for each in outputs), *(each[1::2] for each in given))
    assert (0, 0) == (float(none[0]), float(none[2]))
    assert "ffhq.zip" in provenance("ffhq", config) and "mtfl.zip" not in provenance("ffhq", config)
    assert "mtfl.zip" in provenance("ffhq", replace(config, mtfl=True))
    with pytest.raises(UsageError, match="crop=attribute or crop=wide"):
        train_recipe("ffhq", [f"data={sets}", f"run={tmp_path}", "crop=thumbnail", "mtfl=true"])
