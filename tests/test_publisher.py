from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import zmq

from daemon.publisher import Publisher
from daemon.records import HeartbeatEvent, StatusEvent
from engines.errors import MienError, UsageError

MOMENT = datetime(2024, 5, 1, tzinfo=UTC)
ANY_PORT = "tcp://127.0.0.1:*"


def status(camera="door", state="online"):
    return StatusEvent(camera=camera, state=state, since=MOMENT)


def beat(num_in=0):
    return HeartbeatEvent(
        camera="_daemon",
        uptime_s=0.0,
        frames_in=num_in,
        frames_processed=0,
        dropped={},
        latency_ms=None,
        queue_depth={},
        engines={},
    )


@pytest.fixture
def publisher():
    with Publisher(ANY_PORT, instance="north", hwm=100) as publisher:
        yield publisher


@contextmanager
def listening(publisher, *topics):
    """A plain pyzmq subscriber, returned once the publisher has heard of it."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.rcvtimeo = 2000
        for topic in topics:
            socket.subscribe(topic)
        socket.connect(publisher.endpoint)
        num_known, until = 0, time.monotonic() + 2
        while num_known < len(topics):
            num_known += publisher.answer_subscribers()
            assert time.monotonic() < until
            time.sleep(0.005)
        yield socket


def received(socket):
    topic, payload = socket.recv_multipart()
    return topic.decode(), json.loads(payload)


def is_silent(socket, wait_ms=100):
    return not socket.poll(wait_ms)


def test_event_goes_out_stamped_under_its_topic(publisher):
    with listening(publisher, "mien/1/door/") as socket:
        publisher.publish(status())

        topic, event = received(socket)

    assert topic == "mien/1/door/status"
    assert ("mien.status/1", "north", publisher.epoch, 0) == (
        event["schema"],
        event["instance"],
        event["epoch"],
        event["seq"],
    )
    assert event["published_at"].endswith("Z")


def test_numbers_run_without_gaps_for_each_topic(publisher):
    with listening(publisher, "mien/1/") as socket:
        for event in (status(), beat(), status(state="stalled"), beat(), status(camera="yard")):
            publisher.publish(event)

        numbers = [(topic, event["seq"]) for topic, event in (received(socket) for _ in range(5))]

    assert numbers == [
        ("mien/1/door/status", 0),
        ("mien/1/_daemon/heartbeat", 0),
        ("mien/1/door/status", 1),
        ("mien/1/_daemon/heartbeat", 1),
        ("mien/1/yard/status", 0),
    ]


def test_prefix_with_slash_does_not_match_a_longer_name(publisher):
    with listening(publisher, "mien/1/door/") as socket:
        publisher.publish(status(camera="door2"))

        assert is_silent(socket)


def test_new_subscriber_is_sent_the_last_status_of_each_camera_again(publisher):
    publisher.publish(status(state="connecting"))
    publisher.publish(status(state="online"))
    publisher.publish(status(camera="yard", state="stalled"))

    with listening(publisher, "mien/1/") as socket:
        events = [received(socket)[1] for _ in range(2)]

    assert [(event["camera"], event["state"], event["seq"], event["resent"]) for event in events] == [
        ("door", "online", 1, True),
        ("yard", "stalled", 0, True),
    ]


def test_only_the_status_of_the_subscribed_camera_is_sent_again(publisher):
    publisher.publish(status())
    publisher.publish(status(camera="yard"))

    with listening(publisher, "mien/1/yard/") as socket:
        assert received(socket)[0] == "mien/1/yard/status"
        assert is_silent(socket)


def test_every_further_subscriber_to_the_same_topic_is_answered(publisher):
    publisher.publish(status())

    with listening(publisher, "mien/1/") as first:
        received(first)
        with listening(publisher, "mien/1/") as second:
            assert received(second)[1]["resent"] is True
            # The first hears it too, and can tell by `resent` that it is not new.
            assert received(first)[1]["resent"] is True


def test_sending_again_uses_no_number(publisher):
    publisher.publish(status())

    with listening(publisher, "mien/1/") as socket:
        received(socket)
        publisher.publish(status(state="stalled"))

        assert received(socket)[1]["seq"] == 1


def test_slow_subscriber_loses_events_and_slows_nobody(publisher):
    with listening(publisher, "mien/1/") as slow:
        slow.setsockopt(zmq.RCVHWM, 10)
        started = time.monotonic()
        for number in range(50_000):
            publisher.publish(beat(number))

        assert time.monotonic() - started < 10
        numbers = []
        while slow.poll(200):
            numbers.append(received(slow)[1]["seq"])

    assert len(numbers) < 50_000
    assert sorted(set(numbers)) == numbers


def test_endpoint_in_use_is_named(publisher):
    with pytest.raises(MienError, match=f"{publisher.endpoint}: already in use"):
        Publisher(publisher.endpoint, instance="south")


def test_ipc_endpoint_in_use_is_named_and_stays_with_its_owner(tmp_path):
    endpoint = f"ipc://{tmp_path}/events"
    with Publisher(endpoint, instance="north") as owner:
        with pytest.raises(MienError, match="already in use"):
            Publisher(endpoint, instance="south")

        owner.publish(status())
        with listening(owner, "mien/1/") as socket:
            assert received(socket)[1]["instance"] == "north"


def test_ipc_socket_left_by_a_dead_daemon_is_taken_over(tmp_path):
    path = tmp_path / "events"
    with zmq.Context() as context, context.socket(zmq.PUB) as dead:
        dead.bind(f"ipc://{path}")
        path.rename(tmp_path / "kept")
    (tmp_path / "kept").rename(path)

    with Publisher(f"ipc://{path}", instance="north") as publisher:
        assert f"ipc://{path}" == publisher.endpoint


@pytest.mark.parametrize(
    "endpoint", ["tcp://*:5600", "tcp://0.0.0.0:5600", "tcp://192.0.2.1:5600", "tcp://[::]:1"]
)
def test_binding_beyond_loopback_must_be_asked_for(endpoint):
    with pytest.raises(UsageError, match="allow_plaintext_beyond_loopback"):
        Publisher(endpoint, instance="north")


def test_binding_beyond_loopback_can_be_asked_for():
    with Publisher("tcp://0.0.0.0:*", instance="north", allow_plaintext_beyond_loopback=True) as publisher:
        assert publisher.endpoint.startswith("tcp://0.0.0.0:")


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:port", "tcp://127.0.0.1", "ipc:///no/such/folder/socket"]
)
def test_an_endpoint_that_cannot_be_is_named(endpoint):
    with pytest.raises(MienError, match=endpoint):
        Publisher(endpoint, instance="north")


def test_a_restart_has_a_greater_epoch(publisher):
    time.sleep(0.002)
    with Publisher(ANY_PORT, instance="north") as later:
        assert later.epoch > publisher.epoch
