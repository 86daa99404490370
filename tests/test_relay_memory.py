"""What a relay makes of messages that are no events, and what it remembers of daemons."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon.publisher import Publisher
from daemon.relay import FORGET_AFTER_S, MAX_CAMERAS, MAX_INSTANCES, LastStatuses, Relay, Upstream
from daemon.subscriber import Subscriber
from tests.test_relay import ANY_PORT, answering, connected, relaying, status

NUM_CASES = int(os.environ.get("MIEN_FUZZ_CASES", "150"))


@pytest.fixture
def north():
    with Publisher(ANY_PORT, instance="north") as publisher:
        yield publisher


def test_what_is_no_event_is_dropped_and_told_without_a_flood(north):
    with (
        zmq.Context() as context,
        context.socket(zmq.XPUB) as hostile,
        relaying(
            f"tcp://127.0.0.1:{hostile.bind_to_random_port('tcp://127.0.0.1')}", north.endpoint
        ) as relay,
    ):
        hostile.linger = 0
        hostile.recv()
        connected(north)
        for _ in range(200):
            hostile.send_multipart([b"mien/1/x/status", b"no json"])
        hostile.send_multipart([b"mien/1/x/status"])
        hostile.send_multipart([b"mien/1/\xff/faces", b"{}"])
        hostile.send_multipart([b"mien/1/a\nb/faces", b"{}"])
        with Subscriber(relay.endpoint, topics=("",)) as subscriber:
            answering(north, until=lambda: relay.num_malformed >= 203 or None)
            north.publish(status())
            received = answering(north, until=lambda: subscriber.receive(timeout_s=0.05))

    assert received.event["instance"] == "north"
    told = [entry for entry in relay.logs if entry["event"] == "message_malformed"]
    assert 1 <= len(told) <= 8


@settings(max_examples=NUM_CASES, deadline=None)
@given(st.data())
def test_no_message_stops_a_relay(data):
    header = {"instance": st.just("n"), "epoch": st.just(1), "seq": st.just(0), "camera": st.just("a")}
    names = st.sampled_from(
        ["mien/1/a/status", "mien/1/a/faces", "mien/1/../x/status", "mien/1/_daemon/heartbeat"]
    )
    event = st.fixed_dictionaries(
        {"schema": st.just("mien.status/1")},
        optional={k: v | st.text() | st.none() for k, v in header.items()},
    ).map(lambda each: json.dumps(each).encode())
    parts = data.draw(st.lists(names.map(str.encode) | event | st.binary(), min_size=1, max_size=4))
    relay = _FUZZED.relay
    before = relay.num_passed + relay.num_malformed
    _FUZZED.upstream.send_multipart([b"mien/1/", *parts[1:]] if parts[0] == b"" else parts)
    _FUZZED.upstream.send_multipart(
        [b"mien/1/_daemon/faces", b"{}"]
    )  # passed on unread: the end of this case
    ends = time.monotonic() + 5
    while relay.num_passed + relay.num_malformed == before or not _FUZZED.marked():
        assert time.monotonic() < ends and _FUZZED.thread.is_alive()


class _Fuzzed:
    """A relay at work, kept over all cases."""

    def __enter__(self):
        self.context = zmq.Context()
        self.upstream = self.context.socket(zmq.XPUB)
        self.upstream.linger = 0
        port = self.upstream.bind_to_random_port("tcp://127.0.0.1")
        self.relay = Relay([Upstream(f"tcp://127.0.0.1:{port}")], ANY_PORT)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.relay.run, args=(self.stop, 0.02))
        self.thread.start()
        self.upstream.recv()
        self.listener = self.context.socket(zmq.SUB)
        self.listener.linger = 0
        self.listener.subscribe("mien/1/_daemon/faces")
        self.listener.connect(self.relay.endpoint)
        while not self.listener.poll(50):
            self.upstream.send_multipart([b"mien/1/_daemon/faces", b"{}"])
        while self.listener.poll(50):
            self.listener.recv_multipart()
        return self

    def marked(self):
        return bool(self.listener.poll(100)) and self.listener.recv_multipart()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(5)
        self.relay.__exit__(None, None, None)
        self.listener.close()
        self.upstream.close()
        self.context.term()


_FUZZED = _Fuzzed()


@pytest.fixture(autouse=True, scope="module")
def _fuzzed():
    with capture_logs(), _FUZZED:
        yield


def heard_of(statuses, *events):
    for now_s, instance, topic, epoch in events:
        statuses.hear(topic, {"instance": instance, "epoch": epoch}, now_s)


def test_a_daemon_silent_for_long_is_forgotten():
    statuses = LastStatuses()
    heard_of(
        statuses,
        (0.0, "north", "mien/1/door/status", 1),
        (0.0, "south", "mien/1/door/status", 1),
        (FORGET_AFTER_S, "south", "mien/1/_daemon/heartbeat", 1),
    )

    assert ["north"] == statuses.forget_silent(FORGET_AFTER_S + 1)
    assert ["south"] == [status["instance"] for _, status in statuses.of(("mien/1/",))]


def test_a_daemon_started_anew_takes_its_old_cameras_away():
    statuses = LastStatuses()
    heard_of(
        statuses,
        (0.0, "north", "mien/1/old/status", 1),
        (1.0, "north", "mien/1/_daemon/status", 2),
        (1.0, "north", "mien/1/new/status", 2),
    )

    assert ["mien/1/_daemon/status", "mien/1/new/status"] == [topic for topic, _ in statuses.of(("mien/",))]


def test_a_camera_that_was_removed_is_not_told_of():
    statuses = LastStatuses()
    for state, reason in (("online", None), ("ended", "removed")):
        event = {"instance": "north", "epoch": 1, "state": state, "reason": reason}
        statuses.hear("mien/1/door/status", event, 0.0)
        statuses.hear("mien/1/clip/status", event | {"reason": "the source is at its end"}, 0.0)

    assert ["mien/1/clip/status"] == [topic for topic, _ in statuses.of(("mien/",))]


def test_invented_daemons_do_not_fill_the_memory():
    statuses = LastStatuses()
    for number in range(5000):
        heard_of(statuses, (0.0, f"i{number}", "mien/1/a/status", 1))
        heard_of(statuses, (0.0, "north", f"mien/1/c{number}/status", 1))

    assert len(statuses.of(("",))) == MAX_INSTANCES - 1 + MAX_CAMERAS
