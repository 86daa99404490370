"""Who was seen from when to when, for people."""

from __future__ import annotations

from datetime import datetime

from msgspec import UnsetType
from rich.table import Table
from rich.text import Text

from daemon.records import TrackEvent
from daemon.replay import ReplayResult


def summary_table(result: ReplayResult, start: datetime) -> Table:
    """A row for each track of one video, in the order in which they entered."""
    table = Table(
        title=f"{result.camera}: who was seen", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    for heading in ("track", "who", "cosine", "from", "to", "frames", "age", "gender", "emotion"):
        numeric = heading in ("track", "cosine", "from", "to", "frames", "age")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for track in result.tracks:
        table.add_row(*map(Text, _row(track, start)))
    return table


def speed_line(result: ReplayResult) -> str:
    """How much was done, and how fast."""
    fps = result.frames / result.seconds if result.seconds else 0.0
    return (
        f"{result.camera}: {result.frames} frames, {result.frames_with_faces} with a face,"
        f" in {result.seconds:.1f} s ({fps:.1f} frames/s)"
    )


def _row(track: TrackEvent, start: datetime) -> list[str]:
    identity = track.identity
    if isinstance(identity, UnsetType) or identity is None:
        who, similarity = "", ""
    else:
        who = identity.name or identity.status
        similarity = "" if identity.similarity is None else f"{identity.similarity:.2f}"
    return [
        str(track.track),
        who,
        similarity,
        _clock(track.started_at, start),
        _clock(track.ended_at or track.started_at, start),
        str(track.frames),
        _shown(track.age),
        _shown(track.gender),
        _shown(track.max_emotion),
    ]


def _clock(moment: datetime, start: datetime) -> str:
    minutes, seconds = divmod((moment - start).total_seconds(), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"


def _shown(value: object) -> str:
    if value is None or isinstance(value, UnsetType):
        return ""
    return f"{value:.0f}" if isinstance(value, float) else str(value)
