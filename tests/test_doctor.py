from __future__ import annotations

import socket

import pytest

from daemon import doctor
from daemon.config import Config
from daemon.doctor import Finding, examine
from daemon.keys import new_keys
from daemon.publisher import Publisher
from engines import machine
from tests.clips import grey_levels, write_clip
from tests.processes import child

SIZES = {"door": (640, 384), "yard": (1280, 736)}


def findings_of(text, tmp_path):
    path = tmp_path / "mien.yaml"
    path.write_text(text)
    return {finding.subject: finding for finding in examine(path)}


def test_a_sound_set_up_has_nothing_wrong(tmp_path):
    write_clip(tmp_path / "clip.mp4", grey_levels(3))

    found = findings_of("cameras: [{name: door, source: clip.mp4}]\n", tmp_path)

    assert [each for each in found.values() if each.verdict == "wrong"] == []
    assert {"python", "openvino", "decoders", "config", "endpoint", "gallery", "camera door"} <= set(found)


def test_a_wrong_config_is_told_and_the_rest_is_still_looked_at(tmp_path):
    found = findings_of("instanze: x\n", tmp_path)

    assert "did you mean `instance`" in found["config"].found
    assert found["python"].verdict == "ok"


def test_a_source_that_is_missing_is_wrong_and_a_note_where_it_is_switched_off(tmp_path):
    found = findings_of(
        "cameras:\n  - {name: a, source: none.mp4}\n  - {name: b, source: none.mp4, enabled: false}\n",
        tmp_path,
    )

    assert (found["camera a"].verdict, found["camera b"].verdict) == ("wrong", "note")


def test_a_live_source_is_named_without_its_password(tmp_path):
    found = findings_of("cameras: [{name: a, source: 'rtsp://me:secret@127.0.0.1:9/1'}]\n", tmp_path)

    assert Finding("camera a", "ok", "live, not tried") == found["camera a"]
    assert "secret" not in str(found)


def test_engines_that_are_not_built_are_noted_for_every_detector_size(tmp_path):
    cameras = [{"name": name, "source": "0", "detector_size": size} for name, size in SIZES.items()]
    config = Config.model_validate({"cameras": cameras, "engines": {"cache_dir": str(tmp_path)}})

    found = [finding for finding in doctor.engines(config) if finding.subject == "engine detector"]

    assert [finding.verdict for finding in found] == ["note", "note"]
    assert ["640x384" in found[0].found, "1280x736" in found[1].found] == [True, True]
    assert "not built yet" in found[0].found


def test_an_endpoint_in_use_is_noted():
    with Publisher("tcp://127.0.0.1:*", instance="north") as publisher:
        found = doctor.endpoint(Config.model_validate({"publish": {"endpoint": publisher.endpoint}}))

    assert found.verdict == "note"


@pytest.mark.parametrize(
    ("endpoint", "verdict", "words"),
    [
        ("tcp://[::1]:*", "ok", "is free"),
        ("tcp://127.0.0.1:port", "wrong", "cannot be bound"),
        ("tcp://192.0.2.1:5600", "wrong", "this machine has no such address"),
    ],
)
def test_an_endpoint_is_tried_as_the_daemon_will_bind_it(endpoint, verdict, words):
    publish = {"endpoint": endpoint, "allow_plaintext_beyond_loopback": True}

    found = doctor.endpoint(Config.model_validate({"publish": publish}))

    assert (verdict, True) == (found.verdict, words in found.found)


def test_an_endpoint_open_to_the_network_is_wrong():
    found = doctor.endpoint(Config.model_validate({"publish": {"endpoint": "tcp://0.0.0.0:5600"}}))

    assert found.verdict == "wrong"


def test_an_encrypted_endpoint_may_be_open_to_the_network(tmp_path):
    new_keys("daemon", tmp_path)
    publish = {"endpoint": "tcp://0.0.0.0:*", "allowed_clients": tmp_path}
    publish["server_key"] = tmp_path / "daemon.key_secret"

    assert "encrypted" in doctor.endpoint(Config.model_validate({"publish": publish})).found

    (tmp_path / "daemon.key_secret").chmod(0o644)
    found = doctor.endpoint(Config.model_validate({"publish": publish}))
    assert ("wrong", True) == (found.verdict, "everybody may read it" in found.found)


def test_a_metrics_port_in_use_is_noted_and_a_foreign_address_is_wrong():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = doctor.metrics(Config.model_validate({"metrics": {"port": port}}))
    free = doctor.metrics(Config.model_validate({"metrics": {"port": port}}))
    foreign = doctor.metrics(Config.model_validate({"metrics": {"host": "192.0.2.1"}}))
    off = doctor.metrics(Config.model_validate({"metrics": {"port": 0}}))

    assert ["note", "ok", "wrong", "ok"] == [each.verdict for each in (taken, free, foreign, off)]


def test_metrics_may_be_served_on_ipv6():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        taken = doctor.metrics(Config.model_validate({"metrics": {"host": "::1", "port": port}}))
    free = doctor.metrics(Config.model_validate({"metrics": {"host": "::1", "port": port}}))

    assert ["note", "ok"] == [taken.verdict, free.verdict]


def test_a_gallery_others_can_read_is_noted(tmp_path):
    path = tmp_path / "gallery.sqlite"
    path.touch()
    path.chmod(0o644)

    found = doctor.gallery(Config.model_validate({"gallery": {"path": str(path)}}))

    assert ("note", f"chmod 600 {path}") == (found.verdict, found.remedy)


def test_a_missing_library_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))

    assert [finding.verdict for finding in doctor.packages()] == ["wrong"]


def test_gpus_are_named_by_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Test, 600.1, 8192 MiB, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert next(doctor.gpu()).found == "NVIDIA Test, 600.1, 8192 MiB, 9.0"


@pytest.mark.skipif(machine.torch_cuda() is None, reason="the installed torch is built without CUDA")
def test_a_gpu_is_named_and_judged_where_the_drivers_tool_is_not_installed(driver):
    result = child(
        "from daemon import doctor; print(*doctor.gpu(), sep='\\n')",
        PATH="",
        LD_LIBRARY_PATH=driver,
        FAKE_CUDA=11040,
        FAKE_GPUS=1,
    )

    found, judged = result.stdout.splitlines()[:2]
    assert "found='Fake GPU (sm_90), 8192 MiB'" in found
    assert "torch cannot use the GPU" in judged and "driver is too old" in judged


def test_a_gpu_driver_that_fails_is_noted(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert [finding.verdict for finding in doctor.gpu()] == ["note"]


def test_a_gpu_driver_that_hangs_is_noted(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "DRIVER_S", 0.2)

    (found,) = doctor.gpu()

    assert ("note", "nvidia-smi does not answer") == (found.verdict, found.found)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
