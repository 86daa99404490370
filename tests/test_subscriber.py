from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import daemon.subscriber
from daemon.connection import decoded
from daemon.printable import printable
from daemon.publisher import Publisher
from daemon.records import StatusEvent
from daemon.subscriber import (
    AsyncSubscriber,
    Irregularity,
    Received,
    SequenceWatch,
    Subscriber,
)
from daemon.watch import FORGET_AFTER_S, Scene, render
from engines.errors import MienError, UsageError
from tests.test_records import EVENTS

TOPIC = "mien/1/door/faces"
NUM_CASES = int(os.environ.get("MIEN_FUZZ_CASES", "150"))
FACE = {
    "track": 4,
    "quality": {"usable": False, "reasons": ["blurred"], "interocular_px": 20.0},
    "identity": {"name": "grace", "status": "known", "similarity": 0.7123},
    "age": 40.6,
    "gender": "female",
    "max_emotion": "neutral",
}


def event(seq, *, epoch=1, instance="north", **more):
    return {"instance": instance, "epoch": epoch, "seq": seq} | more


def told(*events):
    watch = SequenceWatch()
    return [watch.check(TOPIC, each) for each in events]


def test_events_in_order_are_regular():
    assert told(event(0), event(1), event(2)) == [None, None, None]


def test_who_comes_late_lost_nothing():
    assert told(event(70), event(71)) == [None, None]


def test_a_gap_tells_how_many_are_missing():
    assert [None, Irregularity("gap", TOPIC, 3), None] == told(event(0), event(4), event(5))


def test_a_doubled_event_is_told():
    assert [None, None, Irregularity("duplicate", TOPIC)] == told(event(0), event(1), event(1))


def test_an_event_sent_again_is_no_duplicate():
    assert told(event(0), event(0, resent=True), event(1)) == [None, None, None]


def test_a_restart_is_told_with_what_was_lost_since():
    assert [None, Irregularity("restart", TOPIC, 2), None] == told(
        event(9), event(2, epoch=2), event(3, epoch=2)
    )


def test_a_restart_with_the_clock_set_back_is_a_restart():
    assert [None, Irregularity("restart", TOPIC, 0)] == told(event(9, epoch=5), event(0, epoch=3))


def test_two_daemons_of_one_name_are_told():
    events = (event(0, epoch=1), event(0, epoch=2), event(1, epoch=1), event(1, epoch=2))

    assert [None, "restart", "clash", "clash"] == [each and each.kind for each in told(*events)]


def test_a_status_of_the_old_epoch_sent_again_is_no_clash():
    assert told(event(0, epoch=1), event(0, epoch=2), event(0, epoch=1, resent=True))[2] is None


@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.sampled_from(["a", "b"]), min_size=60, max_size=60),
)
def test_missing_events_are_counted_exactly(lost, topics):
    """Whatever is lost between two events of a topic is told by the second."""
    watch, seq, expected, found = SequenceWatch(), {"a": 0, "b": 0}, 0, 0
    for topic in ("a", "b"):
        watch.check(topic, event(0))
    for num_lost, topic in zip(lost, topics, strict=False):
        seq[topic] += num_lost + 1
        expected += num_lost
        odd = watch.check(topic, event(seq[topic]))
        found += odd.num_missing if odd else 0

    assert expected == found


def test_two_daemons_behind_a_relay_are_told_apart():
    assert told(event(5), event(90, instance="south"), event(6), event(91, instance="south")) == [None] * 4


def test_subscriber_yields_what_was_published():
    with (
        Publisher("tcp://127.0.0.1:*", instance="north") as publisher,
        Subscriber(publisher.endpoint) as subscriber,
    ):
        until = time.monotonic() + 2
        while not publisher.answer_subscribers():
            assert time.monotonic() < until
            time.sleep(0.005)
        publisher.publish(StatusEvent(camera="door", state="online", since=datetime.now(UTC)))

        received = subscriber.receive(timeout_s=2)

    assert received is not None
    assert (
        received.topic,
        received.event["state"],
        received.irregularity,
    ) == ("mien/1/door/status", "online", None)


def test_subscriber_tells_when_nothing_came():
    with Subscriber("tcp://127.0.0.1:1") as subscriber:
        assert subscriber.receive(timeout_s=0.05) is None


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://nowhere"])
def test_malformed_endpoint_is_named(endpoint):
    with pytest.raises(UsageError, match=endpoint):
        Subscriber(endpoint)


def test_async_subscriber_yields_what_was_published_and_tells_gaps():
    async def heard(publisher):
        async with AsyncSubscriber(publisher.endpoint, topics=["mien/1/door/"]) as subscriber:
            assert await subscriber.receive(timeout_s=0.05) is None
            while not publisher.answer_subscribers():
                await asyncio.sleep(0.005)
            for state in ("connecting", "online", "ended"):
                publisher.publish(StatusEvent(camera="door", state=state, since=datetime.now(UTC)))
                if state == "connecting":
                    publisher._next_seq["mien/1/door/status"] += 4
            return [received async for received, _ in _first(subscriber, 3)]

    async def _first(subscriber, num):
        async for received in subscriber:
            yield received, num
            num -= 1
            if not num:
                return

    with Publisher("tcp://127.0.0.1:*", instance="north") as publisher:
        received = asyncio.run(asyncio.wait_for(heard(publisher), 5))

    assert ["connecting", "online", "ended"] == [each.event["state"] for each in received]
    assert [None, Irregularity("gap", "mien/1/door/status", 4), None] == [
        each.irregularity for each in received
    ]


def test_a_daemon_that_starts_anew_is_found_again_and_told():
    with Publisher("tcp://127.0.0.1:*", instance="north", epoch=1) as publisher:
        endpoint = publisher.endpoint
        subscriber = Subscriber(endpoint)
        assert until_told(publisher, subscriber).irregularity is None
    try:
        with Publisher(endpoint, instance="north", epoch=2) as publisher:
            assert until_told(publisher, subscriber).irregularity.kind == "restart"
    finally:
        subscriber.close()


def until_told(publisher, subscriber):
    publisher.publish(StatusEvent(camera="door", state="online", since=datetime.now(UTC)))
    until = time.monotonic() + 5
    while time.monotonic() < until:
        publisher.answer_subscribers()
        if (received := subscriber.receive(timeout_s=0.02)) is not None:
            return received
    return None


def documented(text):
    """The first example that imports the subscriber, indented or between ```."""
    example = text[text.index("from daemon.subscriber import") :].partition("```")[0]
    return textwrap.dedent("    " + example).strip() + "\n"


@pytest.mark.parametrize("place", ["README.md", "daemon/subscriber.py"])
def test_the_documented_example_runs(place):
    text = (Path(__file__).parents[1] / place).read_text(encoding="utf-8")
    if place == "README.md" and "from daemon.subscriber import" not in text:
        pytest.skip("the README has no example yet")
    example = documented(text if place == "README.md" else daemon.subscriber.__doc__)
    assert len(example.splitlines()) <= 10

    track = next(event for event in EVENTS if event.__struct_config__.tag == "mien.track/1")
    with Publisher("tcp://127.0.0.1:*", instance="north") as publisher:
        code = example.replace("tcp://127.0.0.1:5600", publisher.endpoint)
        assert code != example
        command = [sys.executable, "-u", "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                until = time.monotonic() + 20
                while not publisher.answer_subscribers():
                    assert time.monotonic() < until and process.poll() is None
                    time.sleep(0.01)
                publisher.publish(track)
                publisher._next_seq["mien/1/door/track"] += 7
                publisher.publish(track)
                lines = [process.stdout.readline().strip() for _ in range(3)]
            finally:
                process.kill()

    assert lines[0] == lines[2] == "door left grace"
    assert "num_missing=7" in lines[1]


def test_a_message_that_is_no_event_is_told_and_the_next_is_heard():
    good = b'{"schema":"mien.status/1","instance":"n","epoch":1,"seq":0,"camera":"a"}'
    with zmq.Context() as context, context.socket(zmq.XPUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", topics=("",)) as subscriber:
            other.recv()
            other.send_multipart([b"mien/1/a/status", b"{}"])
            other.send_multipart([b"mien/1/a/status", good])

            with pytest.raises(MienError, match="no Mien event"):
                subscriber.receive(timeout_s=2)
            assert subscriber.receive(timeout_s=2).topic == "mien/1/a/status"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
HEADER = {
    "schema": st.sampled_from(["mien.faces/1", "mien.track/1", "mien.status/1", "mien.heartbeat/1", "x"])
    | JSON,
    "instance": st.sampled_from(["north"]) | JSON,
    "epoch": st.integers(-1, 3) | JSON,
    "seq": st.integers(-1, 3) | JSON,
    "camera": st.sampled_from(["door", "../x", "a\nb", "\x1b[31m", "😀"]) | JSON,
}
BODY = {key: JSON for key in ("faces", "frame", "track", "phase", "state", "reason", "latency_ms", "resent")}
EVENT = st.fixed_dictionaries({}, optional=HEADER | BODY).map(msgspec.json.encode)
KIND = st.sampled_from(["faces", "track", "status", "heartbeat"]).map(
    lambda kind: f"mien/1/door/{kind}".encode()
)
MESSAGE = st.lists(KIND | EVENT | st.binary(), max_size=4) | st.tuples(KIND, EVENT).map(list)


@settings(max_examples=NUM_CASES, deadline=None)
@given(MESSAGE)
def test_no_message_does_more_than_be_refused(parts):
    scene = Scene()
    try:
        topic, found = decoded(parts)
    except MienError:
        return
    scene.apply(Received(topic, found, SequenceWatch().check(topic, found)), now_s=0.0)
    if scene.people or scene.states:
        shown(scene)


def test_a_message_nested_without_end_is_refused():
    with pytest.raises(MienError, match="no Mien event"):
        decoded([b"mien/1/a/faces", b'{"a":' * 100_000])


def faces(*faces, camera="door"):
    return Received(TOPIC, {"schema": "mien.faces/1", "camera": camera, "faces": list(faces)}, None)


def shown(scene):
    console = Console(width=140)
    with console.capture() as capture:
        console.print(render(scene, "tcp://127.0.0.1:5600"))
    return capture.get()


def test_table_shows_who_is_where():
    scene = Scene()
    scene.apply(faces(FACE), now_s=0.0)

    row = next(line for line in shown(scene).splitlines() if "grace" in line)

    for text in ("door", "4", "0.71", "41", "female", "neutral", "blurred"):
        assert text in row


def test_table_shows_what_is_switched_off_as_blank():
    scene = Scene()
    scene.apply(faces({"track": 1, "quality": FACE["quality"]}), now_s=0.0)

    assert "None" not in shown(scene)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\nb", "\x1b[2J\x1b[31mred", 'Bobby"; DROP', "😀 Zoë"])
def test_no_name_breaks_the_table(name):
    scene = Scene()
    scene.apply(faces(FACE | {"identity": {"name": name, "status": "known"}}), now_s=0.0)

    text = shown(scene)
    assert "\x1b" not in text
    assert any(printable(name)[:4] in line for line in text.splitlines())


def test_cameras_of_two_daemons_are_told_apart():
    scene = Scene()
    for instance in ("north", "south"):
        scene.apply(Received(TOPIC, faces(FACE).event | {"instance": instance}, None), now_s=0.0)

    assert {"north/door", "south/door"} <= set(shown(scene).replace("│", " ").split())


def test_a_name_is_shown_as_it_is():
    scene = Scene()
    scene.apply(faces(FACE | {"identity": {"name": "[red]grace", "status": "known"}}), now_s=0.0)

    assert "[red]grace" in shown(scene)


def test_who_left_is_off_the_table():
    scene = Scene()
    scene.apply(faces(FACE), now_s=0.0)
    left = {"schema": "mien.track/1", "camera": "door", "track": 4, "phase": "left"}
    scene.apply(Received("mien/1/door/track", left, None), now_s=0.1)

    assert scene.people == {}


def test_who_is_not_heard_of_is_off_the_table():
    scene = Scene()
    scene.apply(faces(FACE), now_s=0.0)
    scene.forget(now_s=FORGET_AFTER_S + 0.1)

    assert scene.people == {}


def test_table_tells_lost_events_and_states():
    scene = Scene()
    status = {"schema": "mien.status/1", "camera": "door", "state": "reconnecting", "reason": "no answer"}
    scene.apply(Received("mien/1/door/status", status, Irregularity("gap", TOPIC, 7)), now_s=0.0)

    text = shown(scene)

    assert "7 events lost" in text
    assert "door: reconnecting, no answer" in text
