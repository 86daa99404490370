import json
import os

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from daemon import stills
from daemon.analyze import Analyst
from daemon.cli import app
from daemon.compare import compare, picture
from daemon.config import Config
from daemon.enrolment import looks_of
from daemon.gallery import Gallery
from daemon.looks import EnrolledLook
from daemon.stills import find_faces
from engines.errors import MienError
from engines.stages import embed
from tests.fakes import (
    ANN,
    BOB,
    DIMENSIONS,
    FakeAttributes,
    FakeDetector,
    FakeEmbedder,
    fake_engines,
    scene,
)
from tests.test_pipeline import People

CONFIG = Config()


def still_engines():
    return fake_engines(detector=FakeDetector(input_size=(640, 384)))


def save(path, image):
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def album(tmp_path):
    """Images with Ann, with Bob, with both, with nobody; and a file that is no image."""
    folder = tmp_path / "album"
    folder.mkdir()
    save(folder / "ann.png", scene((ANN, 100, 60)))
    save(folder / "bob.png", scene((BOB, 100, 60)))
    save(folder / "both.png", scene((ANN, 20, 60), (BOB, 200, 60)))
    save(folder / "nobody.png", scene())
    (folder / "words.jpg").write_text("no image")
    return folder


def analyst_of(**options):
    return Analyst(still_engines(), CONFIG.quality, CONFIG.identity, **options)


def test_every_face_is_read(album):
    entry = analyst_of(embeddings=True).image(album / "both.png")

    assert (entry.width, entry.height) == (320, 192)
    by_age = sorted(entry.faces, key=lambda face: face.age)
    assert [(face.age, face.gender, face.max_emotion) for face in by_age] == [
        (31.0, "female", "happiness"),
        (58.0, "male", "neutral"),
    ]
    assert by_age[0].box_xyxy == (20.0, 60.0, 84.0, 124.0)
    assert len(by_age[0].embedding) == DIMENSIONS


def test_an_image_without_a_face_is_an_entry_without_faces(album):
    assert analyst_of().image(album / "nobody.png").faces == ()


def test_faces_are_named_where_people_are_enrolled(album):
    entry = analyst_of(people=People(Ann=ANN).snapshot()).image(album / "both.png")

    assert {("known", "Ann"), ("unknown", None)} == {
        (face.identity.status, face.identity.name) for face in entry.faces
    }


def test_a_large_picture_is_looked_at_shrunk_too():
    image = cv2.resize(scene((ANN, 100, 60)), (1280, 768), interpolation=cv2.INTER_NEAREST)
    detector = FakeDetector(input_size=(1280, 768))

    (face,) = find_faces(fake_engines(detector=detector), image, CONFIG.quality)

    assert detector.calls == 2
    np.testing.assert_allclose([400, 240, 656, 496], face.box_xyxy, atol=6)


def test_a_tight_crop_is_widened_and_its_box_comes_back_in_its_own_pixels():
    class NeedsRoom(FakeDetector):
        def __call__(self, batch):
            found = super().__call__(batch)
            touching = (found["sides"] != 0).any(2) & (batch[:, 0, 0] != 114).any(1)[:, None]
            return found | {"scores": np.where(touching, 0, found["scores"]).astype(np.float32)}

    image = scene((ANN, 10, 10), size=(84, 84))

    (face,) = find_faces(fake_engines(detector=NeedsRoom()), image, CONFIG.quality)

    np.testing.assert_allclose([10, 10, 74, 74], face.box_xyxy, atol=1)


def test_enrolment_takes_images_with_one_face_and_reports_the_others(album, tmp_path):
    names = ("ann.png", "both.png", "nobody.png", "words.jpg", "none.png")
    with Gallery(tmp_path / "g.sqlite") as gallery:
        looked = looks_of(still_engines(), [album / name for name in names], CONFIG.quality)
        num_new = gallery.enrol("Ann", looked.looks)
        (person,) = gallery.people()

    assert (num_new, person.num_looks) == (1, 1)
    said = [str(failure).removeprefix(f"{album}/") for failure in looked.failures]
    assert said == [
        "both.png: shows 2 faces; cut it to the one that is meant",
        "nobody.png: shows no face; give an image with the person's face in it",
        "words.jpg: not an image that can be read; give a JPEG, PNG, WebP, TIFF, BMP or GIF file",
        "none.png: no such file; check the path",
    ]


def test_where_no_image_serves_there_is_nothing_to_enrol(album):
    with pytest.raises(MienError, match="shows no face"):
        looks_of(still_engines(), [album / "nobody.png"], CONFIG.quality)


def test_a_face_that_is_too_small_is_not_enrolled_unless_told_to(tmp_path):
    path = save(tmp_path / "far.png", scene((ANN, 40, 60), side=24))
    with pytest.raises(MienError, match="too small"):
        looks_of(still_engines(), [path], CONFIG.quality)

    assert 1 == len(looks_of(still_engines(), [path], CONFIG.quality, any_quality=True).looks)


def test_a_small_face_in_the_background_does_not_keep_one_from_enrolling(tmp_path):
    image = scene((ANN, 100, 60))
    image[10:34, 10:34] = scene((BOB, 0, 0), size=(24, 24), side=24)
    path = save(tmp_path / "a.png", image)

    assert 1 == len(looks_of(still_engines(), [path], CONFIG.quality).looks)


def test_two_images_of_one_person_compare_as_one(album):
    other = save(album / "ann2.png", scene((ANN, 30, 20)))

    same = compare(still_engines(), CONFIG, album / "ann.png", other)
    different = compare(still_engines(), CONFIG, album / "ann.png", album / "bob.png")

    assert (same.same, different.same) == (True, False)
    assert pytest.approx((same.similarity, different.similarity), abs=1e-3) == (1.0, 0.0826)
    assert same.verdict == "the same person"


def test_stills_are_seen_from_both_sides(album):
    """The fakes judge a crop by its left half."""

    def left_half(fake):
        class LeftHalf(fake):
            def __call__(self, batch):
                share = (batch[:, :, :56].mean((1, 2, 3)) / 255)[:, None].astype(np.float32)
                if fake is FakeEmbedder:
                    return {"embedding": np.concatenate((share, 1 - share), 1) / np.hypot(share, 1 - share)}
                return {"age_years": share[:, 0], "female": share[:, 0], "emotion": np.tile(share, 8)}

        return LeftHalf()

    engines = fake_engines(
        detector=FakeDetector(input_size=(640, 384)),
        embedder=left_half(FakeEmbedder),
        attributes=left_half(FakeAttributes),
    )
    plain = album / "ann.png"
    mirror = save(album / "mirror.png", cv2.imread(str(plain))[:, ::-1])
    looks = looks_of(engines, [plain, mirror], CONFIG.quality).looks
    entries = [
        Analyst(engines, CONFIG.quality, CONFIG.identity, embeddings=True).image(path).faces[0]
        for path in (plain, mirror)
    ]

    crops = [
        find_faces(engines, cv2.imread(str(path)), CONFIG.quality)[0].aligned_crop for path in (plain, mirror)
    ]
    once = embed(engines.embedder, np.stack(crops))
    assert np.abs(once[0] - once[1]).max() > 0.01
    np.testing.assert_allclose(looks[0].embedding, looks[1].embedding, atol=1e-3)
    assert pytest.approx(1, abs=1e-6) == np.linalg.norm(looks[0].embedding)
    assert entries[0].age == entries[1].age
    assert entries[0].gender_score == pytest.approx(entries[1].gender_score, abs=2e-3)
    assert 1 == pytest.approx(compare(engines, CONFIG, plain, mirror).similarity, abs=1e-4)


def test_the_picture_shows_both_aligned_crops(album):
    shown = picture(compare(still_engines(), CONFIG, album / "ann.png", album / "bob.png"))

    assert (int(shown[168, 168].argmax()), int(shown[168, 336 + 8 + 168].argmax())) == (2, 1)


def test_comparing_with_an_image_without_a_face_says_so(album):
    with pytest.raises(MienError, match=r"nobody.png: shows no face"):
        compare(still_engines(), CONFIG, album / "ann.png", album / "nobody.png")


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs a command with painted people's engines, in a folder of its own."""
    monkeypatch.setattr(stills, "load_face_engines", lambda **_: still_engines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_analyze_writes_one_document_with_the_bad_image_in_its_entry(album, cli):
    result = cli("analyze", album)

    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema"] == "mien.analysis/1"
    assert [len(e["faces"]) if "faces" in e else None for e in document["images"]] == [1, 1, 2, 0, None]
    assert "not an image that can be read" in document["images"][-1]["error"]
    assert "words.jpg: not an image" in result.stderr


def test_analyze_writes_a_line_an_image(album, cli, tmp_path):
    result = cli("analyze", album / "ann.png", album / "bob.png", "--jsonl", "--out", "a.jsonl")

    assert result.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [str(album / "ann.png"), str(album / "bob.png")] == [line["path"] for line in lines]


def test_analyze_fails_where_no_image_can_be_read(album, cli):
    assert cli("analyze", album / "words.jpg").exit_code == 1


def test_people_are_enrolled_listed_shown_named_and_removed(album, cli):
    enrolled = cli("gallery", "enroll", "Ann", album / "ann.png")
    assert "Ann: 1 new; 1 in all" in enrolled.stdout
    assert (
        "Ann: 0 new, 1 enrolled before; 1 in all" in cli("gallery", "enroll", "Ann", album / "ann.png").stdout
    )
    assert "Ann" in cli("gallery", "list").stdout
    assert "ann.png" in cli("gallery", "show", "Ann").stdout
    named = json.loads(cli("analyze", album / "ann.png").stdout)["images"][0]["faces"][0]["identity"]
    assert (named["name"], named["status"]) == ("Ann", "known")
    assert "erased" in cli("gallery", "remove", "Ann").stdout
    assert "nobody is enrolled" in cli("gallery", "list").stdout


def test_a_file_name_that_is_no_utf_8_is_one_all_the_same(album, cli):
    latin = album / os.fsdecode(b"caf\xe9.png")
    (album / "ann.png").rename(latin)
    (album / os.fsdecode(b"caf\xe9.jpg")).write_text("no image")

    assert "Ann: 1 new" in cli("gallery", "enroll", "Ann", latin).stdout
    assert "caf\ufffd.png" in cli("gallery", "show", "Ann").stdout
    for options in ((), ("--jsonl",)):
        result = cli("analyze", album, *options)
        assert 0 == result.exit_code
        assert result.stdout.count(f'"{album}/caf\ufffd.png"') == 1
        assert f"{album}/caf\ufffd.jpg: not an image" in result.stderr


def test_people_of_another_embedder_are_told_beside_the_document(album, cli, tmp_path):
    with Gallery(tmp_path / "data/mien/gallery.sqlite") as gallery:
        row = np.eye(1, DIMENSIONS, dtype=np.float32)[0]
        gallery.enrol("Bob", [EnrolledLook("other@1", row, "b.jpg", "hash", 40.0)])
    cli("gallery", "enroll", "Ann", album / "ann.png")

    result = cli("analyze", album / "ann.png")

    assert "Ann" == json.loads(result.stdout)["images"][0]["faces"][0]["identity"]["name"]
    assert 1 == result.stderr.count("Bob enrolled with the embedder other@1")


def test_compare_answers_in_words_or_as_json(album, cli, tmp_path):
    words = cli("compare", album / "ann.png", album / "bob.png", "--out", "c.png").stdout
    answer = json.loads(cli("compare", album / "ann.png", album / "ann.png", "--json").stdout)

    assert words.startswith("different people: similarity 0.083, threshold 0.400")
    assert (answer["same"], answer["similarity"]) == (True, 1.0)
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_a_picture_of_no_known_kind_is_refused_in_words(album, cli):
    result = cli("compare", album / "ann.png", album / "bob.png", "--out", "c.xyz")

    assert "c.xyz: no kind of image" in str(result.exception)
