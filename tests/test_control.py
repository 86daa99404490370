"""The control socket and SIGHUP, on a daemon that runs as a process of its own."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config import Config
from daemon.control import ControlServer
from daemon.control_client import Control, NoDaemonError, connected
from daemon.control_requests import (
    CameraAdd,
    CameraRemove,
    CameraRestart,
    GalleryEnrol,
    LookRecord,
    Reload,
    Status,
)
from engines.errors import MienError, UsageError
from tests.clips import grey_levels, write_clip
from tests.processes import MIEN, DaemonProcess


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", grey_levels(30), fps=25)


def camera(clip, name="door", **more):
    return {"name": name, "source": str(clip), "loop": True, **more}


@pytest.fixture
def daemon(clip, tmp_path):
    with DaemonProcess(tmp_path, [camera(clip, "door"), camera(clip, "yard")]) as running:
        running.until(lambda: running.of("door/faces") and running.of("yard/faces"))
        yield running


@pytest.fixture(scope="module")
def shared(clip, tmp_path_factory):
    """A daemon for the tests that leave it as it is."""
    with DaemonProcess(tmp_path_factory.mktemp("shared"), [camera(clip, "door"), camera(clip, "yard")]) as it:
        it.until(lambda: it.of("door/faces") and it.of("yard/faces"))
        yield it


def has_gone_on(daemon, name):
    """Its events follow one another without a gap, a new epoch, a new connection or a track's end."""
    faces, states = daemon.of(f"{name}/faces"), daemon.states(name)
    seqs = [event["seq"] for event in faces]
    return (
        all(b - a == 1 for a, b in pairwise(seqs))
        and 1 == len({event["epoch"] for event in faces})
        and set(states) <= {"connecting", "online"}
        and not daemon.of(f"{name}/track")
    )


def test_status_tells_what_became_of_every_frame(shared):
    status = shared.ask(Status())

    assert (status["instance"], status["pid"]) == ("mien", shared.process.pid)
    assert [each["state"] for each in status["cameras"]] == ["online", "online"]
    for each in status["cameras"]:
        assert each["frames_in"] == each["taken"] + sum(each["dropped"].values()) + each["waiting"]
    assert status["frames_in"] > 0


def test_the_command_shows_a_table_or_json(shared):
    run = [MIEN, "ctl", "status", "--config", shared.config]
    table = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    found = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True).stdout

    assert "door" in table and "online" in table
    assert ["door", "yard"] == [each["name"] for each in json.loads(found)["cameras"]]


@pytest.mark.parametrize("way", ["signal", "command"])
def test_a_reload_adds_and_removes_cameras_and_leaves_the_others_alone(daemon, clip, way):
    daemon.configure([camera(clip, "door"), camera(clip, "gate")])
    if way == "signal":
        daemon.process.send_signal(signal.SIGHUP)
    else:
        run = [MIEN, "ctl", "reload", "--config", daemon.config]
        told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert "added: gate\nremoved: yard\n" == told
    since = daemon.until(lambda: daemon.of("gate/faces") and "ended" in daemon.states("yard")) and len(
        daemon.events
    )
    daemon.until(lambda: len(daemon.of("door/faces", since=since)) >= 5)

    assert has_gone_on(daemon, "door")
    assert not daemon.of("yard/faces", since=since)
    assert ["left"] == [event["phase"] for event in daemon.of("yard/track")]


def test_a_changed_camera_goes_on_counting_and_the_others_do_not_notice(daemon, clip):
    daemon.configure([camera(clip, "door"), camera(clip, "yard", rotate=90)])
    changes = daemon.ask(Reload())
    daemon.until(lambda: [e for e in daemon.of("yard/faces") if e["frame"]["width"] == 48])

    faces = daemon.of("yard/faces")
    assert ["yard"] == changes["restarted"] and not changes["needs_restart"]
    assert all(b["seq"] - a["seq"] == 1 for a, b in pairwise(faces))
    assert all(b["frame"]["index"] > a["frame"]["index"] for a, b in pairwise(faces))
    assert ["left"] == [event["phase"] for event in daemon.of("yard/track")]
    assert has_gone_on(daemon, "door")


def test_settings_of_the_pipeline_change_without_a_new_connection(daemon, clip):
    daemon.configure([camera(clip, "door"), camera(clip, "yard", min_face_px=40, roi=[0, 0, 1, 0.5])])
    changes = daemon.ask(Reload())
    since = len(daemon.events)
    daemon.until(lambda: len(daemon.of("yard/faces", since=since)) >= 5)

    assert (["yard"], []) == (changes["changed"], changes["restarted"])
    assert has_gone_on(daemon, "yard")


def test_a_wrong_configuration_is_refused_in_words_and_the_old_one_goes_on(daemon, clip):
    daemon.configure([camera(clip, "door", max_fps=-1), camera(clip, "door"), {"name": "x", "sorce": "s"}])

    with pytest.raises(UsageError) as raised:
        daemon.ask(Reload())
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: daemon.log().count("reload_refused") == 2)

    words = str(raised.value)
    assert all(each in words for each in ("max_fps", "two cameras are named 'door'", "did you mean `source`"))
    assert "Traceback" not in daemon.log()
    since = len(daemon.events)
    daemon.until(lambda: daemon.of("door/faces", since=since) and daemon.of("yard/faces", since=since))
    assert has_gone_on(daemon, "door") and has_gone_on(daemon, "yard")


def test_a_reload_whose_new_camera_cannot_be_read_changes_nothing(daemon, clip):
    daemon.configure([camera(clip, "door"), camera("/nowhere/clip.mp4", "gate")])

    with pytest.raises(UsageError, match=r"camera gate: .*no such file"):
        daemon.ask(Reload())
    assert ["door", "yard"] == [each["name"] for each in daemon.ask(Status())["cameras"]]


def test_what_only_a_new_start_can_change_is_named(daemon, clip):
    daemon.configure([camera(clip, "door"), camera(clip, "yard")], instance="other", tracking={"min_hits": 5})

    assert ["instance", "tracking"] == daemon.ask(Reload())["needs_restart"]


def test_cameras_are_added_removed_and_restarted_by_hand(daemon, clip):
    daemon.ask(CameraAdd({"name": "gate", "source": str(clip), "loop": True}))
    daemon.until(lambda: daemon.of("gate/faces"))
    daemon.ask(CameraRestart("gate"))
    daemon.until(lambda: daemon.states("gate").count("online") == 2)
    daemon.ask(CameraRemove("gate"))
    daemon.until(lambda: "ended" in daemon.states("gate"))

    assert has_gone_on(daemon, "door")
    assert ["door", "yard"] == [each["name"] for each in daemon.ask(Status())["cameras"]]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (CameraAdd({"name": "../etc", "source": "0"}), "name: string should match"),
        (CameraAdd({"name": "a\nb", "source": "0"}), "name: string should match"),
        (CameraAdd({"name": "gate"}), "source: field required"),
        (CameraAdd({"name": "gate", "source": "rtsp://a:secret@h/1", "rotate": 3}), "rotate: "),
        (CameraAdd({"name": "door", "source": "0"}), "there already"),
        (CameraAdd({"name": "gate", "source": "0", "enabled": False}), "enabled is false"),
        (CameraRemove("🙂'; DROP TABLE people; --"), "no camera is called"),
        (CameraRestart("nobody"), "no camera is called 'nobody'; there are: door, yard"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(shared, request_, words):
    with pytest.raises(UsageError, match=words) as raised:
        shared.ask(request_)
    assert "secret" not in str(raised.value) + shared.log()


def test_credentials_of_an_added_camera_are_never_shown(daemon):
    source = "rtsp://me:secret@127.0.0.1:9/1"
    run = [MIEN, "ctl", "camera", "add", "gate", "-", "--config", daemon.config, "--set", "max_fps=5"]
    subprocess.run(run, input=source + "\n", text=True, check=True, capture_output=True)
    daemon.until(lambda: "reconnecting" in daemon.states("gate"))

    (gate,) = [each for each in daemon.ask(Status())["cameras"] if each["name"] == "gate"]
    assert "rtsp://***@127.0.0.1:9/1" == gate["source"]
    assert "secret" not in daemon.log() + json.dumps(daemon.events)


def test_only_the_owner_may_use_the_socket(shared):
    assert 0o600 == stat.S_IMODE(shared.control_path.stat().st_mode)
    assert shared.control_path.is_socket()


def test_the_socket_goes_with_the_daemon(daemon):
    assert 0 == daemon.end(signal.SIGTERM)
    assert not daemon.control_path.exists()


def test_the_socket_of_a_daemon_that_was_killed_is_taken_over(tmp_path):
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with ControlServer(path, lambda request: "here"), Control(path) as control:
        assert "here" == control.ask(Status())
    assert not path.exists()


def test_a_socket_that_is_in_use_is_left_alone(tmp_path):
    path = tmp_path / "c.sock"
    with ControlServer(path, lambda request: "first"):
        with pytest.raises(MienError, match="another daemon answers there"):
            ControlServer(path, lambda request: "second")
        with Control(path) as control:
            assert "first" == control.ask(Status())


def test_without_a_daemon_the_command_says_what_to_do(tmp_path):
    config = Config.model_validate({"control": {"path": str(tmp_path / "none.sock")}})

    with pytest.raises(NoDaemonError, match="no daemon answers there; start it with `mien run`"):
        connected(config)


@pytest.mark.parametrize(
    "request_",
    [Reload(), CameraAdd({}), CameraRemove("yard"), CameraRestart("yard")],
    ids=lambda each: str(each),
)
def test_what_may_build_engines_is_waited_for(tmp_path, monkeypatch, request_):
    monkeypatch.setattr("daemon.control_client.PATIENCE_S", 0.1)

    def slow(_):
        time.sleep(0.5)
        return "done"

    with ControlServer(tmp_path / "c.sock", slow), Control(tmp_path / "c.sock") as control:
        assert "done" == control.ask(request_)


def test_a_daemon_that_gives_no_answer_is_not_called_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.control_client.PATIENCE_S", 0.1)

    with (
        ControlServer(tmp_path / "c.sock", lambda _: time.sleep(0.5)),
        Control(tmp_path / "c.sock") as control,
        pytest.raises(MienError, match=r"no answer in 0\.1 s; the daemon is busy or hangs"),
    ):
        control.ask(Status())


def test_a_group_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MienError, match=r"control\.group"):
        ControlServer(tmp_path / "c.sock", lambda request: None, "no-such-group")


def test_a_socket_that_its_group_cannot_be_given_leaves_nothing_behind(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)  # as a system call filter does
    with pytest.raises(MienError, match=r"control\.group"):
        ControlServer(tmp_path / "c.sock", lambda request: None, grp.getgrgid(os.getgid()).gr_name)

    assert [] == list(tmp_path.iterdir())


def test_a_group_may_be_given_the_socket(tmp_path):
    group = grp.getgrgid(os.getgid()).gr_name
    with ControlServer(tmp_path / "c.sock", lambda request: None, group):
        assert 0o660 == stat.S_IMODE((tmp_path / "c.sock").stat().st_mode)


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    path = tmp_path_factory.mktemp("echo") / "c.sock"
    with ControlServer(path, lambda request: "heard"):
        yield path


def exchange(path: Path, content: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(content + b"\n")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
NUM_CASES = int(os.environ.get("MIEN_FUZZ_CASES", "150"))
WORDS = st.sampled_from(["status", "reload", "camera_add", "camera_remove", "gallery_enrol", "nothing"])


@settings(max_examples=NUM_CASES, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.fixed_dictionaries({"do": WORDS, "name": JSON}).map(msgspec.json.encode)
)
def test_whatever_comes_in_is_answered_with_one_line_each(echo, content):
    answers = exchange(echo, content).splitlines()

    assert len(answers) == (content + b"\n").count(b"\n")
    for answer in answers:
        told = json.loads(answer)
        assert told["ok"] or told["error"]


def test_deep_and_endless_requests_end_in_words(echo):
    assert b"not a request" in exchange(echo, b"[" * 100_000)
    assert b'"ok":true' in exchange(echo, b'{"do":"status"}')


def test_many_clients_that_say_nothing_do_not_keep_others_out_for_ever(echo):
    idle = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for each in idle:
        each.connect(str(echo))
    for each in idle:
        each.close()

    answer, given_up = None, time.monotonic() + 20
    while answer is None and time.monotonic() < given_up:
        with suppress(MienError), Control(echo) as control:
            answer = control.ask(Status())
    assert answer == "heard"


def test_embeddings_that_are_none_do_not_get_into_the_gallery(shared):
    bad = [b"", b"abc", b"\0" * 8, b"\xff" * 8]
    for content in bad:
        look = LookRecord("embedder@1", content, "a.jpg", "hash", 40.0)
        with pytest.raises(UsageError, match="its embedding is no"):
            shared.ask(GalleryEnrol("Ann", [look]))
    assert 0 == shared.ask(Status())["people"]
