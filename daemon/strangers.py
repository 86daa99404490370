"""Who comes again and is not enrolled: the unknown tracks of recorded events, grouped by who they are of.

K tracks, D embedding size. Similarities are cosines.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from daemon.jsonl import REPLAY_EPOCH
from daemon.looks import EnrolledLook
from daemon.records import FacesEvent, decode
from engines.errors import MienError, UsageError

Floats = NDArray[np.float32]
NUM_LOOKS = 8
"""The newest looks that a track is known by."""

ALIKE = 0.3
"""Cosine to the newest look from which another is of the same person; the track may have gone over to another."""

TrackId = tuple[int, str, int, str, int]  # file, instance, epoch, camera, number


@dataclass(slots=True)
class Seen:
    """An unknown track. looks: (D,) unit vectors, the newest last; interocular_px: the largest."""

    camera: str
    track: int
    first: datetime
    last: datetime
    looks: deque[Floats] = field(default_factory=lambda: deque(maxlen=NUM_LOOKS))
    frames: int = 0
    interocular_px: float = 0.0

    @property
    def embedding(self) -> Floats:
        """(D,) unit vector: the mean of the looks like the newest, which are of both sides by turns."""
        looks = np.stack(self.looks)
        mean = looks[looks @ looks[-1] >= ALIKE].mean(0)
        unit: Floats = mean / max(float(np.linalg.norm(mean)), 1e-9)
        return unit


@dataclass(frozen=True, slots=True)
class Stranger:
    """One person's unknown tracks, in the order in which they were seen."""

    tracks: tuple[Seen, ...]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(sorted({seen.camera for seen in self.tracks}))

    @property
    def frames(self) -> int:
        return sum(seen.frames for seen in self.tracks)

    def looks(self, model: str) -> list[EnrolledLook]:
        """To be enrolled, one for each track; `model` is the embedder that the events were made with."""
        return [
            EnrolledLook(
                model,
                seen.embedding,
                f"{seen.camera}, track {seen.track}, {seen.last.isoformat(timespec='seconds')}",
                hashlib.sha256(seen.embedding.tobytes()).hexdigest(),
                seen.interocular_px,
            )
            for seen in self.tracks
        ]


def strangers(paths: Sequence[Path], threshold: float) -> list[Stranger]:
    """The unknown people of recorded events, those with most tracks and frames first.

    threshold: the mean similarity from which two groups of tracks are one person. Raises MienError for a file that
    cannot be read, or whose events carry no embeddings.
    """
    unknown = list(unknown_tracks(paths).values())
    if not unknown:
        return []
    sizes = {seen.embedding.shape for seen in unknown}
    if len(sizes) > 1:
        raise MienError(f"{paths[0]}: embeddings of {len(sizes)} lengths: give events of one embedder alone")
    labels = grouped(np.stack([seen.embedding for seen in unknown]), threshold)
    people = [
        Stranger(tuple(seen for seen, its in zip(unknown, labels, strict=True) if its == label))
        for label in range(max(labels) + 1)
    ]
    return sorted(people, key=lambda person: (-len(person.tracks), -person.frames))


def chosen(people: Sequence[Stranger], number: int) -> Stranger:
    """The person of a row of the table; raises UsageError where there is none."""
    if not 1 <= number <= len(people):
        raise UsageError(f"number {number}: there are {len(people)} strangers, numbered from 1")
    return people[number - 1]


def strangers_table(people: Sequence[Stranger]) -> Table:
    """A row for each person."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("number", "tracks", "frames", "first", "last", "where: tracks"):
        numeric = heading in ("number", "tracks", "frames")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading[0] != "w")
    for number, person in enumerate(people, 1):
        first = min(seen.first for seen in person.tracks)
        last = max(seen.last for seen in person.tracks)
        when = [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (first, last)]
        counts = [str(n) for n in (number, len(person.tracks), person.frames)]
        table.add_row(*counts, *when, Text(_where(person)))  # as it is: others' names may look like markup
    return table


def _where(person: Stranger) -> str:
    """Such as `door: 1, 4; yard: 2`, at most the last three tracks of a camera."""
    numbers = {
        camera: [str(seen.track) for seen in person.tracks if seen.camera == camera]
        for camera in person.cameras
    }
    return "; ".join(
        f"{camera}: {'..., ' if len(tracks) > 3 else ''}{', '.join(tracks[-3:])}"
        for camera, tracks in numbers.items()
    )


def unknown_tracks(paths: Sequence[Path]) -> dict[TrackId, Seen]:
    """Every track with an embedding that had no name at its end."""
    tracks: dict[TrackId, Seen] = {}
    faces = bare = 0
    for file, event in recorded(paths):
        for face in event.faces:
            faces += 1
            # A daemon's tracks go on in the next file; every replay counts them anew, in the same epoch.
            apart = file if event.epoch == REPLAY_EPOCH else 0
            key = (apart, event.instance, event.epoch, event.camera, face.track)
            if not face.embedding:
                bare += isinstance(face.embedding, msgspec.UnsetType)
                continue
            if face.identity and face.identity.status == "known":
                tracks.pop(key, None)
                continue
            vector = np.array(face.embedding, np.float32)
            at = event.frame.captured_at
            seen = tracks.setdefault(key, Seen(event.camera, face.track, at, at))
            # An event carries the newest look until there is another.
            if not seen.looks or (vector != seen.looks[-1]).any():
                seen.looks.append(vector)
            seen.last, seen.frames = at, seen.frames + 1
            seen.interocular_px = max(seen.interocular_px, face.quality.interocular_px)
    if faces and bare == faces:
        raise MienError(
            f"{paths[0]}: the events carry no embeddings; record them with `mien replay --embeddings`, or with"
            " `publish: {embeddings: true}`"
        )
    return tracks


def recorded(paths: Sequence[Path]) -> Iterator[tuple[int, FacesEvent]]:
    """The faces events of files of JSON lines, one after the other, each with its file's number."""
    for file, path in enumerate(paths):
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    event = _event(path, number, line) if line.strip() else None
                    if isinstance(event, FacesEvent):
                        yield file, event
        except OSError as error:
            raise MienError(f"{path}: cannot be read: {error.strerror}") from None


def _event(path: Path, number: int, line: bytes) -> object:
    try:
        return decode(line)
    except msgspec.DecodeError as error:
        raise MienError(
            f"{path}, line {number}: is no event ({error}); give what `mien replay --out` wrote"
        ) from None


def grouped(embeddings: Floats, threshold: float) -> list[int]:
    """(K, D) unit rows -> the group of each, numbered as they first appear.

    The two groups whose members are most alike on average become one, as long as that is at least `threshold`: average
    linkage, by chains of nearest neighbours (Murtagh 1983), in K * K steps.
    """
    sums, sizes = embeddings.astype(np.float64), np.ones(len(embeddings))
    owner = np.arange(len(embeddings))
    alive = np.ones(len(embeddings), bool)
    chain: list[int] = []
    while alive.any():
        if not chain:
            chain.append(int(np.flatnonzero(alive)[0]))
        top = chain[-1]
        alike = np.where(alive, sums @ sums[top] / (sizes * sizes[top]), -np.inf)
        alike[top] = -np.inf
        best = int(alike.argmax())
        # Of equally near ones the chain turns back, or it would not end.
        if len(chain) > 1 and alike[chain[-2]] >= alike[best]:
            best = chain[-2]
        if alike[best] < threshold:
            # Groups that become one are no nearer on average than the nearer of them: this one stays as it is.
            alive[top] = False
            chain.pop()
        elif len(chain) > 1 and best == chain[-2]:
            sums[best] += sums[top]
            sizes[best] += sizes[top]
            owner[owner == top] = best
            alive[top] = False
            del chain[-2:]
        else:
            chain.append(best)
    first = {int(group): i for i, group in enumerate(dict.fromkeys(owner))}
    return [first[int(group)] for group in owner]
