"""Who a face is: matched against the gallery, and voted over a track. Similarities are cosines.

A track's usable looks vote by being averaged, weighted by their quality: what is wrong in one look differs
from look to look and goes under, what is the person's own stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.config import IdentityConfig
from daemon.looks import GallerySnapshot
from daemon.records import Identity, round_score
from engines.spec import ModelSpec

Floats = NDArray[np.float32]

DEFAULT_THRESHOLD = 0.4
"""For an embedder whose spec names none."""

STAY = 0.05
"""How far a name, once given, may fall below the threshold before it is taken back."""

STRANGE_SHARE = 0.5
"""A look less similar to the others than this share of the threshold is of somebody else, or worthless."""

NUM_STRANGE = 3
"""After so many strange looks in a row the track has gone over to another person."""


def threshold_of(settings: IdentityConfig, spec: ModelSpec) -> float:
    """The cosine from which two faces are one person: the configured one, or the embedder's own."""
    if settings.threshold is not None:
        return settings.threshold
    return DEFAULT_THRESHOLD if spec.threshold is None else spec.threshold


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest person and the lead over the second nearest; None where there is no such person."""

    name: str | None
    similarity: float | None
    margin: float | None


def match(snapshot: GallerySnapshot, embedding: Floats) -> Match:
    """The match of one unit embedding (D,)."""
    (similarities,) = snapshot.similarities(embedding[None])
    if not similarities.size:
        return Match(None, None, None)
    best = int(similarities.argmax())
    second = np.delete(similarities, best)
    margin = float(similarities[best] - second.max()) if second.size else None
    return Match(snapshot.names[best], float(similarities[best]), margin)


def judged(found: Match, threshold: float, min_margin: float, before: str | None = None) -> Identity:
    """A match as known or unknown; `before` is the name the track already has, which is easier to keep."""
    similar = found.similarity is not None and found.similarity >= (
        threshold - STAY if before is not None and found.name == before else threshold
    )
    leads = found.margin is None or found.margin >= min_margin or found.name == before
    known = similar and leads
    return Identity(
        name=found.name if known else None,
        status="known" if known else "unknown",
        similarity=None if found.similarity is None else round_score(found.similarity),
        margin=None if found.margin is None else round_score(found.margin),
        threshold=round_score(threshold),
    )


class IdentityVote:
    """The looks of one track, and who they say it is."""

    def __init__(self, settings: IdentityConfig, threshold: float) -> None:
        self._settings = settings
        self._threshold = threshold
        self._looks: deque[tuple[Floats, float]] = deque(maxlen=settings.max_votes)
        self._num_strange = 0
        self._judged_for: GallerySnapshot | None = None
        self.result = undecided(threshold)

    @property
    def embedding(self) -> Floats | None:
        """The newest look's (D,) unit vector."""
        return self._looks[-1][0] if self._looks else None

    @property
    def is_decided(self) -> bool:
        """Whether there were looks enough to say something."""
        return len(self._looks) >= self._settings.min_votes

    def judge_by(self, threshold: float) -> None:
        """Another threshold: the looks so far are judged anew, a name that was given before is no easier to keep."""
        if threshold != self._threshold:
            self._threshold = threshold
            self._judged_for, self.result = None, undecided(threshold)

    def add(self, embedding: Floats, weight: float) -> bool:
        """Takes a usable look in: a (D,) unit vector and how much it counts.

        Returns whether the looks before it were forgotten, since it is the last of several of another person.
        """
        self._num_strange = self._num_strange + 1 if self._is_strange(embedding) else 0
        self._looks.append((embedding, max(weight, 1e-3)))
        self._judged_for = None
        if self._num_strange < NUM_STRANGE:
            return False
        kept = list(self._looks)[-NUM_STRANGE:]
        self._looks.clear()
        self._looks.extend(kept)
        self._num_strange = 0
        self.result = undecided(self._threshold)
        return True

    def decide(self, snapshot: GallerySnapshot) -> Identity:
        """Who it is, by the people of now."""
        if self._judged_for is snapshot:
            return self.result
        self._judged_for = snapshot
        if not snapshot.names or self.is_decided:
            found = match(snapshot, self._mean()) if snapshot.names else Match(None, None, None)
            self.result = judged(found, self._threshold, self._settings.min_margin, self.result.name)
        else:
            self.result = undecided(self._threshold)
        return self.result

    def _is_strange(self, embedding: Floats) -> bool:
        if len(self._looks) < NUM_STRANGE:
            return False
        return float(embedding @ self._mean()) < STRANGE_SHARE * self._threshold

    def _mean(self) -> Floats:
        steady = list(self._looks)
        if 0 < self._num_strange < len(steady):  # strange looks vote only once they have won
            steady = steady[: -self._num_strange]
        weights = np.array([weight for _, weight in steady], np.float32)
        total = weights @ np.stack([vector for vector, _ in steady])
        return (total / max(float(np.linalg.norm(total)), 1e-9)).astype(np.float32)


def without_doubles(identities: Sequence[Identity]) -> list[Identity]:
    """The identities of one frame's faces: nobody is in two places, a name stays with the most similar."""
    best: dict[str, float] = {}
    for identity in identities:
        if identity.name is not None:
            best[identity.name] = max(best.get(identity.name, -2.0), identity.similarity or 0.0)
    settled: list[Identity] = []
    taken: set[str] = set()
    for identity in identities:
        name = identity.name
        if name is not None and (name in taken or (identity.similarity or 0.0) < best[name]):
            identity = msgspec.structs.replace(identity, name=None, status="undecided")
        elif name is not None:
            taken.add(name)
        settled.append(identity)
    return settled


def undecided(threshold: float) -> Identity:
    """Nothing is known yet."""
    return Identity(
        name=None, status="undecided", similarity=None, margin=None, threshold=round_score(threshold)
    )
