"""Disks that are full: events, videos, the gallery, logs; and files that are there whole or not at all."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.gallery import Gallery
from daemon.looks import EnrolledLook
from daemon.telemetry import PatientStream
from daemon.video_file import VideoFile
from daemon.whole_file import whole_file
from engines.errors import MienError
from tests.clips import grey_levels, write_clip
from tests.processes import ROOT, DaemonProcess

SMALL = 128 * 1024
"""Bytes the disk has, or a file may have."""

WRITES = """
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from pathlib import Path

import numpy as np
from daemon.gallery import Gallery
from daemon.jsonl import JsonLines
from daemon.looks import EnrolledLook
from daemon.records import StatusEvent
from daemon.video_file import VideoFile
from engines.errors import MienError

kind, path = sys.argv[1], Path(sys.argv[2])
random = np.random.default_rng(0)

def events():
    status = StatusEvent(camera="door", state="online", since=datetime.now(UTC))
    with JsonLines(path) as file:
        for _ in range(20_000):
            file.publish(status)

def little():
    "Fits into the buffer, so that only closing fails."
    with JsonLines(path) as file:
        for _ in range(20):
            file.publish(StatusEvent(camera="door", state="online", since=datetime.now(UTC)))

def video():
    with VideoFile(path) as file:
        for number in range(60):
            file.write(random.integers(0, 255, (240, 320, 3), np.uint8), number / 25)

def end():
    "Only what is written last has no room."
    with VideoFile(path) as file:
        for number in range(10):
            file.write(random.integers(0, 255, (240, 320, 3), np.uint8), number / 25)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

def gallery():
    with Gallery(path) as opened:
        for number in range(2000):
            row = random.normal(size=512).astype(np.float32)
            opened.enrol(f"P{number}", [EnrolledLook("m", row / np.linalg.norm(row), "a.jpg", "h", 40.0)])
            print(number, flush=True)

def backup():
    with Gallery(Path(sys.argv[3])) as opened:
        opened.backup(path)

try:
    globals()[kind]()
except MienError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of its own that is soon full; only root can make one."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["full disk", "limited file"])
def full(request, tmp_path):
    """A folder in which files cannot grow, and what to run in the process that tries."""
    if request.param == "full disk":
        folder = request.getfixturevalue("small_disk") / tmp_path.name
        folder.mkdir()
        yield folder, None
        shutil.rmtree(folder)
    else:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))  # noqa: E731
        yield tmp_path, limit


def written(kind, path, *more, limit=None):
    command = [sys.executable, "-c", WRITES, kind, str(path), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit)


@pytest.mark.parametrize(("kind", "name"), [("events", "e.jsonl"), ("video", "v.mp4")])
def test_a_disk_that_fills_up_is_told_and_leaves_no_half_file(full, kind, name):
    folder, limit = full
    done = written(kind, folder / name, limit=limit)

    assert 1 == done.returncode
    assert f"error: {folder / name}: cannot be written to its end (" in done.stderr
    assert 1 == len(done.stderr.splitlines())
    assert [] == list(folder.iterdir())


def test_what_only_closing_fails_to_write_is_told_too(small_disk):
    blocker = small_disk / "blocker"
    with pytest.raises(OSError, match="No space"):
        blocker.write_bytes(bytes(2 * SMALL))
    try:
        done = written("little", small_disk / "e.jsonl")
        left = [each.name for each in small_disk.iterdir()]
    finally:
        blocker.unlink()

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "e.jsonl: cannot be written" in done.stderr
    assert ["blocker"] == left


def test_a_video_whose_end_cannot_be_written_leaves_the_good_one_of_before(tmp_path):
    target = tmp_path / "v.mp4"
    target.write_bytes(b"the good one")
    done = written("end", target)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr
    assert f"error: {target}: cannot be written to its end (" in done.stderr
    assert (b"the good one", [target]) == (target.read_bytes(), list(tmp_path.iterdir()))


def test_a_video_without_a_picture_is_told_and_leaves_the_good_one_of_before(tmp_path):
    target = tmp_path / "v.mp4"
    target.write_bytes(b"the good one")

    with pytest.raises(MienError, match=r"v\.mp4: there was no picture to write"), VideoFile(target):
        pass

    assert (b"the good one", [target]) == (target.read_bytes(), list(tmp_path.iterdir()))


def test_classify_tells_before_the_work_that_its_answer_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("daemon.classify.load_classifier", lambda *_: pytest.fail("it began to work"))
    image = ROOT / "samples/eileen_collins.jpg"

    result = CliRunner().invoke(app, ["classify", str(image), "--out", str(tmp_path / "file/a.json")])

    assert isinstance(result.exception, MienError)
    assert "file/a.json: cannot be written (" in str(result.exception)


def test_a_gallery_on_a_full_disk_keeps_whom_it_has(full):
    folder, limit = full
    done = written("gallery", folder / "gallery.sqlite", limit=limit)
    num_enrolled = len(done.stdout.split())

    assert 1 == done.returncode
    assert f"error: {folder / 'gallery.sqlite'}: the disk" in done.stderr
    with sqlite3.connect(f"file:{folder / 'gallery.sqlite'}?mode=ro", uri=True) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM people")}
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    assert {f"P{number}" for number in range(num_enrolled)} == names
    assert num_enrolled >= 1


def test_a_backup_that_does_not_fit_leaves_nothing(full, tmp_path):
    folder, limit = full
    source = tmp_path / "whole.sqlite"
    with Gallery(source) as gallery:
        row = np.eye(1, 512, dtype=np.float32)[0]
        gallery.enrol("Ann", [EnrolledLook("m", row, "a.jpg", f"h{number}", 40.0) for number in range(100)])
    done = written("backup", folder / "b.sqlite", source, limit=limit)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr
    assert "b.sqlite: cannot be written to its end" in done.stderr
    assert not [each for each in folder.iterdir() if "b.sqlite" in each.name]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", grey_levels(30), fps=25)


def camera(clip, name="door", **more):
    return {"name": name, "source": str(clip), "loop": True, **more}


def test_a_log_that_cannot_be_written_does_not_end_the_daemon(tmp_path, clip):
    with DaemonProcess(tmp_path, [camera(clip)], log_to="/dev/full") as daemon:
        daemon.until(lambda: len(daemon.of("door/faces")) > 20)
        assert 0 == daemon.end(signal.SIGTERM)
        daemon.until(lambda: "stopping" in daemon.states("_daemon"))


def test_lines_that_were_lost_are_told_once_there_is_room():
    class Disk:
        full, lines = True, []

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            self.lines.append(text)

        def flush(self):
            pass

    disk = Disk()
    stream = PatientStream(disk)
    for full in (True, True, False):
        disk.full = full
        stream.write("a line")

    assert ["a line"] == disk.lines
    assert {"event": "x", "lines_lost": 2} == stream.tell_of_losses(None, "info", {"event": "x"})


HOLDS = """
import sys
from pathlib import Path
from daemon.whole_file import whole_file

with whole_file(Path(sys.argv[1])) as part:
    part.write_text("theirs")
    print("writing", flush=True)
    input()
"""


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path):
    target = tmp_path / "[x] e.jsonl"
    dead = tmp_path / ".[x] e.jsonl.999999999.part"
    dead.write_text("of a process that was killed")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as other:
        other.stdout.readline()
        assert not dead.exists()
        with whole_file(target) as part:
            part.write_text("mine")
        other.communicate("\n", timeout=20)

    assert 0 == other.returncode
    assert ("theirs", [target]) == (target.read_text(), list(tmp_path.iterdir()))


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(MienError, match=r"file/e\.jsonl: cannot be written"),
        whole_file(tmp_path / "file/e.jsonl"),
    ):
        pass


def test_backups_and_restores_write_no_temporary_copies(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("a temporary copy of the gallery"))
    with Gallery(tmp_path / "g.sqlite") as gallery:
        content = gallery.content()
        assert 0 == gallery.restore_content(content, tmp_path / "x")


def test_a_pipe_is_written_to_itself(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    with whole_file(pipe) as file:
        file.write_text("told")

    assert b"told" == os.read(reader, 10) and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    link.symlink_to("/dev/null")
    with whole_file(link) as file:
        assert file == link
    assert link.is_symlink() and stat.S_ISCHR(Path("/dev/null").stat().st_mode)
