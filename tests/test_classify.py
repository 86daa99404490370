"""`mien classify`: the five expressions of pictures, as a document and in words."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from engines.checkpoint import load_checkpoint
from engines.errors import UsageError
from engines.expression import expression_spec, load_classifier
from engines.runtime import WEIGHTS
from engines.spec import EXPRESSIONS

PORTRAIT = Path(__file__).parents[1] / "samples" / "eileen_collins.jpg"


@pytest.fixture(scope="module")
def checkpoint(untrained):
    return untrained(expression_spec("cnn")) / "expression"


def classify(*words: str) -> tuple[int, dict, str]:
    from daemon.cli import app

    result = CliRunner().invoke(app, ["classify", "--backend", "eager", *words])
    return result.exit_code, json.loads(result.stdout) if result.stdout else {}, result.stderr


def test_classify_prints_the_document_with_bad_images_in_their_entries(checkpoint, tmp_path):
    shutil.copy(PORTRAIT, tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")

    code, document, words = classify(str(tmp_path), "--checkpoint", str(checkpoint))

    assert 0 == code
    assert ["model_checkpoint", "images_path", "num_images", "predictions"] == list(document)
    assert (str(checkpoint), str(tmp_path), 2) == tuple(document.values())[:3]
    first, second = document["predictions"]
    assert first["face_found"]
    assert list(EXPRESSIONS) == list(first["all_probabilities"])
    assert EXPRESSIONS[first["predicted_class"]] == first["predicted_emotion"]
    assert max(first["all_probabilities"].values()) == first["confidence"]
    assert "not an image" in second["error"]
    assert "2 images" in words and "not read" in words


def test_a_file_name_that_is_no_utf_8_is_written_all_the_same(checkpoint, tmp_path):
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"th\xe9.jpg"))
    shutil.copy(PORTRAIT, good)
    bad.write_bytes(b"no picture")

    code, document, _ = classify(str(good), str(bad), "--checkpoint", str(checkpoint))

    paths = [f"{tmp_path}/{name}\ufffd.jpg" for name in ("caf", "th")]
    assert (0, paths) == (code, document["images_path"])
    assert paths == [each["image_path"] for each in document["predictions"]]
    assert document["predictions"][1]["error"].startswith(f"{paths[1]}: not an image")


def test_the_shipped_model_sees_that_she_smiles():
    _, document, _ = classify(str(PORTRAIT))

    found = document["predictions"][0]
    assert "Happy" == found["predicted_emotion"] and found["confidence"] > 0.8


def test_classify_takes_a_lightning_checkpoint_and_a_plain_state_dict(checkpoint, tmp_path):
    network, _ = load_checkpoint(checkpoint)
    torch.save(
        {"state_dict": {f"averaged.module.{k}": v for k, v in network.state_dict().items()}},
        tmp_path / "l.ckpt",
    )
    torch.save(network.state_dict(), tmp_path / "p.pt")

    answers = [
        classify(str(PORTRAIT), "--checkpoint", str(path))[1]["predictions"][0]
        for path in (checkpoint, tmp_path / "l.ckpt", tmp_path / "p.pt")
    ]

    for answer in answers:
        assert answers[0]["confidence"] == pytest.approx(answer["confidence"], abs=1e-4)


def test_a_picture_without_a_face_is_classified_whole(checkpoint, tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((80, 60, 3), 127, np.uint8))

    _, document, _ = classify(str(tmp_path / "grey.png"), "--checkpoint", str(checkpoint))

    assert document["predictions"][0]["face_found"] is False


def test_a_checkpoint_of_another_task_is_refused():
    with pytest.raises(UsageError, match="is a checkpoint of detector"):
        load_classifier(WEIGHTS / "detector")
