"""Why a track was not named, by the events of a file of JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from daemon.config import Config
from daemon.explain import Cause, Explanation, identity_causes, taken
from daemon.followed import HURRY
from engines.errors import MienError, UsageError

MAX_TRACKS_SHOWN = 20
WORDS = {
    "too_small": "too small",
    "blurred": "blurred",
    "averted": "averted",
    "bad_light": "badly lit",
    "cut_off": "cut off by the edge of the frame",
    "low_score": "a face the detector is unsure of",
}
SETTINGS = {
    "too_small": "quality.min_interocular_px",
    "blurred": "quality.min_sharpness",
    "averted": "quality.max_yaw",
    "bad_light": "quality.min_brightness",
    "low_score": "quality.min_score",
}


@dataclass(slots=True)
class TrackStory:
    """What the events tell of one track. `identity` is the last one told, None where naming is off."""

    camera: str
    num_frames: int = 0
    num_usable: int = 0
    usable_at: list[datetime] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    best_px: float = 0.0
    identity: dict[str, Any] | None = None

    def take_face(self, face: dict[str, Any], moment: datetime) -> None:
        """One look at the face."""
        quality = face["quality"]
        self.num_frames += 1
        self.best_px = max(self.best_px, quality["interocular_px"])
        self.reasons.update(quality["reasons"])
        self.identity = face.get("identity", self.identity)
        if quality["usable"]:
            self.num_usable += 1
            self.usable_at = [self.usable_at[0] if self.usable_at else moment, moment]

    @property
    def usable_s(self) -> float:
        """From the first usable look to the last."""
        return (self.usable_at[1] - self.usable_at[0]).total_seconds() if self.usable_at else 0.0


def explain_track(path: Path, track: int, camera: str | None, config: Config) -> Explanation:
    """Raises MienError for a file that holds no events, UsageError where the track is not in it or in several
    cameras' events.
    """
    stories = _stories(path)
    cameras = sorted({name for name, _, _, number in stories if number == track and camera in (None, name)})
    if len(cameras) > 1:
        raise UsageError(f"{path}: several cameras have a track {track}: {', '.join(cameras)}; give --camera")
    if not cameras:
        known = sorted({(name, number) for name, _, _, number in stories if camera in (None, name)})
        shown = ", ".join(f"{name} {number}" for name, number in known[:MAX_TRACKS_SHOWN]) or "none"
        raise UsageError(f"{path}: tells of no such track; there are: {shown}")
    newest = max(key for key in stories if key[0] == cameras[0] and key[3] == track)
    return _explained(stories[newest], track, config)


def _stories(path: Path) -> dict[tuple[str, int, str, int], TrackStory]:
    """By camera, epoch, instance and track."""
    stories: dict[tuple[str, int, str, int], TrackStory] = {}

    def story(event: dict[str, Any], track: int) -> TrackStory:
        key = (event["camera"], event["epoch"], event["instance"], track)
        return stories.setdefault(key, TrackStory(event["camera"]))

    for number, event in _events(path):
        try:
            if event["schema"] == "mien.faces/1":
                moment = datetime.fromisoformat(event["frame"]["captured_at"])
                for face in event["faces"]:
                    story(event, face["track"]).take_face(face, moment)
            elif event["schema"] == "mien.track/1":
                told = story(event, event["track"])
                told.identity = event.get("identity", told.identity)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MienError(
                f"{path}: line {number} is no Mien event; give a file of mien replay --out"
            ) from None
    return stories


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, msgspec.json.decode(line, type=dict[str, Any])
    except OSError as error:
        raise MienError(f"{path}: cannot be read ({error.strerror}); check the name") from None
    except (ValueError, RecursionError):
        raise MienError(f"{path}: is no file of JSON lines; give one of mien replay --out") from None


def _explained(story: TrackStory, track: int, config: Config) -> Explanation:
    identity = story.identity or {}
    name, status = identity.get("name"), identity.get("status")
    similarity, margin, threshold = (identity.get(key) for key in ("similarity", "margin", "threshold"))
    causes: tuple[Cause, ...] = ()
    if story.identity is None:
        causes = (
            Cause("identity_off", f"naming is switched off for camera {story.camera}", setting="identity"),
        )
    elif name is None:
        causes = _quality_causes(story)
        if status == "undecided" and similarity is not None:
            causes += (taken(None),)
        elif status == "undecided":
            causes += _too_few(story, config)
        else:
            causes += identity_causes(None, similarity, margin, threshold or 1.0, config.identity)
    frames = f"{story.num_frames} frame{'s' * (story.num_frames != 1)}, {story.num_usable} of them usable"
    return Explanation(
        subject=f"camera {story.camera}, track {track} ({frames})",
        name=name,
        similarity=similarity,
        margin=margin,
        threshold=threshold,
        causes=causes,
    )


def _quality_causes(story: TrackStory) -> tuple[Cause, ...]:
    causes = []
    for reason, num in story.reasons.most_common():
        words = f"{WORDS.get(reason, reason)} in {num} of {story.num_frames} frames"
        if reason == "too_small":
            words += f"; the eyes were {story.best_px:.1f} px apart at best"
        causes.append(Cause(reason, words, num, setting=SETTINGS.get(reason)))
    return tuple(causes)


def _too_few(story: TrackStory, config: Config) -> tuple[Cause, ...]:
    needed, apart_s = config.identity.min_votes, config.identity.interval_s / HURRY
    if not story.num_frames:
        words = "the events hold no look at it, only that it was there"
        return (Cause("no_faces_events", words),)
    words = (
        f"too few usable looks: {story.num_usable} within {story.usable_s:.1f} s; "
        f"{needed} are needed, taken {apart_s:.2f} s apart"
    )
    return (Cause("too_few_looks", words, story.num_usable, needed, "identity.min_votes"),)
