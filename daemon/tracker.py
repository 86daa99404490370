"""Faces of successive frames joined into tracks, by where each was expected and what it looks like.

One tracker a camera. A face moves on at its speed while it is not seen; a faint detection continues a track
but begins none, as in Zhang et al. 2022, "ByteTrack", sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.assignment import assign
from daemon.config import TrackingConfig
from engines.geometry import iou_matrix
from engines.stages import Detections

Floats = NDArray[np.float32]

GLIDE_S = 1.0
"""An unseen face slows down with this time constant: nobody keeps a course for long."""

REACH_PER_S = 1.5
"""How many widths of the face the permitted distance grows by for each second unseen."""

STEADY_GAIN = 0.3
"""Share of a deviation that goes into the speed once a track is some frames old."""

APPEARANCE_GAIN = 0.1
APPEARANCE_WEIGHT = 1.0
SIZE_WEIGHT = 0.5
MIN_SIZE_RATIO = 0.4
"""Of the roots of the areas: who comes out from behind another is seen as a strip first."""

UNSEEN_COST = 1.2
"""What it costs to leave a track unseen: a pair that costs more is none."""

FAINT_S = 0.5
"""A faint detection continues a track only this soon after it was last seen."""

CROWDED_MARGIN = 0.25
"""Faces whose boxes, widened by this share on every side, meet: one may hide the other."""

HIDDEN_SHARE = 0.9
"""A crowded face with less than this share of the area that it had alone is partly behind the other."""

SHRINK_GAIN = 0.02
"""Share by which a crowded face is believed to be smaller: two who walk away side by side do shrink."""

HIDDEN_GAIN = 0.1
"""Share of a deviation that moves a hidden face: what is seen of it is not its middle."""

SAME_FACE_COVER = 0.6
"""A new face so far covered by one already followed is that same face, found twice."""


@dataclass(slots=True)
class Track:
    """One face followed. `number` is 0 until it was seen often enough.

    box_xyxy (4,) in px is where the whole face is taken to be, also where part of it is hidden; velocity (2,)
    in px/s; whole_area in px, of the box when it last stood alone.
    """

    first_ns: int
    seen_ns: int
    box_xyxy: Floats
    velocity: NDArray[np.float64]
    appearance: Floats
    whole_area: float
    number: int = 0
    hits: int = 1
    misses: int = 0

    def expected(self, time_ns: int) -> Floats:
        """The box (4,) at a later time: moved on, gliding to a halt, of the same size."""
        elapsed_s = (time_ns - self.seen_ns) / 1e9
        gliding_s = GLIDE_S * (1 - math.exp(-elapsed_s / GLIDE_S))
        return np.asarray(self.box_xyxy + np.tile(self.velocity * gliding_s, 2), np.float32)

    def see(self, box_xyxy: Floats, appearance: Floats, time_ns: int, crowded: bool) -> None:
        """Takes a detection in."""
        expected = self.expected(time_ns)
        deviation = (_centres(box_xyxy) - _centres(expected)).astype(np.float64)
        area = _area(box_xyxy)
        if crowded and area < HIDDEN_SHARE * self.whole_area:
            # Its visible edge stands still at the one in front: it goes on as it went.
            self.box_xyxy = (expected + np.tile(HIDDEN_GAIN * deviation, 2)).astype(np.float32)
        else:
            elapsed_s = max((time_ns - self.seen_ns) / 1e9, 1e-3)
            self.velocity = self.velocity + max(STEADY_GAIN, 1 / (self.hits + 1)) * deviation / elapsed_s
            self.box_xyxy = box_xyxy
        shrunk = self.whole_area + SHRINK_GAIN * (area - self.whole_area)
        self.whole_area = max(area, shrunk) if crowded else area
        if not crowded:
            self.appearance = _unit(self.appearance + APPEARANCE_GAIN * (appearance - self.appearance))
        self.seen_ns, self.hits, self.misses = time_ns, self.hits + 1, 0


@dataclass(frozen=True, slots=True)
class Tracked:
    """What one frame did: tracks[i] is the track of detection i, None where it has none (yet)."""

    tracks: tuple[Track | None, ...]
    ended: tuple[Track, ...]


class Tracker:
    """Follows the faces of one camera. Numbers start at 1 and are never given twice."""

    def __init__(self, settings: TrackingConfig, start_score: float) -> None:
        self._settings = settings
        self.start_score = start_score
        self._tracks: list[Track] = []
        self._last_number = 0

    def update(self, detections: Detections, appearances: Floats, time_ns: int) -> Tracked:
        """Takes one frame in. appearances: (N, D) unit rows, one for each detection."""
        looks = _Looks(detections.boxes_xyxy, appearances, time_ns)
        strong = detections.scores >= self.start_score
        expected = self._still_expected(time_ns)
        found = self._pairs([track for track in expected if track.number], looks, np.flatnonzero(strong))
        # A strip of somebody known must not go on as somebody new: who has a number chooses first.
        left = np.flatnonzero([here and index not in found for index, here in enumerate(strong)])
        found |= self._pairs([track for track in expected if not track.number], looks, left)
        seen = set(map(id, found.values()))
        waiting = [track for track in self._tracks if id(track) not in seen and _is_fresh(track, time_ns)]
        found |= self._pairs(waiting, looks, np.flatnonzero(~strong))
        self._see(found, looks)
        ended = self._end_lost(time_ns)
        self._begin(found, looks, np.flatnonzero(strong))
        tracks = (found.get(index) for index in range(len(strong)))
        return Tracked(tuple(track if track and track.number else None for track in tracks), ended)

    def close(self) -> tuple[Track, ...]:
        """Ends all tracks; returns those that had a number."""
        ended = tuple(track for track in self._tracks if track.number)
        self._tracks = []
        return ended

    def _still_expected(self, time_ns: int) -> list[Track]:
        # The gap between two frames may be longer than the patience: who was there last may be there still.
        patience_ns = self._settings.max_lost_s * 1e9
        return [track for track in self._tracks if not track.misses or time_ns - track.seen_ns <= patience_ns]

    def _pairs(self, tracks: Sequence[Track], looks: _Looks, chosen: NDArray[np.int64]) -> dict[int, Track]:
        """The track of each chosen detection that has one, by the detection's index."""
        if not tracks or not chosen.size:
            return {}
        cost = self._costs(tracks, looks, chosen)
        alternatives = np.full((len(tracks), len(tracks)), np.inf)
        np.fill_diagonal(alternatives, UNSEEN_COST)
        pairs = assign(np.hstack((cost, alternatives)))
        return {int(chosen[column]): tracks[row] for row, column in pairs if column < len(chosen)}

    def _costs(
        self, tracks: Sequence[Track], looks: _Looks, chosen: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(T, C): distance in widths, and how size and appearance differ; infinite where it cannot be."""
        expected = np.stack([track.expected(looks.time_ns) for track in tracks])
        boxes = looks.boxes_xyxy[chosen]
        sizes, other_sizes = _sizes(expected)[:, None], _sizes(boxes)[None]
        distance = np.linalg.norm(_centres(expected)[:, None] - _centres(boxes)[None], axis=2)
        distance = distance / ((sizes + other_sizes) / 2)
        ratio = np.minimum(sizes, other_sizes) / np.maximum(sizes, other_sizes)
        unseen_s = np.array([(looks.time_ns - track.seen_ns) / 1e9 for track in tracks])[:, None]
        reach = self._settings.max_centre_distance + REACH_PER_S * unseen_s
        near = (iou_matrix(expected, boxes) >= self._settings.min_iou) | (distance <= reach)
        alike = np.stack([track.appearance for track in tracks]) @ looks.appearances[chosen].T
        # The longer unseen, the less its place says, and the more its looks.
        nearness = self._settings.max_centre_distance / np.maximum(reach, 1e-6)
        cost = distance * nearness + SIZE_WEIGHT * (1 - ratio) + APPEARANCE_WEIGHT * (1 - alike)
        return np.where(near & (ratio >= MIN_SIZE_RATIO), cost, np.inf).astype(np.float64)

    def _see(self, found: dict[int, Track], looks: _Looks) -> None:
        for track in self._tracks:
            track.misses += 1
        # Who comes in together is numbered from left to right.
        for index, track in sorted(found.items(), key=lambda pair: float(looks.boxes_xyxy[pair[0], 0])):
            track.see(looks.boxes_xyxy[index], looks.appearances[index], looks.time_ns, looks.crowded[index])
            if not track.number and track.hits >= self._settings.min_hits:
                self._give_number(track)

    def _end_lost(self, time_ns: int) -> tuple[Track, ...]:
        """Ends tracks unseen for too long; what has no number yet ends with its first miss."""
        patience_ns = self._settings.max_lost_s * 1e9
        lost = [t for t in self._tracks if t.misses and (not t.number or time_ns - t.seen_ns > patience_ns)]
        self._tracks = [track for track in self._tracks if all(track is not other for other in lost)]
        return tuple(track for track in lost if track.number)

    def _begin(self, found: dict[int, Track], looks: _Looks, strong: NDArray[np.int64]) -> None:
        followed = [looks.boxes_xyxy[index] for index in found]
        for index in sorted(strong, key=lambda each: float(looks.boxes_xyxy[each, 0])):
            box = looks.boxes_xyxy[index]
            if index in found or any(_cover(box, other) > SAME_FACE_COVER for other in followed):
                continue
            track = Track(
                looks.time_ns, looks.time_ns, box, np.zeros(2), looks.appearances[index], _area(box)
            )
            self._tracks.append(track)
            followed.append(box)
            found[int(index)] = track
            if self._settings.min_hits == 1:
                self._give_number(track)

    def _give_number(self, track: Track) -> None:
        self._last_number += 1
        track.number = self._last_number


class _Looks:
    """The detections of one frame, and which of them have another close by."""

    def __init__(self, boxes_xyxy: Floats, appearances: Floats, time_ns: int) -> None:
        self.boxes_xyxy, self.appearances, self.time_ns = boxes_xyxy, appearances, time_ns
        self.crowded = _crowded(boxes_xyxy)


def _crowded(boxes_xyxy: Floats) -> list[bool]:
    sides = np.tile(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 2)
    wide = boxes_xyxy + sides * np.array([-1, -1, 1, 1]) * CROWDED_MARGIN
    overlaps = iou_matrix(wide.astype(np.float32), wide.astype(np.float32))
    np.fill_diagonal(overlaps, 0)
    return [bool(each) for each in overlaps.max(1, initial=0) > 0]


def _is_fresh(track: Track, time_ns: int) -> bool:
    return bool(track.number) and time_ns - track.seen_ns <= FAINT_S * 1e9


def _centres(boxes_xyxy: Floats) -> Floats:
    """(..., 2) of boxes (..., 4)."""
    return ((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2).astype(np.float32, copy=False)


def _sizes(boxes_xyxy: Floats) -> Floats:
    """(N,) the root of each box's area, in px."""
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1)
    return np.asarray(np.sqrt(sides.prod(1)), np.float32)


def _area(box_xyxy: Floats) -> float:
    return float((box_xyxy[2:] - box_xyxy[:2]).prod())


def _cover(box: Floats, other: Floats) -> float:
    """How much of the smaller of two boxes the other covers."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    smaller = min(_area(box), _area(other))
    return float(np.clip(sides, 0, None).prod()) / max(smaller, 1.0)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)
