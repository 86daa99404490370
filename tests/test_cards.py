"""A checkpoint's card says what its training read, whose licence holds, and with which command it was made."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.expression_sets import WORDS
from tests.public_layouts import write_celeba
from trainers.composition import expression_config
from trainers.detector import DetectorConfig
from trainers.expression import ExpressionConfig
from trainers.provenance import sources
from trainers.recipes import card_text, make_config, put_into_card

OURS = "research and non-commercial"
YOURS = "whether and for what its licence allows use is yours to know"


def section(card: str, name: str) -> str:
    return card.partition(f"## {name}\n")[2].partition("\n## ")[0]


def class_folders(root: Path, each: int = 2) -> Path:
    for word in WORDS:
        (root / word).mkdir(parents=True)
        for i in range(each):
            (root / word / f"{i}.png").touch()
    return root


def test_class_folders_are_the_user_s_own_and_so_is_their_licence(tmp_path):
    root = class_folders(tmp_path / "mine")
    config = make_config("expression", [f"data={root}", "model.dropout=0.3"])

    card = card_text("expression", config)

    assert "your own data: mine (10 files)" in section(card, "Data")
    assert YOURS in section(card, "Licence") and "mine (10 files)" in section(card, "Licence")
    assert OURS not in card and "FER2013" not in section(card, "Data") and str(tmp_path) not in card


def test_a_published_folder_of_landmarks_or_scenes_is_the_user_s_own(sets, tmp_path):
    celeba, wider = write_celeba(tmp_path / "CelebA"), tmp_path / "WIDER"
    wider.mkdir()

    landmarks = card_text("landmarks", make_config("landmarks", [f"data={celeba}"]))
    both = card_text("detector", make_config("detector", [f"data={sets}", f"wider={wider}"]))
    alone = card_text("detector", make_config("detector", [f"data={tmp_path}", f"wider={wider}"]))

    assert "your own data: CelebA (" in landmarks and OURS not in landmarks
    assert all(words in section(both, "Licence") for words in (OURS, YOURS, "WIDER (0 files)"))
    assert "scenes" not in section(alone, "Data") and OURS not in alone


@pytest.mark.parametrize(
    ("recipe", "settings", "names"),
    [
        ("detector", [], "scenes"),
        ("detector", ["yunet=y.onnx"], "scenes mtfl ffhq"),
        ("landmarks", [], "mtfl"),
        ("recognition", [], "celeba_faces"),
        ("recognition", ["teacher=t.onnx"], "celeba_faces mtfl utkface expw emotion_masked scenes"),
        ("recognition", ["teacher=t.onnx", "labelled=false"], "mtfl utkface expw emotion_masked scenes"),
        ("attributes", ["sets=expw"], "expw utkface ferplus"),
        ("ffhq", [], "ffhq"),
        ("ffhq", ["mtfl=true", "crop=wide"], "ffhq mtfl"),
    ],
)
def test_the_zips_that_a_training_reads_are_listed_and_no_others(sets, recipe, settings, names):
    config = make_config(recipe, [f"data={sets}", *settings])

    card = card_text(recipe, config)

    assert [f"{name}.zip" for name in names.split()] == [path.name for path in sources(recipe, config)]
    assert section(card, "Data").count("\n- ") == len(names.split()) == section(card, "Data").count(".zip (")
    assert section(card, "Made by").count(".zip ") == len(names.split())
    assert OURS in section(card, "Licence") and YOURS not in card


def test_unlabelled_faces_of_a_pretraining_are_listed_too(sets, tmp_path):
    model = replace(ExpressionConfig().model, kind="vit_tiny", pretrain_epochs=1)
    config = replace(make_config("expression", [f"data={sets}"]), model=model)
    own = class_folders(tmp_path / "mine")

    read = {path.name for path in sources("expression", config)}
    alone = sources("expression", replace(make_config("expression", [f"data={own}"]), model=model))

    assert {"celeba_faces.zip", "utkface.zip", "ferplus.zip"} <= read
    assert [own] == alone


def test_the_command_in_a_card_has_the_options_of_the_run_and_is_understood(sets, tmp_path):
    settings = [f"data={sets}", "towers=1,1,2", "start=/a/my detector", "fit.epochs=3"]
    config = make_config("detector", settings)

    card = card_text("detector", config)

    command = section(card, "Made by").split("`")[1]
    words = shlex.split(command)
    assert ["mien", "train", "detector", "data=FOLDER"] == words[:4]
    again = make_config("detector", words[4:])
    assert ((1, 1, 2), "my detector") == (again.towers, again.start) and "yunet" not in card
    assert "teacher=" not in card_text("recognition", make_config("recognition", [f"data={sets}"]))


def test_the_command_of_an_expression_run_is_understood(tmp_path):
    config = make_config("expression", [f"data={class_folders(tmp_path / 'mine')}", "model=resnet18"])

    words = shlex.split(section(card_text("expression", config), "Made by").split("`")[1])

    again = expression_config(words[3:])
    assert config.model == again.model and config.data.kind == again.data.kind


def test_weights_that_training_began_or_learnt_from_bring_their_licence(sets):
    config = make_config("recognition", [f"data={sets}", "teacher=/x/t.onnx", "start=/y/embedder"])

    licence = section(card_text("recognition", config), "Licence")

    assert "other weights (teacher=t.onnx, start=embedder)" in licence
    assert "other weights" not in card_text("detector", DetectorConfig(data=str(sets)))


def test_a_checkpoint_without_a_card_is_given_one_that_claims_nothing(tmp_path):
    put_into_card(tmp_path, "landmarks", {"NME": "5 %"})

    card = (tmp_path / "card.md").read_text()
    assert all("Not recorded." in section(card, name) for name in ("Data", "Licence", "Made by"))
    assert "`mien evaluate landmarks data=FOLDER`" in card


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "start=attributes"),
        (["start="], ""),
        (["backbone=resnet18"], ""),
        (["start=imagenet"], "start=imagenet"),
    ],
)
def test_an_ffhq_network_tells_of_the_weights_that_it_begins_with_as_it_comes(tmp_path, settings, told):
    (tmp_path / "thumbnails").mkdir()

    card = card_text("ffhq", make_config("ffhq", [f"data={tmp_path}", *settings]))

    licence = section(card, "Licence")
    assert (f"other weights ({told})" if told else "yours to know. The code") in licence
    assert told in section(card, "Made by")
