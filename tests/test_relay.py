"""Many daemons behind one endpoint, over real sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import zmq
from structlog.testing import capture_logs

from daemon.keys import load_client, load_server, new_keys
from daemon.publisher import Publisher
from daemon.records import HeartbeatEvent, StatusEvent
from daemon.relay import Relay, Upstream
from daemon.subscriber import Irregularity, SequenceWatch, Subscriber
from engines.errors import MienError, UsageError

ANY_PORT = "tcp://127.0.0.1:*"
MIEN = Path(sys.executable).with_name("mien")


def status(state="online", camera="door"):
    return StatusEvent(camera=camera, state=state, since=datetime(2026, 1, 1, tzinfo=UTC))


def beat():
    return HeartbeatEvent(
        camera="_daemon",
        uptime_s=0.0,
        frames_in=0,
        frames_processed=0,
        dropped={},
        latency_ms=None,
        queue_depth={},
        engines={},
    )


@contextmanager
def relaying(*upstreams, **more):
    stop = threading.Event()
    with capture_logs() as logs, Relay([*map(Upstream, upstreams)], ANY_PORT, **more) as relay:
        relay.logs = logs
        thread = threading.Thread(target=relay.run, args=(stop, 0.02))
        thread.start()
        try:
            yield relay
        finally:
            stop.set()
            thread.join(5)
            assert not thread.is_alive()


def answering(*publishers, until, wait_s=5.0):
    """Lets the publishers answer until `until()` gives something, which is returned."""
    ends = time.monotonic() + wait_s
    while time.monotonic() < ends:
        for publisher in publishers:
            publisher.answer_subscribers()
        if (found := until()) is not None:
            return found
    raise AssertionError("nothing came in time")


def connected(*publishers):
    """Waits until the relay subscribes to each."""
    answering(*publishers, until=lambda: all(each.num_subscriptions for each in publishers) or None)


def heard(subscriber, num, wait_s=5.0):
    received = [subscriber.receive(timeout_s=wait_s) for _ in range(num)]
    assert None not in received
    return received


@pytest.fixture
def north():
    with Publisher(ANY_PORT, instance="north") as publisher:
        yield publisher


@pytest.fixture
def south():
    with Publisher(ANY_PORT, instance="south") as publisher:
        yield publisher


def test_the_events_of_two_daemons_come_through_whole_and_in_order(north, south):
    with relaying(north.endpoint, south.endpoint) as relay, Subscriber(relay.endpoint) as subscriber:
        connected(north, south)
        subscribed(relay, subscriber, north)
        sent = [publisher.publish(status(camera="yard")) for _ in range(50) for publisher in (north, south)]
        received = [each for each in heard(subscriber, 100) if each.topic == "mien/1/yard/status"]

    assert [None] * 100 == [each.irregularity for each in received]
    for instance in ("north", "south"):
        mine = [each.event["seq"] for each in received if each.event["instance"] == instance]
        assert [each.seq for each in sent if each.instance == instance] == mine == list(range(50))


def subscribed(relay, subscriber, publisher):
    """Sends marks until one comes through, and swallows them."""
    ends = time.monotonic() + 5
    while subscriber.receive(timeout_s=0.02) is None:
        assert time.monotonic() < ends
        publisher.publish(beat())
    while subscriber.receive(timeout_s=0.1) is not None:
        pass


def test_who_joins_late_is_told_the_last_status_of_every_daemon(north, south):
    with relaying(north.endpoint, south.endpoint) as relay:
        connected(north, south)
        for publisher, states in ((north, ("connecting", "online")), (south, ("connecting", "stalled"))):
            for state in states:
                publisher.publish(status(state))
        answering(north, until=lambda: relay.num_passed >= 4 or None)
        with Subscriber(relay.endpoint) as late:
            received = heard(late, 2)

    assert {("north", "online", 1, True), ("south", "stalled", 1, True)} == {
        (each.event["instance"], each.event["state"], each.event["seq"], each.event["resent"])
        for each in received
    }


def test_a_relay_that_joins_late_knows_the_states_from_before(north):
    north.publish(status("online"))
    with relaying(north.endpoint) as relay:
        connected(north)
        with Subscriber(relay.endpoint, topics=["mien/1/door/"]) as subscriber:
            received = answering(north, until=lambda: subscriber.receive(timeout_s=0.02))

    assert (received.event["state"], received.event["resent"]) == ("online", True)


def test_subscribers_of_a_relay_are_no_load_on_the_daemon(north):
    with relaying(north.endpoint) as relay:
        connected(north)
        several = [Subscriber(relay.endpoint) for _ in range(10)]
        for subscriber in several:
            subscribed(relay, subscriber, north)
        for subscriber in several:
            subscriber.close()
        north.answer_subscribers()

    assert north.num_subscriptions == 1


def test_a_gap_a_restart_and_a_clash_are_seen_behind_the_relay(north):
    with relaying(north.endpoint) as relay, Subscriber(relay.endpoint, ["mien/1/door/"]) as subscriber:
        connected(north)
        answering(north, until=lambda: north.publish(status()) and subscriber.receive(timeout_s=0.05))
        north._next_seq["mien/1/door/status"] += 5
        north.publish(status())
        seen = []
        answering(north, until=lambda: seen.append(subscriber.receive(0.1)) or (seen[-1] is None or None))
        odd = [each.irregularity for each in seen if each and each.irregularity]
        assert Irregularity("gap", "mien/1/door/status", 5) in odd

        north.epoch += 1
        north._next_seq.clear()
        north.publish(status())
        (again,) = heard(subscriber, 1)

    assert Irregularity("restart", "mien/1/door/status", 0) == again.irregularity


def test_a_daemon_that_comes_late_and_goes_is_joined_again(north):
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        port = probe.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    with relaying(endpoint) as relay, Subscriber(relay.endpoint) as subscriber:
        for instance in ("first", "second"):
            with Publisher(endpoint, instance=instance) as publisher:
                publisher.publish(status())
                received = answering(publisher, until=lambda: subscriber.receive(timeout_s=0.02))
            assert received.event["instance"] == instance


def test_a_slow_subscriber_of_a_relay_costs_the_other_nothing(north):
    with (
        relaying(north.endpoint, hwm=100) as relay,
        Subscriber(relay.endpoint, ["mien/1/_daemon/"], hwm=10) as slow,
        Subscriber(relay.endpoint, ["mien/1/_daemon/"]) as quick,
    ):
        connected(north)
        for subscriber in (slow, quick):
            subscribed(relay, subscriber, north)
        odd, big = [], msgspec.structs.replace(beat(), engines={"detector": "x" * 20_000})
        for _ in range(1500):
            north.publish(big)
            odd.append(heard(quick, 1)[0].irregularity)
        told = []
        while (received := slow.receive(timeout_s=0.3)) is not None:
            told.append(received)

    assert {None} == set(odd)
    assert len(told) < 1500


def test_a_relay_beyond_loopback_needs_keys_or_plain_words():
    with pytest.raises(UsageError, match="in the clear"):
        Relay([Upstream("tcp://127.0.0.1:1")], "tcp://0.0.0.0:*")


def test_a_malformed_upstream_is_named():
    with pytest.raises(UsageError, match="nonsense: cannot be connected to"):
        Relay([Upstream("nonsense")], ANY_PORT)


def test_an_endpoint_in_use_is_named(north):
    with pytest.raises(MienError, match=f"{north.endpoint}: already in use"):
        Relay([Upstream("tcp://127.0.0.1:1")], north.endpoint)


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "allowed").mkdir()
    for name in ("daemon", "relay", "friend", "stranger"):
        new_keys(name, tmp_path)
    for name in ("relay", "friend"):
        (tmp_path / "allowed" / f"{name}.key").write_bytes((tmp_path / f"{name}.key").read_bytes())
    return tmp_path


def test_the_command_joins_encrypted_daemons_and_publishes_encrypted(keys):
    curve = load_server(keys / "daemon.key_secret", keys / "allowed")
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        bind = f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1')}"
    with Publisher(ANY_PORT, instance="north", curve=curve) as north:
        north.publish(status())
        command = [MIEN, "relay", north.endpoint, "--bind", bind]
        command += ["--key", keys / "relay.key_secret", "--upstream-key", keys / "daemon.key"]
        command += ["--server-key", keys / "relay.key_secret", "--allowed-clients", keys / "allowed"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            friend = load_client(keys / "friend.key_secret", keys / "relay.key")
            with Subscriber(bind, curve=friend) as subscriber:
                received = answering(north, until=lambda: subscriber.receive(timeout_s=0.02), wait_s=20)
            stranger = load_client(keys / "stranger.key_secret", keys / "relay.key")
            with Subscriber(bind, curve=stranger) as subscriber, pytest.raises(MienError, match="refused"):
                subscriber.receive(timeout_s=5)
        finally:
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=10)

    assert received.event["instance"] == "north"
    assert process.returncode == 0
    assert ["relay_ready", "subscriber_refused", "relay_stopped"] == [
        json.loads(line)["event"] for line in told.splitlines()
    ]


def test_a_relay_refused_by_a_daemon_tries_again_until_it_is_let_in(keys, monkeypatch):
    monkeypatch.setattr("daemon.relay.RETRY_S", 0.1)
    curve = load_server(keys / "daemon.key_secret", keys / "allowed")
    (keys / "allowed" / "relay.key").unlink()
    mine = load_client(keys / "relay.key_secret", keys / "daemon.key")
    stop = threading.Event()
    with (
        capture_logs() as logs,
        Publisher(ANY_PORT, instance="north", curve=curve) as north,
        Relay([Upstream(north.endpoint, mine)], ANY_PORT) as relay,
    ):
        thread = threading.Thread(target=relay.run, args=(stop, 0.02))
        thread.start()
        try:
            answering(north, until=lambda: [e for e in logs if e["event"] == "upstream_refused"] or None)
            (keys / "allowed" / "relay.key").write_bytes((keys / "relay.key").read_bytes())
            north.publish(status())
            answering(north, until=lambda: relay.num_passed or None)
        finally:
            stop.set()
            thread.join(5)

    assert [entry["event"] for entry in logs].count("upstream_refused") == 1


def test_the_first_event_behind_a_relay_sets_the_count():
    assert SequenceWatch().check("t", {"instance": "n", "epoch": 1, "seq": 70, "resent": True}) is None
