"""All cameras of a daemon, as the main loop sees them: frames to take, states to tell."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from daemon.capture import Capture, StatusChange
from daemon.config import CameraConfig
from daemon.records import Frame, State

JOIN_S = 0.8
"""How long all captures together are waited for at the end."""

HUNG_GRACE_S = 5.0
"""How long after its own time-outs a capture that gives nothing is taken to hang in a call, and replaced."""


@dataclass(slots=True)
class Watched:
    """One camera: its capture, its last state, and what its captures of before counted.

    `abandoned` is a capture that hung in a call and was replaced: at most one a camera, so that hanging
    devices do not pile up threads. told: whether its state was handed out as a change.
    """

    capture: Capture
    state: State = "connecting"
    reason: str | None = None
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    before: Counter[str] = field(default_factory=Counter)
    abandoned: Capture | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class CameraCounts:
    """Frames of one camera from the daemon's start: num_in = num_taken + the sum of dropped + waiting."""

    num_in: int
    num_taken: int
    dropped: Counter[str]
    waiting: int
    num_connections: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Frames of all cameras at one moment: num_in = those taken + the sum of dropped + the sum of waiting."""

    num_in: int
    dropped: Counter[str]
    waiting: dict[str, int]


class Cameras:
    """The captures of all enabled cameras; a context manager that starts and ends them.

    `ready` is set whenever a frame waits or a state has changed. All methods are for one thread, the main
    loop's; only `states` and `counts` may be asked from another.
    """

    def __init__(self, configs: Sequence[CameraConfig], max_batch: int = 4) -> None:
        self.ready = threading.Event()
        self._max_batch = max_batch
        self._turn = 0
        self._reported: queue.SimpleQueue[tuple[Capture, StatusChange]] = queue.SimpleQueue()
        self._held_back: list[tuple[Capture, StatusChange]] = []
        self._watched: dict[str, Watched] = {}
        self._removed: Counter[str] = Counter()
        self._leaving: list[Capture] = []
        for camera in configs:
            if camera.enabled:
                self._watched[camera.name] = Watched(self._new_capture(camera, 0))

    def _new_capture(self, camera: CameraConfig, first_index: int) -> Capture:
        def report(change: StatusChange) -> None:
            self._reported.put((capture, change))

        capture = Capture(camera, self.ready, threading.Event(), report, first_index)
        return capture

    def __enter__(self) -> Self:
        for watched in self._watched.values():
            watched.capture.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        until_s = time.monotonic() + JOIN_S
        for capture in self._captures():
            capture.join(max(0.0, until_s - time.monotonic()))

    def stop(self) -> None:
        """Tells all captures to end, and waits for none."""
        for capture in self._captures():
            capture.stop.set()

    def _captures(self) -> list[Capture]:
        return [*(watched.capture for watched in self._watched.values()), *self._leaving]

    def add(self, camera: CameraConfig) -> None:
        """Reads one more camera from now on, if it is enabled; one of the same name goes on counting."""
        if not camera.enabled:
            return
        before = self._watched.get(camera.name)
        if before is None:
            watched = Watched(self._new_capture(camera, 0))
        else:
            self._end(before.capture)
            watched = Watched(self._new_capture(camera, before.capture.next_index))
            watched.before = _totals(before)
            watched.abandoned = before.abandoned
        self._watched[camera.name] = watched
        watched.capture.start()

    def change(self, camera: CameraConfig) -> None:
        """New settings that need no new connection."""
        self._watched[camera.name].capture.camera = camera

    def remove(self, name: str) -> None:
        """Reads a camera no longer."""
        watched = self._watched.pop(name)
        self._end(watched.capture)
        self._removed += _totals(watched)

    def _end(self, capture: Capture) -> None:
        capture.stop.set()
        self._leaving = [each for each in self._leaving if not each.join(0)] + [capture]

    def config_of(self, name: str) -> CameraConfig:
        """The settings a camera has now."""
        return self._watched[name].capture.camera

    @property
    def names(self) -> list[str]:
        """All cameras, in the order in which they were added."""
        return list(self._watched)

    def take_frames(self) -> list[Frame]:
        """At most one frame of each camera that has one ready, and `max_batch` in all: the cameras take turns."""
        names = list(self._watched)
        turn = self._turn % max(len(names), 1)
        frames: list[Frame] = []
        for offset, name in enumerate(names[turn:] + names[:turn]):
            frame = self._watched[name].capture.slot.take()
            if frame is not None:
                frames.append(frame)
            if len(frames) == self._max_batch:
                self._turn = turn + offset + 1
                break
        order = {name: place for place, name in enumerate(names)}
        return sorted(frames, key=lambda frame: order[frame.camera])

    def take_changes(self) -> list[StatusChange]:
        """The states that changed since the last call; `ended` only once the last frame was taken.

        An attempt that fails as the one before did changes nothing; `since` is when the state began, though the
        reason may be new. Raises what a capture thread died of, if that was an error of the program.
        """
        waiting, self._held_back = self._held_back, []
        while not self._reported.empty():
            waiting.append(self._reported.get_nowait())
        changes = [change for capture, change in waiting if self._is_due(capture, change)]
        for change in changes:
            if change.failure is not None:
                raise change.failure
        return self._noted(changes) + self._noted(self._silences())

    def _is_due(self, capture: Capture, change: StatusChange) -> bool:
        watched = self._watched.get(change.camera)
        if watched is None or watched.capture is not capture:
            return False  # the last words of a capture that was replaced
        due = change.state != "ended" or not capture.slot.depth()
        if not due:
            self._held_back.append((capture, change))
        return due

    def _noted(self, changes: Sequence[StatusChange]) -> list[StatusChange]:
        """Those of the changes that are ones; the state they tell of may have begun earlier."""
        news = []
        for change in changes:
            watched = self._watched[change.camera]
            if watched.told and change.state == watched.state:
                if change.reason == watched.reason:
                    continue
                change = replace(change, since=watched.since)
            watched.state, watched.reason, watched.since = change.state, change.reason, change.since
            watched.told = True
            news.append(change)
        return news

    def _silences(self) -> list[StatusChange]:
        changes = []
        for name, watched in self._watched.items():
            capture, state = watched.capture, watched.state
            silent_s = (time.monotonic_ns() - capture.last_frame_ns) / 1e9
            silent = silent_s > capture.camera.stalled_after_s
            if capture.live and state == "online" and silent:
                reason = f"no frame for {capture.camera.stalled_after_s:g} s"
                changes.append(StatusChange(name, "stalled", reason, datetime.now(UTC)))
            elif state == "stalled" and not silent:
                changes.append(StatusChange(name, "online", None, datetime.now(UTC)))
            elif state == "stalled" and self._hangs(watched, silent_s):
                changes.append(self._replace(name, watched))
        return changes

    def _hangs(self, watched: Watched, silent_s: float) -> bool:
        camera = watched.capture.camera
        patience_s = camera.stalled_after_s + camera.read_timeout_s + HUNG_GRACE_S
        may = watched.abandoned is None or watched.abandoned.join(0)
        return may and silent_s > patience_s

    def _replace(self, name: str, watched: Watched) -> StatusChange:
        """A capture that its own time-outs did not free is left behind, and another one tries."""
        watched.abandoned = watched.capture
        self.add(watched.capture.camera)
        return StatusChange(name, "reconnecting", "the source hangs; connecting anew", datetime.now(UTC))

    @property
    def names_not_ended(self) -> list[str]:
        """The cameras that may still give frames."""
        return [name for name, watched in self._watched.items() if watched.state != "ended"]

    @property
    def have_ended(self) -> bool:
        """Whether there are cameras, and all are at their end."""
        return bool(self._watched) and not self.names_not_ended

    def states(self) -> dict[str, Watched]:
        """Every camera as it is now."""
        return dict(self._watched)

    def counts(self, name: str) -> CameraCounts:
        """What became of a camera's frames; all 0 for one that was removed meanwhile."""
        watched = self._watched.get(name)
        totals: Counter[str] = Counter() if watched is None else _totals(watched, closing=False)
        dropped = _drops(totals)
        waiting = totals["in"] - totals["taken"] - dropped.total()
        return CameraCounts(totals["in"], totals["taken"], dropped, waiting, totals["connections"])

    def tally(self) -> Tally:
        """The frames of all cameras, those removed among them."""
        counts = {name: self.counts(name) for name in self.states()}
        dropped = Counter(superseded=0)
        for each in (_drops(self._removed), *(each.dropped for each in counts.values())):
            dropped.update(each)
        num_in = self._removed["in"] + sum(each.num_in for each in counts.values())
        return Tally(num_in, dropped, {name: each.waiting for name, each in counts.items()})


def _drops(totals: Counter[str]) -> Counter[str]:
    """Frames not processed, by reason."""
    return Counter({key[5:]: num for key, num in totals.items() if key.startswith("drop_")})


def _totals(watched: Watched, *, closing: bool = True) -> Counter[str]:
    """What came in, was taken and was dropped. closing: what still waits counts as dropped."""
    capture = watched.capture
    skipped = capture.num_skipped
    counts = capture.slot.counts()
    reason = "max_fps" if capture.camera.max_fps else "unreadable"
    now = Counter({"in": counts.num_in + skipped, "taken": counts.num_taken})
    now += Counter({"drop_superseded": counts.num_dropped, f"drop_{reason}": skipped})
    now += Counter({"connections": capture.num_connections})
    if closing:
        now += Counter({"drop_closed": counts.waiting})
    return watched.before + now
