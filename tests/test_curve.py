"""Encrypted publishing over real sockets: who is on the list is served, who is not gets nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zmq
from structlog.testing import capture_logs
from typer.testing import CliRunner

from daemon.cli import app
from daemon.config import Config, load_config
from daemon.keys import ClientCurve, load_client, load_server, new_keys
from daemon.publisher import Publisher, open_publisher
from daemon.records import StatusEvent
from daemon.subscriber import AsyncSubscriber, Subscriber
from engines.errors import MienError, UsageError

ANY_PORT = "tcp://127.0.0.1:*"
MIEN = Path(sys.executable).with_name("mien")


def online(camera="door"):
    return StatusEvent(camera=camera, state="online", since=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def keys(tmp_path):
    """A folder with the keys of a daemon, a friend who is on the list `allowed`, and a stranger who is not."""
    for name in ("daemon", "friend", "stranger"):
        new_keys(name, tmp_path)
    allow(tmp_path, "friend")
    return tmp_path


def allow(keys, name):
    (keys / "allowed").mkdir(exist_ok=True)
    shutil.copy(keys / f"{name}.key", keys / "allowed")


def server(keys):
    return load_server(keys / "daemon.key_secret", keys / "allowed")


def client(keys, name):
    return load_client(keys / f"{name}.key_secret", keys / "daemon.key")


@pytest.fixture
def publisher(keys):
    with Publisher(ANY_PORT, instance="north", curve=server(keys)) as publisher:
        publisher.publish(online())
        yield publisher


def first_event(publisher, subscriber, wait_s=3.0):
    """What the subscriber hears while the publisher does its work, or None."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        publisher.answer_subscribers()
        if (received := subscriber.receive(timeout_s=0.02)) is not None:
            return received
    return None


def test_a_key_on_the_list_is_served(publisher, keys):
    with Subscriber(publisher.endpoint, curve=client(keys, "friend")) as friend:
        received = first_event(publisher, friend)

    assert ("door", "online", True) == (
        received.event["camera"],
        received.event["state"],
        received.event["resent"],
    )


def test_a_key_on_the_list_is_served_in_asyncio(publisher, keys):
    async def heard():
        async with AsyncSubscriber(publisher.endpoint, curve=client(keys, "friend")) as friend:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                publisher.answer_subscribers()
                if (received := await friend.receive(timeout_s=0.02)) is not None:
                    return received.event["state"]

    assert asyncio.run(heard()) == "online"


def test_a_stranger_gets_nothing_and_is_told_why(publisher, keys):
    with (
        capture_logs() as logs,
        Subscriber(publisher.endpoint, curve=client(keys, "stranger")) as stranger,
        pytest.raises(MienError, match=r"refused this key; .*allowed_clients"),
    ):
        first_event(publisher, stranger)

    assert ["subscriber_refused"] == [entry["event"] for entry in logs]
    assert logs[0]["public_key"].encode() == client(keys, "stranger").public
    assert publisher.num_subscriptions == 0


@pytest.mark.parametrize("who", ["in the clear", "with the wrong server's key", "with made-up keys"])
def test_whoever_lacks_the_right_keys_gets_nothing_from_a_plain_socket(publisher, keys, who):
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        friend = client(keys, "friend")
        if who == "with the wrong server's key":
            ClientCurve(friend.public, friend.secret, client(keys, "stranger").public).secure(socket)
        elif who == "with made-up keys":
            ClientCurve(*zmq.curve_keypair(), friend.server).secure(socket)
        socket.subscribe("")
        socket.connect(publisher.endpoint)
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            publisher.answer_subscribers()
            publisher.publish(online())

            assert not socket.poll(20)

    assert publisher.num_subscriptions == 0


def test_a_wrong_servers_key_is_told(publisher, keys, monkeypatch):
    monkeypatch.setattr("daemon.connection.MAX_HANG_UPS", 3)
    friend = client(keys, "friend")
    misled = ClientCurve(friend.public, friend.secret, client(keys, "stranger").public)

    with (
        Subscriber(publisher.endpoint, curve=misled) as subscriber,
        pytest.raises(MienError, match="hangs up on us each time; check that the server's key"),
    ):
        first_event(publisher, subscriber, wait_s=5)


def test_a_friend_is_served_while_strangers_knock(publisher, keys):
    strangers = [Subscriber(publisher.endpoint, curve=client(keys, "stranger")) for _ in range(20)]
    try:
        with Subscriber(publisher.endpoint, curve=client(keys, "friend")) as friend:
            received = first_event(publisher, friend)
    finally:
        for stranger in strangers:
            stranger.close()

    assert received.event["state"] == "online"


def test_a_key_added_or_taken_away_counts_at_the_next_connection(publisher, keys):
    allow(keys, "stranger")
    with Subscriber(publisher.endpoint, curve=client(keys, "stranger")) as friend:
        assert first_event(publisher, friend) is not None

    (keys / "allowed" / "stranger.key").unlink()
    with (
        Subscriber(publisher.endpoint, curve=client(keys, "stranger")) as stranger,
        pytest.raises(MienError, match="refused"),
    ):
        first_event(publisher, stranger)


def test_a_list_that_cannot_be_read_lets_nobody_in(publisher, keys):
    shutil.rmtree(keys / "allowed")

    with (
        capture_logs() as logs,
        Subscriber(publisher.endpoint, curve=client(keys, "friend")) as friend,
        pytest.raises(MienError, match="refused"),
    ):
        first_event(publisher, friend)
    assert "allow_list_not_read" in [entry["event"] for entry in logs]


@pytest.mark.parametrize("text", ["", "no key", "public-key", 'public-key = "short"', None])
def test_a_key_file_that_is_none_is_told_once_and_shuts_nobody_else_out(publisher, keys, text):
    broken = keys / "allowed" / "broken.key"
    broken.mkdir() if text is None else broken.write_text(text)

    with capture_logs() as logs:
        for _ in range(2):
            with Subscriber(publisher.endpoint, curve=client(keys, "friend")) as friend:
                assert first_event(publisher, friend) is not None

    assert ["allowed_key_not_read"] == [entry["event"] for entry in logs]
    assert str(broken) in logs[0]["detail"]


def test_a_damaged_key_file_lets_no_stranger_in(publisher, keys):
    (keys / "allowed" / "broken.key").write_text("no key")

    with (
        capture_logs() as logs,
        Subscriber(publisher.endpoint, curve=client(keys, "stranger")) as stranger,
        pytest.raises(MienError, match="refused"),
    ):
        first_event(publisher, stranger)
    assert ["allowed_key_not_read", "subscriber_refused"] == [entry["event"] for entry in logs]


def test_speaking_in_code_to_a_daemon_in_the_clear_is_told(keys):
    with (
        Publisher(ANY_PORT, instance="north") as publisher,
        Subscriber(publisher.endpoint, curve=client(keys, "friend")) as friend,
        # On a busy machine libzmq may not see in time why it was hung up on.
        pytest.raises(
            MienError, match=r"does not speak as we do|hangs up .* this daemon's, and that it has one"
        ),
    ):
        first_event(publisher, friend)


def test_a_bind_beyond_loopback_needs_keys_or_plain_words(keys):
    settings = {"endpoint": "tcp://0.0.0.0:*"}
    locked = {"server_key": keys / "daemon.key_secret", "allowed_clients": keys / "allowed"}

    with pytest.raises(UsageError, match=r"in the clear; .*server_key .*allow_plaintext_beyond_loopback"):
        open_publisher(Config.model_validate({"publish": settings}).publish, "north")
    for more in (locked, {"allow_plaintext_beyond_loopback": True}):
        with open_publisher(
            Config.model_validate({"publish": settings | more}).publish, "north"
        ) as publisher:
            assert publisher.endpoint.startswith("tcp://0.0.0.0:")


@pytest.mark.parametrize("key", ["server_key", "allowed_clients"])
def test_the_config_wants_both_or_neither(tmp_path, key):
    path = tmp_path / "config.yaml"
    path.write_text(f"publish: {{{key}: keys}}\n")

    with pytest.raises(UsageError, match=r"publish.allowed_clients: belongs together with server_key"):
        load_config(path)


def test_paths_of_keys_are_taken_from_the_configs_folder(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("publish: {server_key: keys/a.key_secret, allowed_clients: keys/allowed}\n")

    publish = load_config(path).publish

    assert (publish.server_key, publish.allowed_clients) == (
        tmp_path / "keys/a.key_secret",
        tmp_path / "keys/allowed",
    )


def test_keys_new_writes_both_files_for_their_owner_only(tmp_path):
    result = CliRunner().invoke(app, ["keys", "new", "laptop", "--folder", str(tmp_path / "k")])

    assert result.exit_code == 0
    files = sorted((tmp_path / "k").iterdir())
    assert ["laptop.key", "laptop.key_secret"] == [path.name for path in files]
    assert [0o600, 0o600] == [stat.S_IMODE(path.stat().st_mode) for path in files]
    assert b"secret-key" not in files[0].read_bytes()
    secret = load_client(files[1], files[0]).secret.decode()
    assert secret not in result.output


def test_keys_are_not_overwritten(tmp_path):
    new_keys("laptop", tmp_path)
    before = (tmp_path / "laptop.key_secret").read_bytes()

    with pytest.raises(MienError, match=r"laptop.key: exists already"):
        new_keys("laptop", tmp_path)
    assert before == (tmp_path / "laptop.key_secret").read_bytes()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\nb", "-x", "😀", '"', "a" * 65])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="no name for a key"):
        new_keys(name, tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_what_is_wrong_with_a_key_file_is_told_without_its_content(keys):
    secret = keys / "friend.key_secret"
    cases = {
        "damaged": secret.read_text().replace('secret-key = "', 'secret-key = "\x01'),
        "holds no CURVE key": "hello",
        "holds no secret key": (keys / "friend.key").read_text(),
    }
    value = client(keys, "friend").secret.decode()
    for words, text in cases.items():
        secret.write_text(text)
        with pytest.raises(UsageError, match=words) as raised:
            client(keys, "friend")
        assert value not in str(raised.value)


def test_a_secret_that_everybody_may_read_is_refused(keys):
    (keys / "friend.key_secret").chmod(0o644)

    with pytest.raises(UsageError, match="everybody may read it; chmod 600"):
        client(keys, "friend")


def test_a_missing_key_is_named_with_what_makes_one(tmp_path):
    with pytest.raises(UsageError, match=r"none.key_secret: .*mien keys new"):
        load_client(tmp_path / "none.key_secret", tmp_path / "none.key")


def test_one_half_of_a_clients_keys_is_not_enough(keys):
    with pytest.raises(UsageError, match="belong together"):
        load_client(keys / "friend.key_secret", None)


def test_no_secret_is_in_what_is_printed_of_keys(keys):
    for curve in (server(keys), client(keys, "friend")):
        assert curve.secret.decode() not in repr(curve)


def test_watch_reads_an_encrypted_daemon_and_says_what_it_lacks(publisher, keys):
    command = [MIEN, "watch", publisher.endpoint, "--jsonl", "--limit", "1"]

    def watched(name):
        named = ["--key", keys / f"{name}.key_secret", "--server-key", keys / "daemon.key"]
        process = subprocess.Popen(
            [*command, *named], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 15
        while process.poll() is None and time.monotonic() < until:
            publisher.answer_subscribers()
            time.sleep(0.01)
        process.kill()
        out, told = process.communicate()
        return process.returncode, out, told

    code, out, _ = watched("friend")
    assert (0, "online") == (code, json.loads(out)["state"])
    code, out, told = watched("stranger")
    assert (1, "") == (code, out)
    assert "refused this key" in told
    for name in ("friend", "stranger", "daemon"):
        assert load_client(keys / f"{name}.key_secret", keys / "daemon.key").secret.decode() not in out + told
