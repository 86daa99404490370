"""Folders that may not be searched: told in one line wherever Mien looks into them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import cli, doctor
from daemon.config import Config, find_config
from daemon.control_client import NoDaemonError, connected
from daemon.gallery import Gallery, NoGalleryError
from daemon.images import expand_images, list_images, read_image
from daemon.metrics import gallery_size
from daemon.paths import stat_of
from daemon.replay import num_frames, replay_cameras
from daemon.settings import camera_template
from daemon.sources import check_source, source_kind
from engines.errors import MienError

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Within, root has no more rights than anybody; Python can import nothing of root's then."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked():
    """A folder without rights in one that may be searched, as pytest's own may not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "locked"
        (folder / "in").mkdir(parents=True)
        folder.parent.chmod(0o711)
        folder.chmod(0)
        yield folder
        folder.chmod(0o700)


def frames_of(path: Path) -> int:
    (camera,) = replay_cameras([path], camera_template(speed="max"))
    return num_frames(camera)


@pytest.mark.parametrize(
    ("attempt", "name"),
    [
        (stat_of, "x"),
        (lambda path: check_source(str(path)), "x.mp4"),
        (frames_of, "x.mp4"),
        (lambda path: Gallery(path, create=False), "g.sqlite"),
        (read_image, "x.jpg"),
        (list_images, "in"),
        (list_images, "."),
        (lambda path: list(expand_images([path])), "."),
    ],
)
def test_what_lies_in_a_locked_folder_is_told_in_one_line(locked, attempt, name):
    with as_nobody(), pytest.raises(MienError) as raised:
        attempt(locked / name)

    assert not isinstance(raised.value, NoGalleryError)
    assert str(raised.value).startswith(f"{locked / name}: ")
    assert "(Permission denied); check" in str(raised.value)
    assert 1 == len(str(raised.value).splitlines())


def test_an_image_in_a_locked_folder_is_kept_to_be_reported(locked):
    with as_nobody():
        assert [locked / "x.jpg"] == list(expand_images([locked / "x.jpg"]))


def test_a_source_in_a_locked_folder_is_a_video_until_it_is_opened(locked):
    with as_nobody():
        assert "video" == source_kind(str(locked / "in"))


def test_a_socket_in_a_locked_folder_names_who_may_use_it(locked):
    config = Config.model_validate({"control": {"path": str(locked / "mien.sock")}})

    with as_nobody(), pytest.raises(NoDaemonError, match=r"mien\.sock: may not be used; run as root"):
        connected(config)


def test_a_socket_that_may_not_be_used_says_more_than_one_that_is_not_there(locked, monkeypatch):
    monkeypatch.setattr("daemon.control_client.default_paths", lambda _: [locked.parent / "none.sock"])
    monkeypatch.setattr("daemon.control_client.SERVICE_FOLDER", locked)

    with as_nobody(), pytest.raises(NoDaemonError, match="may not be used; run as root"):
        connected(Config())


def test_the_doctor_goes_on_past_a_gallery_in_a_locked_folder(locked):
    config = Config.model_validate({"gallery": {"path": str(locked / "g.sqlite")}})

    with as_nobody():
        found = doctor.gallery(config)

    assert "wrong" == found.verdict
    assert f"{locked / 'g.sqlite'}: cannot be reached (Permission denied)" in found.found


def test_metrics_do_not_call_a_gallery_in_a_locked_folder_empty(locked):
    with as_nobody():
        assert gallery_size(locked / "g.sqlite") is None


def test_a_working_folder_that_is_locked_is_told_when_a_config_is_looked_for(locked, monkeypatch):
    monkeypatch.delenv("MIEN_CONFIG", raising=False)
    monkeypatch.chdir(locked)

    with as_nobody(), pytest.raises(MienError, match=r"^config\.yaml: cannot be reached"):
        find_config()


def test_a_command_in_a_folder_that_may_not_be_searched_says_so_in_one_line(locked, monkeypatch, capsys):
    from daemon.commands import keys  # now: its modules cannot be imported without rights

    assert keys
    monkeypatch.setattr("sys.argv", ["mien", "keys", "new", "me", "--folder", str(locked / "in")])

    with as_nobody(), pytest.raises(SystemExit) as left:
        cli.main()

    assert 1 == left.value.code
    assert f"error: {locked}/in/me.key: Permission denied; check" in capsys.readouterr().err
