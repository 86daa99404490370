from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import msgspec
import pytest
import zmq

from daemon.publisher import Publisher
from daemon.records import REMOVED, FacesEvent, HeartbeatEvent, StatusEvent
from daemon.subscriber import Subscriber
from engines.errors import MienError, UsageError
from tests.test_records import FACE, FRAME, KNOWN

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


def test_a_newcomer_is_not_told_of_a_camera_that_was_removed(publisher):
    publisher.publish(status("yard"))
    publisher.publish(status("door"))
    gone = publisher.publish(msgspec.structs.replace(status("door", "ended"), reason=REMOVED))
    with listening(publisher, "mien/1/") as socket:
        told = [received(socket)[1]]
        assert not socket.poll(100)
        back = publisher.publish(status("door"))
        told.append(received(socket)[1])

    assert [("yard", True), ("door", False)] == [(each["camera"], each.get("resent", False)) for each in told]
    assert (1, 2) == (gone.seq, back.seq)


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


def test_many_who_subscribe_at_once_are_answered_once(publisher):
    publisher.publish(status())
    with ExitStack() as stack:
        several = [stack.enter_context(Subscriber(publisher.endpoint)) for _ in range(10)]
        time.sleep(0.3)
        num_asked = publisher.answer_subscribers()
        heard = [[] for _ in several]
        for subscriber, events in zip(several, heard, strict=True):
            while (received := subscriber.receive(timeout_s=0.1)) is not None:
                events.append(received.event)

    assert num_asked == 10
    assert [1] * 10 == [len(events) for events in heard]


@pytest.mark.parametrize("name", ["../../x", "a\nmien/1/door/faces", '"},{"', "😀 Zoë", "\x00\x1b[31m"])
def test_a_persons_name_is_harmless_on_the_wire(publisher, name):
    face = msgspec.structs.replace(FACE, identity=msgspec.structs.replace(KNOWN, name=name))
    with listening(publisher, "mien/1/door/faces") as socket:
        publisher.publish(FacesEvent(camera="door", frame=FRAME, faces=(face,)))
        parts = socket.recv_multipart()

    assert parts[0] == b"mien/1/door/faces"
    assert b"\n" not in parts[1]
    assert name == json.loads(parts[1])["faces"][0]["identity"]["name"]


def test_an_ipv6_loopback_endpoint_is_served():
    try:
        publisher = Publisher("tcp://[::1]:*", instance="north")
    except MienError:
        pytest.skip("this machine has no IPv6 loopback")
    with publisher, Subscriber(publisher.endpoint) as subscriber:
        await_subscriptions(publisher, 1)
        publisher.publish(status())

        assert subscriber.receive(timeout_s=2).event["state"] == "online"


def test_a_flood_of_requests_is_cut_off(publisher):
    with (
        zmq.Context() as context,
        context.socket(zmq.XSUB) as hostile,
        listening(publisher, "mien/1/") as good,
    ):
        hostile.linger = 0
        hostile.connect(publisher.endpoint)
        hostile.send(b"\x01" + b"x" * 100_000)
        hostile.send(b"hello, daemon")
        hostile.send_multipart([b"\x01\xff\xfe", b"more", b"parts"])
        time.sleep(0.2)
        publisher.answer_subscribers()
        publisher.publish(status())

        assert received(good)[1]["state"] == "online"


READER = """
import json, sys
from daemon.subscriber import Subscriber
with Subscriber(sys.argv[1], hwm=100) as events:
    for received in events:
        odd = received.irregularity
        print(json.dumps([received.event["seq"], odd and odd.kind, odd and odd.num_missing]), flush=True)
"""


@contextmanager
def reader(publisher):
    """A subscriber in a process of its own, which prints what it hears."""
    before = publisher.num_subscriptions
    command = [sys.executable, "-c", READER, publisher.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            await_subscriptions(publisher, before + 1)
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def await_subscriptions(publisher, num):
    until = time.monotonic() + 20
    while publisher.num_subscriptions != num:
        assert time.monotonic() < until, publisher.num_subscriptions
        publisher.answer_subscribers()
        time.sleep(0.005)


def resident_bytes():
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def publish_and_hear(publisher, subscribers, events):
    """Publishes, and lets all subscribers hear each event; returns the irregularities they tell of."""
    odd = []
    for event in events:
        seq = publisher.publish(event).seq
        for subscriber in subscribers:
            received = subscriber.receive(timeout_s=5)
            assert received.event["seq"] == seq
            odd.append(received.irregularity)
    return {each for each in odd if each is not None}


def test_only_the_subscriber_that_stops_reading_loses_and_memory_is_bounded(publisher):
    """50 healthy ones, one that is stopped, one that is killed, one that comes late, over real sockets."""
    healthy_odd = set()
    with ExitStack() as stack:
        stopped = stack.enter_context(reader(publisher))
        killed = stack.enter_context(reader(publisher))
        fifty = [stack.enter_context(Subscriber(publisher.endpoint)) for _ in range(50)]
        await_subscriptions(publisher, 52)
        healthy_odd |= publish_and_hear(publisher, fifty, [beat(n) for n in range(100)])
        stopped.send_signal(signal.SIGSTOP)
        killed.kill()
        healthy_odd |= publish_and_hear(publisher, fifty, [beat(n) for n in range(100, 200)])
        await_subscriptions(publisher, 51)  # the killed one is gone
        late = stack.enter_context(Subscriber(publisher.endpoint))
        await_subscriptions(publisher, 52)
        # What the stopped one does not take, 60 MB, is kept for it up to 100 events of 20 KB.
        large = msgspec.structs.replace(beat(), engines={"detector": "x" * 20_000})
        healthy_odd |= publish_and_hear(publisher, [late, fifty[0]], [large] * 50)
        for subscriber in fifty[1:]:
            subscriber.close()
        await_subscriptions(publisher, 3)
        before = resident_bytes()
        healthy_odd |= publish_and_hear(publisher, [late, fifty[0]], [large] * 3000)
        grown = resident_bytes() - before
        stopped.send_signal(signal.SIGCONT)
        told = heard_up_to_now(publisher, stopped)

    assert healthy_odd == set()
    assert {None, "gap"} == {kind for _, kind, _ in told}
    num_lost = sum(missing or 0 for _, _, missing in told)
    assert num_lost > 1000
    assert len(told) + num_lost == told[-1][0] + 1
    assert grown < 20e6


def heard_up_to_now(publisher, process):
    """What a reader has printed once it is up to date: what is sent now gets through."""
    lines = []
    thread = threading.Thread(target=lambda: [lines.append(line) for line in process.stdout])
    thread.start()
    until = time.monotonic() + 20
    seq = publisher.publish(beat()).seq
    while not lines or json.loads(lines[-1])[0] < seq:
        assert time.monotonic() < until
        publisher.publish(beat())
        time.sleep(0.02)
    process.kill()
    thread.join()
    return [json.loads(line) for line in lines if line.endswith("\n")]
