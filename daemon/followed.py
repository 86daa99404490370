"""What is known of one person while they are followed, and when it is due to be looked at again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from daemon.attributes import AttributeMeans
from daemon.identity import IdentityVote
from daemon.records import Frame, Identity, Quality, TrackBest, box_record, round_score
from engines.geometry import mirrored
from engines.image_ops import Picture

Floats = NDArray[np.float32]

HURRY = 4
"""How many times as often a track is looked at until it is decided who it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One face in one frame, with all that is seen in it.

    box_xyxy (4,) and landmarks (5, 2) in px of the frame; aligned_crop (112, 112, 3) uint8 BGR, where
    the engines run, or its mirror image; weight: how much the look counts beside others of the same track, 0 to 1.
    """

    frame: Frame
    person: Followed
    box_xyxy: Floats
    score: float
    landmarks: Floats
    aligned_crop: Picture
    quality: Quality
    weight: float

    @property
    def size_px(self) -> float:
        """The root of the box's area."""
        return float(np.sqrt((self.box_xyxy[2:] - self.box_xyxy[:2]).prod()))


@dataclass(slots=True)
class LastLook:
    """When a model last saw a face, and how good that look was. times: how often it saw one."""

    time_ns: int | None = None
    weight: float = 0.0
    size_px: float = 0.0
    times: int = 0

    def next_side(self, matrix: Floats, width: int) -> Floats:
        """The 2x3 map to the next look's crop, `width` px wide: every second one is the mirror image.

        A model says something else of a face than of its mirror image; the mean over a track is then of both.
        """
        return mirrored(matrix, width) if self.times % 2 else matrix

    def is_due(self, look: Look, interval_s: float, quality_gain: float, growth: float) -> bool:
        """Whether time has passed, or the face is now seen better or larger."""
        if self.time_ns is None:
            return True
        # Half a millisecond of grace: frame times are rounded.
        waited = look.frame.time_ns - self.time_ns >= interval_s * 1e9 - 500_000
        better = look.weight >= self.weight * quality_gain or look.size_px >= self.size_px * growth
        return waited or better

    def note(self, look: Look) -> None:
        """Remembers a look that was used."""
        self.time_ns, self.weight, self.size_px = look.frame.time_ns, look.weight, look.size_px
        self.times += 1


@dataclass(slots=True)
class Followed:
    """A track as the events tell it: whether it is told of yet, and `told`, the identity that was last announced."""

    track: int
    started_at: datetime
    vote: IdentityVote | None
    attributes: AttributeMeans | None
    announced: bool = False
    told: Identity | None = None
    last_seen_at: datetime | None = None
    frames: int = 0
    best: TrackBest | None = None
    best_weight: float = -1.0
    embedded: LastLook = field(default_factory=LastLook)
    classified: LastLook = field(default_factory=LastLook)

    def see(self, look: Look) -> None:
        """Counts a frame in, and keeps the best look."""
        self.frames += 1
        self.last_seen_at = look.frame.captured_at
        if look.weight > self.best_weight:
            self.best_weight = look.weight
            self.best = TrackBest(
                frame_index=look.frame.index,
                box_xyxy=box_record(look.box_xyxy),
                score=round_score(look.score),
                quality=look.quality,
            )
