"""The gallery where things go wrong: old files, killed writers, bad backups; and through a daemon."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from daemon.config import Config, load_config
from daemon.control import ControlServer
from daemon.control_client import RemoteGallery, connected, owner_of
from daemon.gallery import Gallery
from daemon.gallery_file import SCHEMA_VERSION
from daemon.live_gallery import LiveGallery
from daemon.looks import model_id
from daemon.metrics import gallery_size
from engines.errors import MienError, UsageError
from engines.runtime import spec_of
from tests.clips import grey_levels, write_clip
from tests.processes import MIEN, ROOT, DaemonProcess
from tests.test_gallery import MODEL, look, unit

VERSION_1 = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, enrolled_at TEXT NOT NULL) STRICT;
CREATE TABLE looks (
    id INTEGER PRIMARY KEY,
    person INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    model TEXT NOT NULL, embedding BLOB NOT NULL, image TEXT NOT NULL, image_sha256 TEXT NOT NULL,
    interocular_px REAL NOT NULL, enrolled_at TEXT NOT NULL,
    UNIQUE (person, model, image_sha256)
) STRICT;
INSERT INTO people VALUES (7, 'Ann', '2025-01-01T00:00:00+00:00');
PRAGMA application_id = 0x4D69656E;
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "people" / "gallery.sqlite"


def test_a_gallery_of_an_older_version_is_taken_over_with_all_its_people(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
        row = (1, 7, MODEL, unit(1, 0).tobytes(), "a.jpg", "hash", 40.0, "2025-01-01T00:00:00+00:00")
        connection.execute("INSERT INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()

    with Gallery(path) as gallery:
        gallery.enrol("Bob", [look(0, 1)])
        people = [(person.name, person.num_looks) for person in gallery.people()]
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    assert [("Ann", 1), ("Bob", 1)] == people
    assert SCHEMA_VERSION == version


def test_a_new_gallery_and_one_taken_over_have_the_same_tables(tmp_path):
    def schema(file):
        with sqlite3.connect(file) as connection:
            rows = connection.execute("SELECT name, type FROM sqlite_schema ORDER BY name").fetchall()
        connection.close()
        return rows

    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    with sqlite3.connect(old) as connection:
        connection.executescript(VERSION_1)
    connection.close()
    Gallery(old).close()
    Gallery(new).close()

    assert schema(old) == schema(new)
    assert ("looks_by_model", "index") in schema(new)


def test_looking_makes_no_file(path):
    with pytest.raises(MienError, match="nobody is enrolled yet"):
        Gallery(path, create=False)
    assert not path.parent.exists()


def test_a_backup_is_a_gallery_of_its_own_and_comes_back(path, tmp_path):
    saved = tmp_path / "saved.sqlite"
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        assert 1 == gallery.backup(saved)
        gallery.remove("Ann")
        gallery.enrol("Bob", [look(0, 1)])
        live = LiveGallery(path, MODEL)
        assert ("Bob",) == live.snapshot().names

        assert 1 == gallery.restore(saved)

        assert ["Ann"] == [person.name for person in gallery.people()]
        assert ("Ann",) == live.snapshot().names
        live.close()
        left = b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert b"Ann" in left and b"Bob" not in left
    assert 0o600 == stat.S_IMODE(saved.stat().st_mode)
    assert ["saved.sqlite"] == [each.name for each in tmp_path.iterdir() if each.is_file()]


def test_an_erasure_that_failed_midway_is_done_to_its_end_when_asked_for_again(path, monkeypatch):
    monkeypatch.setattr("daemon.gallery_file.BUSY_TIMEOUT_S", 0.2)
    with Gallery(path) as gallery:
        gallery.enrol("Annabel", [look(1, 0)])
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM people").fetchall()
        for _ in range(2):
            with pytest.raises(MienError, match=r"in use; .* traces may be left .* do it again"):
                gallery.remove("Annabel")
        assert b"Annabel" in b"".join(each.read_bytes() for each in path.parent.iterdir())
        reader.close()

        with pytest.raises(MienError, match="nobody is called 'Annabel'"):
            gallery.remove("Annabel")
        assert b"Annabel" not in b"".join(each.read_bytes() for each in path.parent.iterdir())


def damaged_gallery(path):
    with Gallery(path) as other:
        for number in range(40):
            other.enrol(f"P{number}", [look(*np.random.default_rng(number).normal(size=256))])
    whole = bytearray(path.read_bytes())
    whole[4096:12288] = os.urandom(8192)
    path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["missing", "text", "damaged"])
def test_what_is_no_backup_changes_nothing(path, tmp_path, kind):
    bad = tmp_path / "bad.sqlite"
    if kind == "damaged":
        damaged_gallery(bad)
    elif kind == "text":
        bad.write_bytes(b"notes " * 1000)
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])

        with pytest.raises(MienError, match=r"bad\.sqlite: "):
            gallery.restore(bad)
        assert ["Ann"] == [person.name for person in gallery.people()]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "Robert'); DROP TABLE people;--", '"quoted"', "🙂 Zoë", "a%s{}$(id)`id`"]
)
def test_names_are_only_names(path, name):
    with Gallery(path) as gallery:
        gallery.enrol(name, [look(1, 0)])
        gallery.enrol("Ann", [look(0, 1)])
        (found,) = [person.name for person in gallery.people() if person.name != "Ann"]
        gallery.remove(name)

        assert name == found
        assert ["Ann"] == [person.name for person in gallery.people()]


ENROLS = """
import sys
from pathlib import Path
import numpy as np
from daemon.gallery import Gallery
from daemon.looks import EnrolledLook

path, start = Path(sys.argv[1]), int(sys.argv[2])
random = np.random.default_rng(start)
with Gallery(path) as gallery:
    for number in range(start, start + 100000):
        row = random.normal(size=128).astype(np.float32)
        row /= np.linalg.norm(row)
        gallery.enrol(f"P{number}", [EnrolledLook("m", row, f"{i}.jpg", f"h{i}", 40.0) for i in range(3)])
        print(number, flush=True)
"""


def kill_during_enrolment(path, rounds, seed=0):
    """Kills an enrolling process at random moments; returns how many people came through all of it."""
    chance, start = random.Random(seed), 0
    for _ in range(rounds):
        command = [sys.executable, "-c", ENROLS, str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            committed = [process.stdout.readline()]
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            committed += process.stdout.readlines()
        last = int([line for line in committed if line.endswith("\n")][-1])
        with Gallery(path) as gallery:
            gallery.check_whole()
            num_looks = {person.name: person.num_looks for person in gallery.people()}
        assert all(num_looks.get(f"P{number}") == 3 for number in range(last + 1))
        assert {3} == set(num_looks.values())
        start = len(num_looks)
    return start


def test_kill_9_during_enrolment_loses_nothing_that_was_committed(path):
    assert kill_during_enrolment(path, 3) >= 3
    assert {"gallery.sqlite"} == {each.name for each in path.parent.iterdir()}


ENROLS_ONE = """
import sys
from pathlib import Path
from daemon.gallery import Gallery
from tests.test_gallery import look

with Gallery(Path(sys.argv[1])) as gallery:
    gallery.enrol("Bob", [look(0, 1)])
"""


def test_a_gallery_that_is_followed_goes_on_being_followed_once_it_is_opened_a_second_time(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
    live = LiveGallery(path, MODEL)
    assert ("Ann",) == live.snapshot().names

    assert (1, 1) == gallery_size(path)  # as at every scrape
    subprocess.run([sys.executable, "-c", ENROLS_ONE, str(path)], check=True, cwd=ROOT)

    assert ("Ann", "Bob") == live.snapshot().names
    assert {"", "-shm", "-wal"} == {each.name.removeprefix(path.name) for each in path.parent.iterdir()}
    with Gallery(path) as gallery:
        gallery.enrol("Cyd", [look(1, 1)])
    assert ("Ann", "Bob", "Cyd") == live.snapshot().names
    live.close()


def test_a_gallery_is_made_for_its_owner_where_a_link_leads(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere.sqlite")
    Gallery(path).close()

    assert 0o600 == stat.S_IMODE((tmp_path / "elsewhere.sqlite").stat().st_mode)


def mien(*words):
    return subprocess.run([MIEN, *map(str, words)], capture_output=True, text=True, cwd=ROOT)


def test_a_failed_enrolment_on_the_command_line_leaves_no_file(tmp_path):
    (tmp_path / "none.jpg").write_text("no picture")
    file = tmp_path / "new" / "g.sqlite"
    done = mien("gallery", "enroll", "Ann", tmp_path / "none.jpg", "--gallery", file)

    assert 1 == done.returncode, done.stderr
    assert not file.parent.exists()
    assert "nobody is enrolled" in mien("gallery", "list", "--gallery", file).stdout
    assert not file.parent.exists()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    clip = write_clip(folder / "clip.mp4", grey_levels(30))
    with DaemonProcess(folder, [{"name": "door", "source": str(clip), "loop": True}]) as it:
        it.until(lambda: it.of("door/faces"))
        yield it


def our_look(axis, size=192):
    """A look as the shipped embedder gives it, which the daemon is configured with."""
    return look(*np.eye(size)[axis], model=model_id(spec_of("embedder")))


def test_the_command_goes_through_the_daemon_that_owns_the_file(daemon):
    config, saved = ("--config", daemon.config), daemon.folder / "saved.sqlite"
    with connected(load_config(daemon.config)) as control, RemoteGallery(control) as remote:
        assert [1, 1] == [remote.enrol("Ann", [our_look(0)]), remote.enrol("Bob", [our_look(1)])]
        np.testing.assert_array_equal(our_look(0).embedding, remote.looks("Ann")[0].embedding)
    listed = mien("gallery", "list", *config)
    backed_up = mien("gallery", "backup", saved, *config)
    removed = mien("gallery", "remove", "Bob", *config)
    wrong = mien("gallery", "remove", "Zoë", *config)
    restored = mien("gallery", "restore", saved, *config)

    assert "Ann" in listed.stdout and "Bob" in listed.stdout
    assert "2 people" in backed_up.stdout and "erased" in removed.stdout and "2 people" in restored.stdout
    assert 1 == wrong.returncode and "nobody is called 'Zoë'; enrolled are: Ann" in wrong.stderr
    asked = ("people", "enrol", "remove", "backup", "restore")
    assert all(f'"request": "gallery_{each}"' in daemon.log() for each in asked)
    with Gallery(daemon.folder / "gallery.sqlite") as gallery:
        assert ["Ann", "Bob"] == [person.name for person in gallery.people()]
    assert 0o600 == stat.S_IMODE(saved.stat().st_mode)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (look(1, 0, model="other@1"), r"a\.jpg: its embedding is of other@1, and embedder@.* is in use"),
        (our_look(0, size=128), r"a\.jpg: an embedding of 128 numbers, and embedder@.* gives 192"),
    ],
)
def test_the_daemon_refuses_a_look_that_its_embedder_cannot_compare(daemon, wrong, words):
    with connected(load_config(daemon.config)) as control, RemoteGallery(control) as remote:
        before = remote.people()
        with pytest.raises(UsageError, match=words):
            remote.enrol("Eve", [our_look(2), wrong])
        assert before == remote.people()


def test_damage_is_looked_for_through_the_daemon_too(daemon, tmp_path):
    clip = daemon.folder / "clip.mp4"
    with DaemonProcess(tmp_path, [{"name": "door", "source": str(clip), "loop": True}]) as another:
        another.until(lambda: another.of("door/faces"))
        path = tmp_path / "gallery.sqlite"
        with Gallery(path) as gallery:
            gallery.enrol("Ann", [our_look(0)])
        whole = mien("gallery", "check", "--config", another.config)
        damage_an_index(path)
        damaged = mien("gallery", "check", "--config", another.config)
        log = another.log()

    assert (0, 1) == (whole.returncode, damaged.returncode), whole.stderr
    assert "no findings" in whole.stdout and f"{path}: damaged; restore it from a backup" in damaged.stderr
    assert '"request": "gallery_check"' in log


def damage_an_index(path):
    """What no search for people or looks comes across."""
    with sqlite3.connect(path) as connection:
        find = "SELECT rootpage FROM sqlite_schema WHERE name = 'looks_by_model'"
        ((page,), (size,)) = (
            connection.execute(find).fetchone(),
            connection.execute("PRAGMA page_size").fetchone(),
        )
    connection.close()
    whole = bytearray(path.read_bytes())
    whole[page * size - 40 : page * size] = bytes(40)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("gallery", "named", "is_the_units"),
    [(None, False, True), ("gallery.sqlite", True, False), ("old-copy.sqlite", False, False)],
)
def test_only_a_gallery_that_nobody_named_is_the_units(tmp_path, monkeypatch, gallery, named, is_the_units):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr("daemon.control_client.SERVICE_FOLDER", tmp_path / "run")
    path = gallery and str(tmp_path / "mien" / gallery)
    socket = tmp_path / "run" / "mien.sock"
    config = Config.model_validate({"gallery": {"path": path}, "control": {"path": str(socket)}})

    with ControlServer(socket, lambda request: {"gallery": "/var/lib/mien/gallery.sqlite"}):
        owner = owner_of(config, named=named)

    assert is_the_units == (owner is not None)
    if owner is not None:
        owner.close()


def test_another_gallery_than_the_daemons_is_opened_here(daemon):
    other = daemon.folder / "other.sqlite"
    with Gallery(other) as gallery:
        gallery.enrol("Zed", [look(1, 0)])
    before = daemon.log().count("gallery_people")

    assert "Zed" in mien("gallery", "list", "--config", daemon.config, "--gallery", other).stdout
    assert before == daemon.log().count("gallery_people")
