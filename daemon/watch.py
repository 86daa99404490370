"""A live table of who is where, from the events of a running daemon."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.keys import ClientCurve
from daemon.printable import printable
from daemon.sequence import Irregularity, Received
from daemon.subscriber import Subscriber

FORGET_AFTER_S = 3.0
"""A face not heard of for so long is taken off the table; its `left` event may have been lost."""

REFRESH_S = 0.2
NUM_NOTES = 5

Place = tuple[str, str]


@dataclass(slots=True)
class Scene:
    """Who is where, as far as the events tell. Times are on the monotonic clock.

    A place is an instance and a camera; `people` holds the table's cells.
    """

    people: dict[tuple[Place, int], tuple[float, tuple[str, ...]]] = field(default_factory=dict)
    states: dict[Place, str] = field(default_factory=dict)
    latency_ms: float | None = None
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_NOTES))
    num_events: int = 0
    num_lost: int = 0

    def apply(self, received: Received, now_s: float) -> None:
        """Takes one event in; one that does not keep to the contract is told of and passed over."""
        self.num_events += 1
        if received.irregularity:
            self._note(received.irregularity, received.event)
        try:
            self._take(received.event, now_s)
        except (KeyError, ValueError, TypeError, AttributeError):
            self.notes.append(f"{received.topic}: an event that does not keep to the contract")

    def _take(self, event: dict[str, Any], now_s: float) -> None:
        place = (str(event.get("instance", "")), str(event["camera"]))
        match event["schema"]:
            case "mien.faces/1":
                for face in event["faces"]:
                    self.people[place, int(face["track"])] = (now_s, _cells(face))
            case "mien.track/1" if event["phase"] == "left":
                self.people.pop((place, int(event["track"])), None)
            case "mien.status/1":
                self._status(place, event)
            case "mien.heartbeat/1":
                latency = event["latency_ms"]
                self.latency_ms = latency and float(latency["p50"])

    def label(self, place: Place) -> str:
        """The camera's name, after its daemon's where there are several."""
        instances = {instance for instance, _ in self.states} | {where[0] for where, _ in self.people}
        return "/".join(place) if len(instances) > 1 else place[1]

    def forget(self, now_s: float) -> None:
        """Takes off those not heard of for FORGET_AFTER_S."""
        for key, (seen_s, _) in list(self.people.items()):
            if now_s - seen_s > FORGET_AFTER_S:
                del self.people[key]

    def _status(self, place: Place, event: dict[str, Any]) -> None:
        self.states[place] = str(event["state"])
        if event.get("reason") and not event.get("resent"):
            self.notes.append(f"{self.label(place)}: {event['state']}, {event['reason']}")

    def _note(self, irregularity: Irregularity, event: dict[str, Any]) -> None:
        self.num_lost += irregularity.num_missing
        match irregularity.kind:
            case "gap":
                text = f"{irregularity.num_missing} events lost"
            case "duplicate":
                text = "an event came twice"
            case "restart":
                text = "the daemon was started anew"
            case "clash":
                text = f"two daemons are named {event['instance']}; give each its own `instance`"
        self.notes.append(f"{irregularity.topic}: {text}")


def render(scene: Scene, endpoint: str) -> RenderableType:
    """The scene as a table, with the cameras' states above and what went wrong below."""
    table = Table(expand=True)
    for heading in ("camera", "track", "who", "similarity", "age", "gender", "expression", "look"):
        table.add_column(heading, no_wrap=True)
    for (place, track), (_, cells) in sorted(scene.people.items()):
        # Names are people's own text: neither markup nor a terminal's commands are read in them.
        table.add_row(*(Text(printable(cell)) for cell in (scene.label(place), str(track), *cells)))
    notes = (Text(printable(note), style="yellow") for note in scene.notes)
    return Group(_headline(scene, endpoint), table, *notes)


def watch(endpoint: str, console: Console, curve: ClientCurve | None = None) -> None:
    """Shows the table until interrupted."""
    scene = Scene()
    with Subscriber(endpoint, curve=curve) as subscriber, Live(console=console, auto_refresh=False) as live:
        while True:
            _take_in(scene, subscriber)
            scene.forget(time.monotonic())
            live.update(render(scene, endpoint), refresh=True)


def write_lines(endpoint: str, limit: int | None = None, curve: ClientCurve | None = None) -> None:
    """Writes events to standard output as JSON lines, `limit` of them; gaps are told on standard error."""
    num_written = 0
    with Subscriber(endpoint, curve=curve) as subscriber:
        for received in subscriber:
            if received.irregularity:
                odd = received.irregularity
                print(f"{odd.topic}: {odd.kind}, {odd.num_missing} missing", file=sys.stderr)
            sys.stdout.write(msgspec.json.encode(received.event).decode() + "\n")
            sys.stdout.flush()
            num_written += 1
            if num_written == limit:
                return


def _take_in(scene: Scene, subscriber: Subscriber) -> None:
    until_s = time.monotonic() + REFRESH_S
    while (left_s := until_s - time.monotonic()) > 0:
        received = subscriber.receive(left_s)
        if received is not None:
            scene.apply(received, time.monotonic())


def _headline(scene: Scene, endpoint: str) -> Text:
    states = ", ".join(f"{scene.label(place)} {state}" for place, state in sorted(scene.states.items()))
    text = f"{endpoint}  {states or 'waiting for a daemon'}  {scene.num_events} events, {scene.num_lost} lost"
    latency = "" if scene.latency_ms is None else f"  latency p50 {scene.latency_ms:.0f} ms"
    return Text(printable(text) + latency, style="bold")


def _cells(face: dict[str, Any]) -> tuple[str, ...]:
    identity = face.get("identity") or {}
    quality = face["quality"]
    return (
        str(identity.get("name") or identity.get("status", "")),
        _number(identity.get("similarity"), "{:.2f}"),
        _number(face.get("age"), "{:.0f}"),
        str(face.get("gender") or ""),
        str(face.get("max_emotion") or ""),
        "good" if quality["usable"] else ", ".join(quality["reasons"]),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
