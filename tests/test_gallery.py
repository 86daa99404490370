import sqlite3
import stat
import threading
import unicodedata

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from daemon.cli import app
from daemon.gallery import Gallery
from daemon.live_gallery import LiveGallery
from daemon.looks import EnrolledLook
from engines.errors import MienError, UsageError

MODEL = "embedder@0123456789ab"


def unit(*values):
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def look(*values, image="a.jpg", model=MODEL):
    return EnrolledLook(model, unit(*values), image, f"hash of {image}", 40.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "people" / "gallery.sqlite"


def test_who_is_enrolled_is_still_there_when_opened_again(path):
    with Gallery(path) as gallery:
        assert gallery.enrol("Ann", [look(1, 0), look(1, 1, image="b.jpg")]) == 2

    with Gallery(path) as gallery:
        (person,) = gallery.people()
        looks = gallery.looks("Ann")
    assert (person.name, person.num_looks, person.models) == ("Ann", 2, (MODEL,))
    assert [each.image for each in looks] == ["a.jpg", "b.jpg"]
    np.testing.assert_array_equal(unit(1, 1), looks[1].embedding)


def test_only_the_owner_may_read_the_file_and_its_journal(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}

    assert {0o600} == modes


def test_the_same_image_is_not_enrolled_twice(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])

        assert gallery.enrol("Ann", [look(1, 0)]) == 0
        assert gallery.people()[0].num_looks == 1


def test_who_is_removed_leaves_no_trace_in_the_file(path):
    secret = look(0.123, 0.456, 0.789, image="secret.jpg")
    with Gallery(path) as gallery:
        gallery.enrol("Annabel", [secret])
        gallery.enrol("Bob", [look(1, 0, 0)])
        gallery.remove("Annabel")
        left = b"".join(each.read_bytes() for each in path.parent.iterdir())

    assert b"Bob" in left
    assert all(trace not in left for trace in (b"Annabel", b"secret.jpg", secret.embedding.tobytes()))


def test_removing_a_stranger_names_who_is_there(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])

        with pytest.raises(MienError, match="nobody is called 'Bob'; enrolled are: Ann"):
            gallery.remove("Bob")


def test_a_failed_enrolment_leaves_nothing_behind(path):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError

    with Gallery(path) as gallery:
        with pytest.raises(RuntimeError):
            gallery.enrol("Ann", [look(1, 0), Broken()])

        assert gallery.people() == []


@pytest.mark.parametrize("name", ["José", "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "👩\u200d🚀 Zoë"])
def test_a_name_is_the_same_in_every_form_unicode_has_of_it(path, name):
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    with Gallery(path) as gallery:
        gallery.enrol(apart, [look(1, 0)])
        gallery.enrol(composed, [look(0, 1, image="b.jpg")])

        assert [(composed, 2)] == [(person.name, person.num_looks) for person in gallery.people()]
        assert (composed,) == gallery.snapshot(MODEL).names
        assert 2 == len(gallery.looks(apart))
        gallery.remove(apart)
        assert [] == gallery.people()


def test_who_was_enrolled_under_two_forms_of_one_name_is_one_person(path):
    Gallery(path).close()
    with sqlite3.connect(path) as connection:
        for number, form in enumerate(("NFD", "NFC"), 1):
            name, row = unicodedata.normalize(form, "José"), unit(1, 0).tobytes()
            connection.execute("INSERT INTO people VALUES (?, ?, 'then')", (number, name))
            looks = "INSERT INTO looks VALUES (?, ?, ?, ?, 'a.jpg', ?, 40.0, 'then')"
            connection.execute(looks, (number, number, MODEL, row, str(number)))
    connection.close()

    with Gallery(path) as gallery:
        ((person,), snapshot) = gallery.people(), gallery.snapshot(MODEL)
        assert ("José", 2, (MODEL,)) == (person.name, person.num_looks, person.models)
        assert (("José",), [0, 0, 0]) == (snapshot.names, snapshot.owners.tolist())
        assert 1 == gallery.enrol("José", [look(0, 1, image="b.jpg")])
        gallery.remove("José")
        assert [] == gallery.people()


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "x" * 101, "\u200d", "Ann\u200c", "\u200dAnn", "a\u202eb"]
)
def test_a_name_must_be_one(path, name):
    with Gallery(path) as gallery, pytest.raises(UsageError, match="is no name"):
        gallery.enrol(name, [look(1, 0)])


def test_similarity_is_to_the_nearest_look_or_the_mean(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0, 0), look(0, 1, 0, image="b.jpg")])
        gallery.enrol("Bob", [look(0, 0, 1)])
        snapshot = gallery.snapshot(MODEL)

    similarities = snapshot.similarities(np.stack((unit(1, 0, 0), unit(1, 1, 0), unit(0, 0, 1))))

    assert snapshot.names == ("Ann", "Bob")
    np.testing.assert_allclose([[1, 0], [1, 0], [0, 1]], similarities, atol=1e-6)


def test_a_gallery_that_holds_embeddings_of_another_embedder_alone_is_refused_in_words(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0, model="other@1")])

    with pytest.raises(MienError, match=r"Ann enrolled with the embedder other@1, and .* enrol them again"):
        LiveGallery(path, MODEL)


def test_an_embedding_of_another_length_than_its_embedders_others_is_refused(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])

        with pytest.raises(UsageError, match=r"b\.jpg: an embedding of 3 numbers, and those of .* have 2"):
            gallery.enrol("Bob", [look(0, 1), look(1, 0, 0, image="b.jpg")])
        with pytest.raises(UsageError, match="of 2 numbers, and those of other@1 have 3"):
            gallery.enrol("Cyd", [look(1, 0, 0, model="other@1"), look(1, 0, model="other@1")])
        assert ["Ann"] == [person.name for person in gallery.people()]


def test_who_has_an_embedding_of_another_length_all_the_same_is_named(path, monkeypatch):
    monkeypatch.setattr(Gallery, "_check_lengths", lambda *_: None)
    with Gallery(path) as gallery:
        for name, row in {"Ann": (1, 0, 0), "Bob": (0, 1), "Cyd": (1, 0)}.items():
            gallery.enrol(name, [look(*row)])

        with pytest.raises(MienError, match=r": Ann enrolled with embeddings of another length than most"):
            gallery.snapshot(MODEL)


def test_a_file_that_is_no_sqlite_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, long enough to be looked at as the header of a database file" * 3)

    with pytest.raises(MienError, match=r"notes.txt: not a gallery \(no SQLite file\)"):
        Gallery(path)
    assert path.read_text().startswith("these are notes")


def test_the_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()

    with pytest.raises(MienError, match="belongs to another program"):
        Gallery(path)


def test_a_gallery_of_a_newer_version_is_refused(path):
    Gallery(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()

    with pytest.raises(MienError, match=r"newer Mien \(gallery version 9\)"):
        Gallery(path)


def test_a_folder_is_no_gallery_and_says_so(tmp_path):
    with pytest.raises(MienError, match="cannot be opened; check that it is a file"):
        Gallery(tmp_path)


def test_a_path_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(MienError, match="cannot be opened"):
        Gallery(tmp_path / "file" / "gallery.sqlite")


def test_the_pipelines_view_follows_what_others_change(path):
    live = LiveGallery(path, MODEL)
    assert live.snapshot().names == ()

    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        first = live.snapshot()
        assert live.snapshot() is first
        gallery.enrol("Bob", [look(0, 1)])
        assert (first.names, live.snapshot().names) == (("Ann",), ("Ann", "Bob"))
        gallery.remove("Ann")
        assert live.snapshot().names == ("Bob",)

    path.unlink()
    assert live.snapshot().names == ()
    live.close()


def test_who_has_looks_of_another_embedder_alone_is_warned_of_once_and_left_out(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        live = LiveGallery(path, MODEL)
        gallery.enrol("Bob", [look(1, 0, model="other@1")])
        with capture_logs() as logs:
            names = [live.snapshot().names for _ in range(3)][-1]
            gallery.enrol("Cyd", [look(0, 1)])
            assert ("Ann", "Cyd") == live.snapshot().names
        live.close()

    assert names == ("Ann",)
    assert ["people_left_out"] == [each["event"] for each in logs]
    assert "Bob enrolled with the embedder other@1" in logs[0]["detail"]


def test_who_is_erased_is_not_named_any_more_whoever_else_cannot_be(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        live = LiveGallery(path, MODEL)
        gallery.enrol("Bob", [look(1, 0, model="other@1")])
        assert ("Ann",) == live.snapshot().names
        gallery.remove("Ann")

        assert () == live.snapshot().names
        live.close()


def test_a_change_during_a_failed_reading_is_seen_afterwards(path, monkeypatch):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        live = LiveGallery(path, MODEL)
        version = Gallery.version
        monkeypatch.setattr(Gallery, "version", lambda _: (_ for _ in ()).throw(MienError("locked")))
        gallery.enrol("Bob", [look(0, 1)])
        assert ("Ann",) == live.snapshot().names
        monkeypatch.setattr(Gallery, "version", version)
        monkeypatch.setattr("daemon.live_gallery.RETRY_S", 0)
        live._again_s = 0

        assert ("Ann", "Bob") == live.snapshot().names
        live.close()


def test_two_may_enrol_at_the_same_time(path):
    Gallery(path).close()

    def enrol(name):
        with Gallery(path) as gallery:
            for index in range(10):
                gallery.enrol(name, [look(1, index, image=f"{index}.jpg")])

    threads = [threading.Thread(target=enrol, args=(name,)) for name in ("Ann", "Bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with Gallery(path) as gallery:
        assert [person.num_looks for person in gallery.people()] == [10, 10]


@pytest.mark.parametrize("name", ["Ann [/]", "Ann [staff]", "Ann :smile:"])
def test_names_are_shown_as_they_are(path, name, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(path.parent))
    monkeypatch.setenv("COLUMNS", "200")
    with Gallery(path) as gallery:
        gallery.enrol(name, [look(1, 0, image="door [/] 1.jpg")])

    everybody = CliRunner().invoke(app, ["gallery", "list", "--gallery", str(path)])
    one = CliRunner().invoke(app, ["gallery", "show", name, "--gallery", str(path)])

    assert f"{name} " in everybody.output
    assert f"{name} " in one.output and "door [/] 1.jpg" in one.output
