"""What the numbers of events tell: lost, doubled, begun anew, or two daemons of one name."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

NUM_PAST_EPOCHS = 4
MAX_TOPICS = 100_000
"""How many instances and topics are followed; who invents more makes the oldest forgotten."""


@dataclass(frozen=True, slots=True)
class Irregularity:
    """What a topic's numbers tell.

    gap: `num_missing` events were lost. duplicate: an event came twice. restart: the daemon was started anew,
    and `num_missing` of its events were lost since. clash: the daemon of before speaks again, so two daemons
    run under one instance name.
    """

    kind: Literal["gap", "duplicate", "restart", "clash"]
    topic: str
    num_missing: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """One event as plain JSON values, and what its number tells."""

    topic: str
    event: dict[str, Any]
    irregularity: Irregularity | None


@dataclass(slots=True)
class _Count:
    epoch: int
    seq: int
    past: deque[int] = field(default_factory=lambda: deque(maxlen=NUM_PAST_EPOCHS))


class SequenceWatch:
    """Follows `seq` per instance and topic, directly or behind a relay.

    The first event of a topic sets the count: whoever comes late lost nothing. An event sent again (`resent`)
    is no duplicate.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Count] = {}

    def check(self, topic: str, event: dict[str, Any]) -> Irregularity | None:
        """What this event tells, given those before it."""
        key = (event["instance"], topic)
        epoch, seq = event["epoch"], event["seq"]
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= MAX_TOPICS:
                del self._counts[next(iter(self._counts))]
            self._counts[key] = _Count(epoch, seq)
            return None
        if epoch != count.epoch:
            return _other_epoch(count, topic, event)
        if seq <= count.seq:
            return None if event.get("resent") else Irregularity("duplicate", topic)
        num_missing = seq - count.seq - 1
        count.seq = seq
        return Irregularity("gap", topic, num_missing) if num_missing else None


def _other_epoch(count: _Count, topic: str, event: dict[str, Any]) -> Irregularity | None:
    epoch, seq = event["epoch"], event["seq"]
    spoke_before = epoch in count.past
    if spoke_before and event.get("resent"):
        return None
    count.past.append(count.epoch)
    count.epoch, count.seq = epoch, seq
    return Irregularity("clash", topic) if spoke_before else Irregularity("restart", topic, num_missing=seq)
