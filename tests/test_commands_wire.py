"""The commands `watch` and `config`, as a person calls them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import typer
import yaml
from typer.testing import CliRunner

from daemon.commands import config, relay, watch
from daemon.publisher import Publisher
from daemon.records import StatusEvent
from engines.errors import UsageError
from tests.clips import grey_levels, write_clip
from tests.wire import FakePipeline, config_of, running

SECRET = "cameras: [{name: door, source: 'rtsp://me:secret@host/1'}]\n"


def called(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def secret_config(tmp_path):
    path = tmp_path / "mien.yaml"
    path.write_text(SECRET)
    return path


def test_config_show_prints_yaml_without_secrets(secret_config):
    result = called(config.app, "show", secret_config)

    shown = yaml.safe_load(result.stdout)
    assert shown["cameras"][0]["source"] == "rtsp://***@host/1"
    assert shown["publish"]["heartbeat_s"] == 5.0
    assert "secret" not in result.output


def test_config_check_names_file_and_cameras(secret_config):
    result = called(config.app, "check", secret_config)

    assert (0, f"{secret_config}: in order; cameras: door\n") == (result.exit_code, result.output)


def test_watch_writes_events_as_json_lines(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(50), fps=50)
    app = typer.Typer()
    app.command()(watch.watch)
    camera = {"name": "door", "source": str(clip), "loop": True}

    with running(config_of(camera), FakePipeline()) as (daemon, _):
        result = called(app, daemon.service.publisher.endpoint, "--jsonl", "--limit", 5)

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert len(lines) == 5
    assert all(line["schema"].startswith("mien.") for line in lines)


def test_watch_shows_a_table_until_interrupted(tmp_path, monkeypatch):
    from rich.console import Console

    from daemon import watch as watching

    clip = write_clip(tmp_path / "clip.mp4", grey_levels(50), fps=50)
    shown = threading.Event()
    pages = []

    def interrupt_at_first_face(scene, endpoint):
        page = render(scene, endpoint)
        pages.append(page)
        if scene.people:
            shown.set()
            raise KeyboardInterrupt
        return page

    render = watching.render
    monkeypatch.setattr(watching, "render", interrupt_at_first_face)
    camera = {"name": "door", "source": str(clip), "loop": True}
    with running(config_of(camera), FakePipeline()) as (daemon, _), pytest.raises(KeyboardInterrupt):
        watching.watch(daemon.service.publisher.endpoint, Console(quiet=True))

    assert shown.is_set()


@pytest.mark.parametrize("bound", ["tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*"])
def test_watch_finds_a_daemon_that_is_bound_to_every_address(tmp_path, bound):
    path = tmp_path / "mien.yaml"
    app = typer.Typer()
    app.command()(watch.watch)
    with Publisher(bound, instance="north", allow_plaintext_beyond_loopback=True) as publisher:
        port = publisher.endpoint.rpartition(":")[2]
        path.write_text(f"publish: {{endpoint: '{bound.removesuffix('*')}{port}'}}\n")
        publisher.publish(StatusEvent(camera="door", state="online", since=datetime(2026, 1, 1, tzinfo=UTC)))
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(called, app, "--config", path, "--jsonl", "--limit", 1)
            until = time.monotonic() + 10
            while not told.done() and time.monotonic() < until:
                publisher.answer_subscribers()
                time.sleep(0.01)

    assert ("online", 0) == (json.loads(told.result().stdout)["state"], told.result().exit_code)


def test_watch_on_an_encrypted_daemon_asks_for_a_key(tmp_path):
    config = tmp_path / "mien.yaml"
    config.write_text("publish: {server_key: a.key_secret, allowed_clients: keys}\n")
    app = typer.Typer()
    app.command()(watch.watch)

    result = called(app, "--config", config)

    assert isinstance(result.exception, UsageError)
    assert "is encrypted; give --key" in str(result.exception)


def test_relay_wants_a_key_for_each_upstream_or_one_for_all(tmp_path):
    app = typer.Typer()
    app.command()(relay.relay)
    keys = ("--upstream-key", "a", "--upstream-key", "b", "--upstream-key", "c")

    result = called(app, "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", *keys)

    assert isinstance(result.exception, UsageError)
    assert "as many as there are endpoints" in str(result.exception)
