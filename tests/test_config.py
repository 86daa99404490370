from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from daemon.config import MAX_HEARTBEAT_S, CameraConfig, Config, load_config, shown
from daemon.relay import FORGET_AFTER_S
from daemon.secrecy import redact_source, redact_url
from engines.errors import UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mien.yaml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path) -> list[str]:
    with pytest.raises(UsageError) as raised:
        load_config(path)
    assert raised.value.exit_code == 2
    return str(raised.value).splitlines()


def test_shipped_config_is_in_order_and_names_a_source_beside_it():
    config = load_config(ROOT / "config.yaml")

    assert [str(ROOT / "samples/two_people.mp4")] == [camera.source for camera in config.cameras]


def test_shipped_config_shows_every_key():
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())

    assert set(Config.model_fields) == set(shipped)
    assert set(CameraConfig.model_fields) == set(shipped["cameras"][0])
    for name in ("engines", "tracking", "identity", "quality", "attributes", "publish", "gallery", "log"):
        assert set(type(getattr(Config(), name)).model_fields) == set(shipped[name]), name


def test_shipped_config_tells_the_defaults():
    shipped = load_config(ROOT / "config.yaml").model_dump(exclude={"cameras", "gallery"})

    assert Config().model_dump(exclude={"cameras", "gallery"}) == shipped


def test_every_mistake_is_told_at_once_with_file_key_and_nearest_key(written):
    path = written(
        "cameras:\n"
        "  - {name: door, source: 0, detector_siz: [640, 384]}\n"
        "  - {name: 'a b', source: x.mp4, rotate: 45}\n"
        "publsh: {}\n"
        "identity: {threshold: high}\n"
    )

    found = mistakes(path)

    assert all(line.startswith(f"{path}: ") for line in found)
    assert "cameras[0].detector_siz: unknown key; did you mean `detector_size`?" in found[0]
    assert "cameras[1].name: " in found[1]
    assert "cameras[1].rotate: " in found[2]
    assert "identity.threshold: " in found[3]
    assert "publsh: unknown key; did you mean `publish`?" in found[4]


def test_a_key_that_was_renamed_says_what_it_is_now(written):
    path = written(
        "cameras:\n  - {name: door, source: 0}\nservice: {max_batch: 8}\nengines: {max_batch: 8}\n"
    )

    (line,) = mistakes(path)

    assert f"{path}: service.max_batch: is now `frames_at_once`" in line


def test_two_cameras_of_one_name_are_refused(written):
    path = written("cameras:\n  - {name: door, source: 0}\n  - {name: door, source: 1}\n")

    assert [f"{path}: cameras: two cameras are named 'door'; give each its own name"] == mistakes(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance: a\ninstance: b\n", "line 2: the key 'instance' is there twice"),
        ("cameras: [\n", "line 2"),
        ("- 1\n- 2\n", "not sections"),
        ("log: 3\n", "log: must be a section"),
        ("cameras:\n  - {name: door}\n", "cameras[0].source: missing"),
        ("cameras:\n  - {name: a, source: x, detector_size: [641, 384]}\n", "multiple of 32, such as 640"),
        ("cameras:\n  - {name: _daemon, source: x}\n", "cameras[0].name"),
        ("publish: {endpoint: localhost}\n", "publish.endpoint"),
        ("cameras:\n  - name: door\n    source: {{ rtsp_url }}\n", "line 3: a key is a list or a mapping"),
        ("log: {}\ninstance: 2024-02-30\n", "line 2: no such date or number; put it in quotes"),
        ("instance: !!int north\n", "line 1: no such date or number"),
        ("publish: {heartbeat_s: 300}\n", "publish.heartbeat_s: must be at most 30, or relays would"),
        ("identity: {max_votes: 2}\n", "identity.max_votes: is less than identity.min_votes"),
        ("identity: {min_votes: 31}\n", "identity.max_votes: is less than identity.min_votes"),
    ],
)
def test_a_mistake_is_one_line(written, text, words):
    found = mistakes(written(text))

    assert len(found) == 1
    assert words in found[0]


def test_missing_file_is_named(tmp_path):
    assert "no such file" in mistakes(tmp_path / "none.yaml")[0]


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")

    assert "not a UTF-8 text file" in mistakes(path)[0]


def test_a_mistake_in_a_camera_does_not_tell_its_password(written):
    found = mistakes(written("cameras:\n  - {name: a, source: 'rtsp://me:secret@h/1', rotate: 7}\n"))

    assert "secret" not in "".join(found)


def test_relative_paths_are_taken_from_the_files_folder(written):
    path = written(
        "cameras:\n  - {name: a, source: clip.mp4}\n  - {name: b, source: 0}\n"
        "  - {name: c, source: 'http://h/x'}\ngallery: {path: people.sqlite}\n"
    )

    config = load_config(path)

    assert [str(path.parent / "clip.mp4"), "0", "http://h/x"] == [camera.source for camera in config.cameras]
    assert path.parent / "people.sqlite" == config.gallery.path


def test_paths_of_own_models_are_taken_from_the_files_folder_too(written):
    keys = ("cache_dir", "detector", "landmarks", "embedder", "attributes")
    path = written(f"engines: {{{', '.join(f'{key}: own/{key}' for key in keys)}}}\n")

    engines = load_config(path).engines

    assert [path.parent / "own" / key for key in keys] == [getattr(engines, key) for key in keys]


@pytest.mark.parametrize(
    ("endpoint", "meant"),
    [
        ("ipc://run/mien.ipc", "ipc://{folder}/run/mien.ipc"),
        ("ipc:///run/mien.ipc", "ipc:///run/mien.ipc"),
        ("ipc://@mien", "ipc://@mien"),
        ("ipc://*", "ipc://*"),
        ("tcp://127.0.0.1:5600", "tcp://127.0.0.1:5600"),
    ],
)
def test_a_relative_ipc_endpoint_is_taken_from_the_files_folder_too(written, endpoint, meant):
    path = written(f"publish: {{endpoint: '{endpoint}'}}\n")

    assert meant.format(folder=path.parent) == load_config(path).publish.endpoint


def test_a_relay_misses_a_heartbeat_before_it_forgets_a_daemon():
    assert FORGET_AFTER_S >= 2 * MAX_HEARTBEAT_S


def test_environment_names_the_config(written, monkeypatch):
    monkeypatch.setenv("MIEN_CONFIG", str(written("instance: north\n")))

    assert load_config().instance == "north"


def test_without_a_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIEN_CONFIG", raising=False)

    assert Config() == load_config()


def test_sections_are_frozen():
    with pytest.raises(ValidationError):
        Config().instance = "other"


def test_passwords_are_neither_shown_nor_in_a_repr(written):
    config = load_config(written("cameras:\n  - {name: a, source: 'rtsp://me:secret@host/1'}\n"))

    assert shown(config)["cameras"][0]["source"] == "rtsp://***@host/1"
    assert "secret" not in repr(config)
    assert config.cameras[0].source == "rtsp://me:secret@host/1"


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("rtsp://host/1", "rtsp://host/1"),
        ("rtsp://me@host/1", "rtsp://***@host/1"),
        ("rtsp://me:p@ss/w@host:554/1", "rtsp://***@host:554/1"),
        ("http://h/v?user=me&pwd=x&fps=5", "http://h/v?user=***&pwd=***&fps=5"),
        ("http://h/v?usr=me&pw=x&fps=5", "http://h/v?usr=***&pw=***&fps=5"),
        ("http://h/v?loginuse=me&psw=x", "http://h/v?loginuse=***&psw=***"),
        ("http://h/v?u=me&p=x&fps=5", "http://h/v?u=***&p=***&fps=5"),
        ("http://h/v?access_token=abc", "http://h/v?access_token=***"),
        ("failed: rtsp://a:b@h/1 (timed out)", "failed: rtsp://***@h/1 (timed out)"),
        ("/videos/clip.mp4", "/videos/clip.mp4"),
        ("rtsp://admin:it's@cam/1", "rtsp://***@cam/1"),
        ("rtsp://admin:<it>@cam/1", "rtsp://***@cam/1"),
        (
            "rtsp://ip:554/user=admin_password=tlJ_wp_channel=1_stream=0.sdp",
            "rtsp://ip:554/user=***_channel=1_stream=0.sdp",
        ),
        ("rtsp://ip/user=admin&password=&channel=1", "rtsp://ip/user=***"),
        ('{"a": "rtsp://a:b@h/1", "b": "c@d"}', '{"a": "rtsp://***@h/1", "b": "c@d"}'),
    ],
)
def test_credentials_are_hidden_in_any_text(url, hidden):
    assert hidden == redact_url(url)


@pytest.mark.parametrize(
    ("source", "hidden"),
    [
        ('rtsp://me:a "quoted" word@host/1', "rtsp://***@host/1"),
        ("rtsp://host/1", "rtsp://host/1"),
        ("/videos/at@home.mp4", "/videos/at@home.mp4"),
        ("http://h/v?pwd=x", "http://h/v?pwd=***"),
    ],
)
def test_credentials_of_a_source_are_hidden_whatever_they_hold(source, hidden):
    assert hidden == redact_source(source)
