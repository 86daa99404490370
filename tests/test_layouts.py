"""Public face sets as they lie on a disk, and what is said when they do not fit together."""

import cv2
import numpy as np
import pytest

from engines.errors import MienError
from engines.geometry import alignment_matrix, transform_points
from tests.face_sets import PORTRAITS, SAMPLES, write_mtfl
from tests.public_layouts import IMAGES, PERSONS, write_celeba, write_landmark_lists, write_list
from trainers.closed_set_faces import load_closed_set
from trainers.crops import align_crops, crop_selected
from trainers.faces import box_from_landmarks
from trainers.landmarks import LandmarksConfig, load_samples
from trainers.layouts import open_faces, table
from trainers.look import look
from trainers.subset import Criteria, select


@pytest.fixture
def celeba(tmp_path):
    return write_celeba(tmp_path / "celeba")


def test_a_folder_for_each_person_needs_no_labels(tmp_path):
    for name in PORTRAITS:
        for k in range(2):
            path = tmp_path / "photos" / name.removesuffix(".jpg") / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.imread(str(SAMPLES / name)))
    (tmp_path / "photos" / "grace_hopper" / "wall.png").write_bytes(
        cv2.imencode(".png", np.full((200, 200, 3), 128, np.uint8))[1].tobytes()
    )

    selection = select(tmp_path / "photos", tmp_path / "f", Criteria(min_images=2, min_score=0.3), "eager")

    assert [("grace_hopper/wall.png", "grace_hopper", "no face found")] == selection.rejected
    assert {"grace_hopper", "eileen_collins"} == {record.person for record in selection.kept}
    for record in selection.kept:
        truth = np.array(PORTRAITS[f"{record.person}.jpg"])
        eyes = np.hypot(*(truth[1] - truth[0]))
        assert 0.5 * eyes > np.abs(record.points - truth).max()
    assert 4 == crop_selected(tmp_path / "photos", tmp_path / "f").count
    assert 4 == align_crops(tmp_path / "f", ["eyes"], room=0)["eyes"].count
    faces = load_closed_set(tmp_path / "f", "eyes")
    assert (144, 144, 3) == faces.train.stored(0).shape


def test_rows_and_images_that_do_not_fit_together_are_named(celeba):
    (celeba / "img_celeba" / "000003.jpg").unlink()
    cv2.imwrite(str(celeba / "img_celeba" / "extra.jpg"), np.zeros((9, 9, 3), np.uint8))
    identity = (celeba / "identity_CelebA.txt").read_text().splitlines()
    write_list(celeba / "identity_CelebA.txt", identity[:-1])

    with open_faces(celeba) as source:
        problems = dict(source.problems)
        count = len(source.records)

    assert PERSONS * IMAGES - 2 == count
    assert "a landmark row, there is no such image" == problems["000003.jpg"]
    assert "no row in identity_CelebA" == problems["000018.jpg"]
    assert "an image without a row in list_landmarks_celeba" == problems["extra.jpg"]


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("list_bbox_celeba.txt", r"list_bbox_celeba\.txt: missing"),
        ("identity_CelebA.txt", r"names no persons; CelebA's stand in identity_CelebA\.txt"),
    ],
)
def test_a_list_that_is_missing_is_named(celeba, tmp_path, gone, words):
    (celeba / gone).unlink()

    with pytest.raises(MienError, match=words):
        select(celeba, tmp_path / "f", Criteria())


def test_a_folder_of_another_kind_is_told_what_is_known(tmp_path):
    with pytest.raises(MienError, match="no face set that is known"), open_faces(tmp_path):
        pass
    with pytest.raises(MienError, match="there is nothing there"), open_faces(tmp_path / "none"):
        pass


@pytest.mark.parametrize(
    ("line", "words"), [("b.jpg 1 2 3", "line 3: 3 values"), ("b.jpg 1 2 3 x", "line 3.*word")]
)
def test_a_broken_line_of_a_list_is_named_by_its_number(tmp_path, line, words):
    write_list(tmp_path / "list.txt", [1, "image_id x y w h", line])

    with pytest.raises(MienError, match=words):
        table(tmp_path / "list.txt", 4)


def test_lists_are_read_with_commas_too(tmp_path):
    write_list(tmp_path / "list.csv", ["image_id,x_1,y_1,width,height", "a.jpg,1,2,3,4"])

    assert {"a.jpg": [1, 2, 3, 4]} == table(tmp_path / "list.csv", 4)


def test_aligned_celeba_is_read_with_its_own_landmarks(tmp_path):
    with open_faces(write_celeba(tmp_path / "c", aligned=True)) as source:
        assert PERSONS * IMAGES == len(source.records)
        assert 0.01 > np.abs(source.records[0].box_xyxy - box_from_landmarks(source.records[0].points)).max()


@pytest.mark.parametrize("kind", ["mtcnn", "mtfl"])
def test_the_landmark_recipe_reads_the_published_lists(tmp_path, kind, capsys):
    truth = write_landmark_lists(tmp_path, kind)
    (tmp_path / "net_7876" / "0.jpg").unlink()
    (tmp_path / "net_7876" / "1.jpg").write_bytes(b"?")

    train, val = (load_samples(LandmarksConfig(data=str(tmp_path)), split) for split in ("train", "val"))

    assert (4, 2) == (len(train.images), len(val.images))
    said = capsys.readouterr().out
    assert "net_7876/0.jpg" in said and "net_7876/1.jpg (unreadable)" in said
    for points, was in zip(train.points, truth[2:6], strict=True):  # the crop only scales and shifts
        assert transform_points(was, alignment_matrix(was)) == pytest.approx(
            transform_points(points, alignment_matrix(points)), abs=0.2
        )
    image, heatmaps = train.sample(np.random.default_rng(0))
    assert ((128, 128, 3), (5, 32, 32)) == (image.shape, heatmaps.shape)


def test_the_landmark_recipe_reads_celeba_and_holds_every_tenth_out(celeba):
    config = LandmarksConfig(data=str(celeba))

    assert (16, 2) == tuple(len(load_samples(config, split).images) for split in ("train", "val"))


def test_a_look_shows_landmarks_where_they_are_and_what_the_network_finds(tmp_path):
    write_mtfl(tmp_path, np.random.default_rng(3), n=5)

    shown, bad = look(tmp_path / "mtfl.zip", tmp_path / "look.png", count=2, predict=True, backend="eager")

    picture = cv2.imread(str(tmp_path / "look.png"))
    assert (2, []) == (shown, bad)
    assert (2 * (192 + 22 + 6) + 6, 4 * 192 + 12, 3) == picture.shape
    labelled, found = picture[6:198, 198:390], picture[6:198, 582:774]
    for colour in (
        (80, 220, 80),
        (240, 110, 230),
    ):  # an eye, a mouth corner: found near where they are labelled
        places = [np.argmin(np.abs(part.astype(int) - colour).sum(2)) for part in (labelled, found)]
        near = np.hypot(*np.subtract(*(np.unravel_index(p, (192, 192)) for p in places)))
        assert 25 > near


def test_a_look_passes_over_a_bad_image_and_refuses_a_name_without_a_format(celeba, tmp_path):
    (celeba / "img_celeba" / "000001.jpg").write_bytes(b"?")

    shown, bad = look(celeba, tmp_path / "look.png", count=18)

    assert (17, ["000001.jpg: not an image that OpenCV can read"]) == (shown, bad)
    with pytest.raises(MienError, match=r"ends in \.png"):
        look(celeba, tmp_path / "look", count=1)


def test_crops_are_refused_from_a_set_that_holds_none_of_them(celeba, tmp_path):
    select(celeba, tmp_path / "f", Criteria())
    write_landmark_lists(tmp_path / "other", "mtcnn")

    with pytest.raises(MienError, match=r"holds none of the 18 files"):
        crop_selected(tmp_path / "other", tmp_path / "f")
