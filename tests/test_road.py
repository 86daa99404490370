"""The road from a public face set to a closed-set table: select, crop, look, align, train; and bad data on it."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from engines.errors import MienError
from engines.geometry import TEMPLATE, alignment_matrix, transform_points
from engines.runtime import WEIGHTS
from tests.face_sets import face, write_zip
from tests.public_layouts import IMAGES, PERSONS, write_celeba, write_list
from trainers.closed_set import (
    train_closed_set,
)
from trainers.closed_set_faces import load_closed_set
from trainers.face_rows import FaceRecord, read_records, write_records
from trainers.provenance import git_revision
from trainers.subset import Criteria, select, sharpness, yaw

METHODS = ["eyes", "eyes_nose", "similarity"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mien(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, MienError):
        raise result.exception
    assert 0 == result.exit_code, result.output
    return result.output


@pytest.fixture
def celeba(tmp_path):
    return write_celeba(tmp_path / "celeba")


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Selected, cropped and aligned by the commands; one of the selected photographs turns bad on the way."""
    root = tmp_path_factory.mktemp("road")
    data = write_celeba(root / "celeba")
    mien("faces", "select", data, root / "faces")
    (data / "img_celeba" / "000001.jpg").write_bytes(b"not a picture")
    said = mien("faces", "crop", data, root / "faces")
    mien("faces", "align", root / "faces")
    return root / "faces", said


def test_the_whole_road_leads_from_celeba_to_a_table_of_both_losses(road, tmp_path):
    folder, _ = road
    settings = [
        f"faces={folder}",
        f"run={tmp_path}",
        "network=face_resnet",
        "fit.epochs=1",
        "fit.steps_per_epoch=2",
        "fit.batch_size=4",
        "fit.threads=1",
        "embedding_size=16",
        "fit.logger=csv",
    ]

    said = mien("train", "closed_set", *settings, "alignment=eyes,similarity")

    text = (tmp_path / "table.md").read_text()
    assert "table.md" in said
    assert ["2 points", "5 points"] == [line.split(" | ")[4][:8] for line in text.splitlines()[2:4]]
    assert "not run" not in text and "from scratch" in text
    for loss in ("ce", "arcface"):
        report = rows_of(tmp_path / f"face_resnet-scratch-eyes-{loss}" / f"val_report_{loss}.csv")
        assert {r["file"] for r in rows_of(folder / "val.csv")} >= {r["file"] for r in report}
        assert all((row["rank_of_person"] == "1") == (row["correct"] == "1") for row in report)
        assert all(0 <= float(row["probability"]) <= 1 for row in report)

    again = mien("train", "closed_set", *settings, "alignment=eyes")
    assert 2 == again.count("done before")

    with pytest.raises(MienError, match=r"was begun with another scale.*set another run="):
        mien("train", "closed_set", *settings, "alignment=eyes", "loss=arcface", "scale=30")


@pytest.mark.parametrize(
    ("network", "more"), [("resnet50", ["small=48"]), ("mobile_face_net", ["small=64"])], ids=str
)
def test_every_other_network_is_trained_and_judged(road, tmp_path, network, more):
    short = [
        "fit.epochs=1",
        "fit.steps_per_epoch=1",
        "fit.batch_size=4",
        "fit.threads=1",
        "embedding_size=16",
    ]

    train_closed_set([f"faces={road[0]}", f"run={tmp_path}", f"network={network}", "loss=ce", *short, *more])

    folder = tmp_path / f"{network}-scratch-similarity-ce"
    result = json.loads((folder / "result.json").read_text())
    assert (network, PERSONS) == (result["network"], result["persons"])
    assert len(rows_of(folder / "val_report_ce.csv")) == result["val_images"] > 0


def test_one_bad_image_does_not_stop_the_crops_and_stands_in_the_report(road):
    folder, said = road
    cropped = read_records(folder / "crops" / "cropped_landmarks.csv")

    assert [{"file": "000001.jpg", "reason": "000001.jpg: not an image that OpenCV can read"}] == rows_of(
        folder / "crops" / "report.csv"
    )
    assert PERSONS * IMAGES - 1 == len(cropped)
    assert "000001.jpg" in said and "report.csv" in said
    for record in cropped:
        assert (folder / "crops" / record.file).parent.name == record.person


def test_training_leaves_out_the_image_that_could_not_be_cropped_and_says_so(road, capsys):
    folder, _ = road

    faces = load_closed_set(folder, "similarity")

    assert PERSONS * IMAGES - 1 == len(faces.train.records) + len(faces.val.records)
    assert "1 of 18 images are left out: 000001.jpg (missing)" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "fixed"), [("eyes", 2), ("eyes_nose", 3), ("similarity", 0)])
def test_landmarks_lie_on_the_template_after_alignment(road, method, fixed):
    folder, _ = road
    records = read_records(folder / "aligned" / method / "aligned_landmarks.csv")

    distance = np.stack([record.points - 16 - TEMPLATE for record in records])  # 16 px of room
    if fixed:
        assert 0.02 > np.abs(distance[:, :fixed]).max()
    else:
        assert 0.02 > np.abs(distance.mean(1)).max()
    image = cv2.imread(str(folder / "aligned" / method / records[0].file))
    assert (144, 144, 3) == image.shape


def test_landmarks_of_a_crop_lie_where_they_lay_in_the_photograph(road):
    folder, _ = road
    before = {r.file: r for r in read_records(folder / "selected.csv")}

    for record in read_records(folder / "crops" / "cropped_landmarks.csv"):
        was = before[Path(record.file).stem + ".jpg"]
        moved = transform_points(was.points, alignment_matrix(was.points))
        assert moved == pytest.approx(
            transform_points(record.points, alignment_matrix(record.points)), abs=0.1
        )


def test_selection_counts_persons_images_and_splits_each_person(celeba, tmp_path):
    select(celeba, tmp_path / "f", Criteria(persons=2, images=5, min_images=2))

    train, val = (rows_of(tmp_path / "f" / f"{split}.csv") for split in ("train", "val"))
    assert (8, 2) == (len(train), len(val))
    assert {"1", "2"} == {r["person"] for r in train} == {r["person"] for r in val}
    assert not {r["file"] for r in train} & {r["file"] for r in val}
    about = json.loads((tmp_path / "f" / "selection.json").read_text())
    assert (2, 10, 281) == (about["persons"], about["images"], about["criteria"]["seed"])


def test_the_most_photographed_persons_come_first_up_to_a_total(tmp_path):
    rng = np.random.default_rng(1)
    pictures, rows = {}, []
    for i in range(12):
        name = f"{i:03d}.webp"
        pictures[name], points = face(rng, 128, 25, 0.45)
        row = dict(
            zip([f"{p}{a}" for p in ("le", "re", "n", "lm", "rm") for a in "xy"], points.ravel(), strict=True)
        )
        rows.append({"file": name, "identity": 7 if i < 7 else 8, "detector_score": 0.9, **row})
    write_zip(tmp_path / "celeba_faces.zip", pictures, rows)

    selection = select(tmp_path / "celeba_faces.zip", tmp_path / "f", Criteria(total=10, min_images=2))

    assert ["7"] * 7 + ["8"] * 3 == [record.person for record in selection.kept]

    write_records(tmp_path / "seven.csv", [FaceRecord("000.webp", "7")])
    others = select(
        tmp_path / "celeba_faces.zip",
        tmp_path / "g",
        Criteria(min_images=2, without=str(tmp_path / "seven.csv")),
    )
    assert {"8"} == {record.person for record in others.kept}


def test_each_quality_criterion_refuses_with_its_name(celeba, tmp_path):
    blurred = cv2.GaussianBlur(cv2.imread(str(celeba / "img_celeba" / "000002.jpg")), (0, 0), 6)
    cv2.imwrite(str(celeba / "img_celeba" / "000002.jpg"), blurred)
    lines = (celeba / "list_landmarks_celeba.txt").read_text().splitlines()
    lines[2 + 3] = "000004.jpg 60 67 100 67 99 80 65 100 97 100"  # the nose below the right eye
    lines[2 + 6] = "000007.jpg 70 70 80 70 75 76 71 82 79 82"  # eyes 10 px apart
    write_list(celeba / "list_landmarks_celeba.txt", lines)

    selection = select(
        celeba,
        tmp_path / "f",
        Criteria(min_sharpness=0.12, max_yaw=0.8, min_interocular=20, min_images=2),
    )

    assert {("000002.jpg", "blurred"), ("000004.jpg", "averted"), ("000007.jpg", "too small")} == {
        (file, reason) for file, _, reason in selection.rejected
    }
    assert 3 == len(rows_of(tmp_path / "f" / "rejected.csv"))


def test_too_few_images_of_a_person_are_told_by_name(celeba, tmp_path):
    with pytest.raises(MienError, match=r"0 persons have 7 images that pass.*1 has 6, 2 has 6, 3 has 6"):
        select(celeba, tmp_path / "f", Criteria(images=7))
    with pytest.raises(MienError, match=r"3 persons have 5 images that pass, 9 are asked for"):
        select(celeba, tmp_path / "f", Criteria(persons=9))


def test_a_start_is_loaded_and_the_table_says_whom_it_has_seen(road, tmp_path):
    folder, _ = road
    short = ["fit.epochs=1", "fit.steps_per_epoch=1", "fit.batch_size=4", "fit.threads=1"]
    common = [f"faces={folder}", "loss=ce", *short]
    train_closed_set([*common, f"run={tmp_path / 'a'}", "network=resnet18", "embedding_size=8", "small=48"])
    first = tmp_path / "a" / "resnet18-scratch-similarity-ce"

    own = train_closed_set(
        [*common, f"run={tmp_path / 'b'}", "network=resnet18", "embedding_size=8", f"start={first}"]
    )
    shipped = train_closed_set(
        [*common, f"run={tmp_path / 'c'}", "network=face_resnet", f"start={WEIGHTS / 'embedder'}"]
    )

    made = "\n".join(json.loads((first / "backbone.json").read_text())["made"])
    assert git_revision() in made and f"- data: {folder.name} (" in made
    assert "3 of these persons seen before" in own.read_text()
    assert "embedder: whom it has seen is not recorded" in shipped.read_text()
    with pytest.raises(MienError, match="does not fit this network"):
        train_closed_set(
            [*common, f"run={tmp_path / 'd'}", "network=resnet18", "embedding_size=9", f"start={first}"]
        )


def test_blur_and_yaw_fall_and_rise_as_they_should():
    rng = np.random.default_rng(0)
    crop, points = face(rng, 112, 35, 0.46)

    assert 0.6 * sharpness(crop) > sharpness(cv2.GaussianBlur(crop, (0, 0), 3))
    turned = points + np.array([[0, 0], [0, 0], [12, 0], [0, 0], [0, 0]], np.float32)
    assert yaw(points) < yaw(turned) < 1.2


def test_an_unreadable_image_is_refused_at_selection(celeba, tmp_path):
    (celeba / "img_celeba" / "000005.jpg").write_bytes(b"")

    said = mien("faces", "select", celeba, tmp_path / "f")

    assert "left out, unreadable: 1 (000005.jpg)" in said
    assert "000005.jpg" not in (tmp_path / "f" / "selected.csv").read_text()
