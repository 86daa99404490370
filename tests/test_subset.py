"""Choosing and cropping faces of one's own: how many of each, names alike, damaged files, sets without landmarks."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.errors import MienError, UsageError
from tests.face_sets import PORTRAITS, SAMPLES, face, write_zip
from tests.public_layouts import write_celeba
from trainers.closed_set_faces import load_closed_set
from trainers.crops import align_crops, crop_selected
from trainers.face_rows import FaceRecord, read_records, write_records
from trainers.landmark_lists import listed_faces, split_of
from trainers.layouts import open_faces
from trainers.subset import Criteria, select


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    return write_celeba(tmp_path / "celeba")


@pytest.mark.parametrize(
    ("criteria", "each"),
    [
        (Criteria(images=3), 3),  # fewer than the usual five, because it is said
        (Criteria(images=3, min_images=6), 3),
        (Criteria(min_images=2), 6),
        (Criteria(), 6),
    ],
    ids=str,
)
def test_as_many_of_each_person_are_kept_as_is_asked(
    celeba: Path, tmp_path: Path, criteria: Criteria, each: int
) -> None:
    selection = select(celeba, tmp_path / "f", criteria)

    persons = [record.person for record in selection.kept]
    assert {"1": each, "2": each, "3": each} == {person: persons.count(person) for person in set(persons)}


def test_persons_with_fewer_than_the_least_are_left_out_whatever_is_kept_of_each(
    celeba: Path, tmp_path: Path
) -> None:
    with pytest.raises(MienError, match="0 persons have 7 images that pass"):
        select(celeba, tmp_path / "f", Criteria(images=3, min_images=7))


def test_persons_that_cannot_be_within_the_total_are_told(celeba: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="total 8: 3 persons have 9 images at least"):
        select(celeba, tmp_path / "f", Criteria(persons=3, images=3, total=8))
    with pytest.raises(
        MienError, match="12 images are of 2 persons already, 3 are asked for; give a larger total"
    ):
        select(celeba, tmp_path / "f", Criteria(persons=3, min_images=2, total=12))
    assert 9 == len(select(celeba, tmp_path / "f", Criteria(persons=3, images=3, total=9)).kept)


def test_pictures_whose_names_differ_in_their_suffix_alone_stay_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("1.jpg", "1.png", "2.jpg", "2.JPG", "3.webp"):
        path = tmp_path / "photos" / "ann" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 20, (*cv2.imread(str(SAMPLES / "grace_hopper.jpg")).shape,), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.subtract(cv2.imread(str(SAMPLES / "grace_hopper.jpg")), noise))

    select(tmp_path / "photos", tmp_path / "f", Criteria(), "eager")
    written = crop_selected(tmp_path / "photos", tmp_path / "f")
    align_crops(tmp_path / "f", ["eyes"])

    assert 5 == written.count == len(list((tmp_path / "f/crops/ann").iterdir()))
    faces = load_closed_set(tmp_path / "f", "eyes")
    assert 5 == len({*faces.train.encoded, *faces.val.encoded})


def damage(path: Path, name: str) -> None:
    """Another byte in the middle of a stored file: its checksum is off."""
    with zipfile.ZipFile(path) as file:
        found = file.getinfo(name)
    content = bytearray(path.read_bytes())
    content[found.header_offset + 60 + found.file_size // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_file_of_a_zip_is_left_out_and_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = [f"{i}.webp" for i in range(6)]
    portrait = cv2.imread(str(SAMPLES / "grace_hopper.jpg"))
    pictures = {
        name: cv2.subtract(portrait, rng.integers(0, 9, portrait.shape, dtype=np.uint8)) for name in names
    }
    write_zip(tmp_path / "own.zip", pictures, [{"file": name, "identity": "ann"} for name in names])
    damage(tmp_path / "own.zip", "2.webp")

    selection = select(tmp_path / "own.zip", tmp_path / "f", Criteria(), "eager")

    assert [("2.webp", "ann", "unreadable")] == selection.rejected
    assert 5 == len(selection.kept)  # their landmarks are found: the labels have none
    truth = np.array(PORTRAITS["grace_hopper.jpg"])
    eyes = np.hypot(*(truth[1] - truth[0]))
    assert all(0.5 * eyes > np.abs(record.points - truth).max() for record in selection.kept)
    records = read_records(tmp_path / "f" / "selected.csv")
    write_records(
        tmp_path / "f" / "selected.csv",
        [*records, FaceRecord("2.webp", "ann", points=truth, box_xyxy=truth[:2].ravel())],
    )
    assert ["2.webp"] == [file for file, _ in crop_selected(tmp_path / "own.zip", tmp_path / "f").failed]


def test_a_label_file_without_a_landmark_says_which(tmp_path: Path) -> None:
    picture, points = face(np.random.default_rng(2), 128, 25, 0.45)
    row = dict(
        zip([f"{p}{a}" for p in ("le", "re", "n", "lm") for a in "xy"], points[:4].ravel(), strict=True)
    )
    write_zip(tmp_path / "own.zip", {"a.webp": picture}, [{"file": "a.webp", "identity": "ann", **row}])

    with (
        pytest.raises(MienError, match=r"own\.zip: labels\.csv has no column 'rmx'"),
        open_faces(tmp_path / "own.zip"),
    ):
        pass


def test_who_is_held_out_of_celeba_does_not_hang_on_which_pictures_are_there(celeba: Path) -> None:
    names = [path.name for path in sorted((celeba / "img_celeba").iterdir())]
    split = {name: split_of(FaceRecord(name)) for name in names}
    assert {"train", "val"} == set(split.values())

    gone = next(name for name in names if split[name] == "train")
    before = listed_faces(celeba, "val")[0]
    (celeba / "img_celeba" / gone).unlink()
    after = listed_faces(celeba, "val")[0]

    assert len(before) == len(after) == list(split.values()).count("val")
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
