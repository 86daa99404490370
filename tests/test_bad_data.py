"""What is wrong with the data of a recipe is named, all of it together, before the first epoch."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engines.errors import MienError
from tests.face_sets import write_attributes, write_ffhq, write_identities, write_mtfl, write_scenes
from tests.public_layouts import write_landmark_lists
from trainers.attribute_sets import mtfl
from trainers.attributes import AttributesConfig, load_sets
from trainers.detector import DetectorConfig
from trainers.detector import train as train_detector
from trainers.ffhq_layout import ffhq_part
from trainers.label_checks import pictures
from trainers.landmarks import LandmarksConfig, load_samples
from trainers.portraits import load_portraits
from trainers.recognition import RecognitionConfig, load_faces
from trainers.scenes import load_scenes
from trainers.zips import ImageZip

SETS = "utkface,ferplus,mtfl,emotion_masked,expw"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for write in (write_scenes, write_mtfl, write_identities, write_attributes):
        write(folder, np.random.default_rng(281))
    return folder


@pytest.fixture
def data(whole, tmp_path):
    """A copy of the sets, to be spoilt."""
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def spoil(
    folder: Path, name: str, rows: dict | None = None, files: dict | None = None, keep=lambda row: True
) -> None:
    """Change values of rows by their number, contents of files (None: taken out), and which rows there are."""
    with zipfile.ZipFile(folder / f"{name}.zip") as archive:
        contents = {each: archive.read(each) for each in archive.namelist()}
    labels = list(csv.DictReader(io.StringIO(contents["labels.csv"].decode())))
    for i, values in (rows or {}).items():
        labels[i] |= {key: str(value) for key, value in values.items()}
    out = io.StringIO()
    writer = csv.DictWriter(out, labels[0])
    writer.writeheader()
    writer.writerows(row for row in labels if keep(row))
    contents |= {"labels.csv": out.getvalue().encode(), **(files or {})}
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for each, content in contents.items():
            if content is not None:
                archive.writestr(each, content)


def load(recipe: str, data: Path) -> object:
    if recipe == "detector":
        return load_scenes(str(data))
    if recipe == "landmarks":
        return load_samples(LandmarksConfig(data=str(data)))
    if recipe == "recognition":
        return load_faces(RecognitionConfig(data=str(data)))
    return load_sets(AttributesConfig(data=str(data), sets=SETS), finder=None)  # labels need no landmarks


@pytest.mark.parametrize(
    ("recipe", "name", "first", "second", "words"),
    [
        ("detector", "scenes", {"x1": "left"}, {"file": "gone.webp"}, ("x1 'left' is not a num", "gone.webp is")),
        ("detector", "scenes", {"x1": 90, "x2": 80}, {"origin": "me"}, ("ends before it begins", "origin 'me'")),
        ("landmarks", "mtfl", {"lex": "left"}, {"ley": "nan"}, ("lex 'left'", "ley nan is not from")),
        ("landmarks", "mtfl", {"file": "gone.webp"}, {"nx": 99999}, ("gone.webp is", "nx 99999 is not from")),
        ("recognition", "celeba_faces", {"identity": "Ann"}, {"rmx": ""}, ("identity 'Ann' is not a whole", "rmx ''")),
        ("attributes", "utkface", {"age_years": 99999}, {"age_years": -5}, ("99999 is not from 0 to 120", "-5 is")),
        ("attributes", "utkface", {"gender": 7}, {"file": "gone.webp"}, ("gender '7' is none of 0, 1", "gone")),
        ("attributes", "mtfl", {"gender": 7}, {"lex": "?"}, ("gender '7' is none of 1, 2", "lex '?'")),
        ("attributes", "expw", {"emotion": "bored"}, {"file": "gone.webp"}, ("emotion 'bored'", "gone.webp")),
        ("attributes", "ferplus", {"v_fear": -1}, {"usage": "Train"}, ("v_fear -1 is not", "usage 'Train'")),
    ],
)  # fmt: skip
def test_wrong_labels_are_named_together(data, recipe, name, first, second, words):
    spoil(data, name, {1: first, 4: second})

    with pytest.raises(MienError) as error:
        load(recipe, data)

    said = str(error.value)
    assert f"{name}.zip, labels.csv: line 3" in said and "line 6" in said
    assert all(each in said for each in words), said
    assert "mend the data" in said


@pytest.mark.parametrize(
    ("recipe", "name", "keep", "words"),
    [
        ("landmarks", "mtfl", lambda row: row["split"] == "val", "no row of labels.csv has the split train"),
        ("recognition", "celeba_faces", lambda row: row["identity"] in ("11", "17"), "1 identities to train on"),
        ("attributes", "mtfl", lambda row: row["split"] == "val", "no training row with gender 1"),
        ("attributes", "utkface", lambda row: row["gender"] == "1", "no training row with gender 0"),
        ("attributes", "emotion_masked", lambda row: row["emotion"] != "fear", "no training row with emotion fear"),
        ("attributes", "ferplus", lambda row: row["v_anger"] == "0", "no training row with a vote for anger"),
        ("attributes", "ferplus", lambda row: row["usage"] == "Training", "usage PublicTest, which val needs"),
        ("detector", "scenes", lambda row: False, "labels.csv: no rows"),
    ],
)  # fmt: skip
def test_an_empty_part_or_class_is_named(data, recipe, name, keep, words):
    spoil(data, name, keep=keep)

    with pytest.raises(MienError, match=rf"{name}\.zip.*{words}"):
        load(recipe, data)


@pytest.mark.parametrize(
    ("recipe", "name"), [("detector", "scenes"), ("landmarks", "mtfl"), ("recognition", "celeba_faces")]
)
def test_every_picture_that_cannot_be_read_is_named(data, recipe, name):
    with ImageZip(data, name) as archive:
        rows = [row["file"] for row in archive.rows() if row.get("split", "train") == "train"]
        rows = [file for file in dict.fromkeys(rows) if file not in ("web_000.webp", "000002.webp")]
    spoil(data, name, files={rows[1]: b"", rows[3]: b"no picture"})

    with pytest.raises(MienError) as error:
        load(recipe, data)

    assert f"{rows[1]} is not an image" in str(error.value) and f"{rows[3]} is not an image" in str(
        error.value
    )


def test_landmarks_far_outside_their_picture_are_named_and_a_little_outside_they_are_not(data):
    spoil(data, "mtfl", {1: {"lex": -5, "rmx": 170}})
    load("landmarks", data)
    assert len(mtfl(AttributesConfig(data=str(data))))
    spoil(data, "mtfl", {2: {"lex": 300}})

    for read in (lambda: load("landmarks", data), lambda: mtfl(AttributesConfig(data=str(data)))):
        with pytest.raises(MienError, match=r"mtfl\.zip: net_002\.webp: labels far outside its 160x160 px"):
            read()


def test_nothing_is_yielded_from_the_first_bad_picture_on(data):
    spoil(data, "utkface", files={"21_1_0_1.webp": b"?"})
    names = [f"{20 + i}_{i % 2}_0_{i}.webp" for i in range(4)]

    with ImageZip(data, "utkface") as archive:
        read = pictures(archive, [*names, "gone.webp"])
        assert (112, 112, 3) == next(read).shape
        with pytest.raises(
            MienError, match=r"utkface\.zip: 21_1_0_1\.webp is not an image.*; gone\.webp is missing"
        ):
            next(read)


def test_scenes_without_any_face_are_refused(data, tmp_path):
    spoil(data, "scenes", {i: {"origin": "none"} for i in range(32)})

    with pytest.raises(MienError, match=r"none of 4 training scenes has a face"):
        train_detector(DetectorConfig(data=str(data), run=str(tmp_path / "run"), limit=4))


@pytest.mark.parametrize(("limit", "count"), [(0, 12), (4, 3)])
def test_near_duplicates_of_held_out_scenes_are_not_trained_on_whatever_the_limit(data, limit, count):
    with ImageZip(data, "scenes") as archive:
        held_out = archive.bytes_of("web_000.webp")
    spoil(data, "scenes", files={"web_001.webp": held_out})

    names = [scene.name for scene in load_scenes(str(data), limit)]

    assert "web_001.webp" not in names and count == len(names)


def test_scenes_that_all_repeat_held_out_ones_are_refused(data):
    with ImageZip(data, "scenes") as archive:
        held_out = archive.bytes_of("web_000.webp")
    spoil(data, "scenes", files={f"web_{i:03d}.webp": held_out for i in range(16)})

    with pytest.raises(MienError, match=r"scenes\.zip: all 4 training scenes nearly repeat held-out ones"):
        load_scenes(str(data), limit=4)


def test_wrong_poses_are_named_before_portraits_are_pasted(data):
    spoil(data, "mtfl", {0: {"pose": 9}})

    with pytest.raises(MienError, match=r"line 2 \(net_000\.webp\): pose '9' is none of 1, 2, 3, 4, 5;"):
        load_portraits(str(data), teacher=None)


class Everywhere:
    """A teacher that finds the whole picture, and keeps count."""

    def central(self, image):
        return np.array([0, 0, *image.shape[1::-1]], np.float32)


def test_portraits_are_of_the_training_parts_alone(data):
    write_ffhq(data, np.random.default_rng(7), n=20)
    train = [i for i in range(20) if ffhq_part(f"{i:05d}.webp") == "train"]

    portraits = load_portraits(str(data), Everywhere())

    sides = [portrait.image.shape[0] for portrait in portraits]
    assert (9, len(train)) == (sides.count(160), sides.count(256)) and 20 > len(train)


def test_labels_that_a_spreadsheet_saved_are_read_and_other_alphabets_named(data):
    with zipfile.ZipFile(data / "mtfl.zip") as archive:
        text = archive.read("labels.csv").decode()
    spoil(data, "mtfl", files={"labels.csv": text.encode("utf-8-sig")})
    assert len(load("landmarks", data).images)

    for content, words in (
        (text.encode("utf-16"), "save it as UTF-8"),
        (None, "there is no labels.csv in it"),
    ):
        spoil_labels(data, content)
        with pytest.raises(MienError, match=rf"mtfl\.zip: .*{words}"):
            load("landmarks", data)


def spoil_labels(data: Path, content: bytes | None) -> None:
    with zipfile.ZipFile(data / "mtfl.zip", "w") as archive:
        archive.writestr("net_000.webp", b"")
        if content is not None:
            archive.writestr("labels.csv", content)


def test_a_row_of_mtfl_with_an_unknown_gender_is_not_taken_for_one_of_mtcnn(tmp_path, capsys):
    write_landmark_lists(tmp_path, "mtfl")
    lines = (tmp_path / "training.txt").read_text().splitlines()
    lines[1] = lines[1].removesuffix(" 1 2 2 3") + " 7 2 2 3"
    (tmp_path / "training.txt").write_text("\n".join(lines) + "\n")

    samples = load_samples(LandmarksConfig(data=str(tmp_path)))

    assert 5 == len(samples.images)
    assert "net_7876/1.jpg (gender, smile, glasses, pose 7 2 2 3 in training.txt)" in capsys.readouterr().out


def test_a_box_of_mtcnn_s_that_ends_before_it_begins_and_points_far_outside_are_left_out(tmp_path, capsys):
    write_landmark_lists(tmp_path, "mtcnn")
    lines = [line.split() for line in (tmp_path / "trainImageList.txt").read_text().splitlines()]
    lines[0][1:3] = lines[0][2:0:-1]
    lines[1][5] = "900"
    (tmp_path / "trainImageList.txt").write_text("\n".join(" ".join(line) for line in lines) + "\n")

    assert 4 == len(load_samples(LandmarksConfig(data=str(tmp_path))).images)

    said = capsys.readouterr().out
    assert "ends before it begins" in said and "landmarks far outside the picture" in said
