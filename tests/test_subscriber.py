from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from rich.console import Console

from daemon.publisher import Publisher
from daemon.records import StatusEvent
from daemon.subscriber import Irregularity, Received, SequenceWatch, Subscriber
from daemon.watch import FORGET_AFTER_S, Scene, render
from engines.errors import MienError, UsageError

TOPIC = "mien/1/door/faces"
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


@pytest.mark.parametrize(
    "parts",
    [[b"one part"], [b"mien/1/a/faces", b"not json"], [b"mien/1/a/faces", b"{}"], [b"mien/1/", b"[1]"]],
)
def test_a_message_that_is_no_event_is_told(parts):
    import zmq

    with zmq.Context() as context, context.socket(zmq.XPUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", topics=("",)) as subscriber:
            other.recv()
            other.send_multipart(parts)

            with pytest.raises(MienError, match="no Mien event"):
                subscriber.receive(timeout_s=2)


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
