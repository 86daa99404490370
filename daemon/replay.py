"""Videos through the pipeline, frame by frame: events to files and subscribers, pictures to video."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from daemon.annotate import annotate
from daemon.config import CameraConfig
from daemon.decoding import DEFAULT_FPS
from daemon.images import list_images
from daemon.paths import text_of
from daemon.pipelines import Pipeline
from daemon.prefetch import prefetched
from daemon.publisher import EventSink
from daemon.records import Event, Face, FacesEvent, Frame, State, StatusEvent, TrackEvent
from daemon.secrecy import redact_source
from daemon.sources import EPOCH, paced, probe_video, read_source, source_kind
from daemon.video_file import VideoFile
from engines.errors import MienError

MAX_CAMERA_NAME = 64


class SourceFailedError(MienError):
    """A source could not be read to its end; another may well be."""


@dataclass(slots=True)
class ReplayResult:
    """What came of one video: `tracks` are the `left` events in the order of their tracks."""

    camera: str
    frames: int = 0
    frames_with_faces: int = 0
    seconds: float = 0.0
    tracks: list[TrackEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replay:
    """How videos are replayed. `live` gives frames an arrival time, so that events tell of latency.

    `told` is called after each frame, for a progress bar.
    """

    pipeline: Pipeline
    sinks: Sequence[EventSink]
    start: datetime = EPOCH
    live: bool = False
    told: Callable[[], None] = lambda: None

    def run(self, camera: CameraConfig, annotated: Path | None = None) -> ReplayResult:
        """Replays one source from its beginning to its end.

        Raises SourceFailedError where it cannot be read; the annotated video is then not written, and the
        events end with the reason. Raises MienError where what is to be written cannot be.
        """
        result, started_s = ReplayResult(camera.name), time.monotonic()
        with ExitStack() as stack:
            frames = stack.enter_context(prefetched(self._frames(camera)))
            video = stack.enter_context(VideoFile(annotated, fps=_fps(camera))) if annotated else None
            last: Frame | None = None
            try:
                for frame in frames:
                    if last is None:
                        self._tell(self._status(camera, "online", frame))
                    last = frame
                    self._take(frame, result, video)
            except SourceFailedError as error:
                self._end(camera, last, result, text_of(str(error)))
                raise
            self._end(camera, last, result, "the end of the video")
        result.seconds = time.monotonic() - started_s
        return result

    def _frames(self, camera: CameraConfig) -> Iterator[Frame]:
        with _reading():
            frames: Iterable[Frame] = read_source(camera, start=self.start)
            if camera.speed == "realtime":
                frames = paced(frames)
            for frame in frames:
                yield replace(frame, monotonic_ns=time.monotonic_ns()) if self.live else frame

    def _take(self, frame: Frame, result: ReplayResult, video: VideoFile | None) -> None:
        events = self.pipeline.process([frame])
        faces = _faces_of(events)
        result.frames += 1
        result.frames_with_faces += bool(faces)
        result.tracks += _ended(events)
        for event in events:
            self._tell(event)
        if video is not None:
            video.write(annotate(frame.image, faces), frame.time_ns / 1e9)
        self.told()

    def _end(self, camera: CameraConfig, last: Frame | None, result: ReplayResult, reason: str) -> None:
        events = self.pipeline.close_camera(camera.name)
        result.tracks += _ended(events)
        result.tracks.sort(key=lambda event: event.track)
        for event in events:
            self._tell(event)
        if last is not None:
            self._tell(self._status(camera, "ended", last, reason))

    def _status(
        self, camera: CameraConfig, state: State, frame: Frame, reason: str | None = None
    ) -> StatusEvent:
        return StatusEvent(camera=camera.name, state=state, reason=reason, since=frame.captured_at)

    def _tell(self, event: Event) -> None:
        for sink in self.sinks:
            sink.publish(event)


@contextmanager
def _reading() -> Iterator[None]:
    """Within, a failure is told as one of the source."""
    try:
        yield
    except MienError as error:
        raise SourceFailedError(str(error)) from None


def replay_cameras(sources: Sequence[str | Path], template: CameraConfig) -> list[CameraConfig]:
    """A camera for each video or folder, named after it, with the settings of the template."""
    cameras: list[CameraConfig] = []
    for source in sources:
        taken = {camera.name for camera in cameras}
        name = _unique(_camera_name(str(source)), taken)
        cameras.append(template.model_copy(update={"name": name, "source": str(source)}))
    return cameras


def num_frames(camera: CameraConfig) -> int:
    """How many frames a source says it has, 0 where it does not; raises MienError where it cannot be read."""
    if source_kind(camera.source) == "folder":
        return len(list_images(Path(camera.source)))
    if source_kind(camera.source) != "video":
        shown = redact_source(camera.source)
        raise MienError(
            f"{shown}: is live; replay takes video files and folders of images, `mien run` the rest"
        )
    return probe_video(Path(camera.source)).num_frames


def _camera_name(source: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).resolve().stem).strip("-_")
    return name[: MAX_CAMERA_NAME - 4] or "video"


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _fps(camera: CameraConfig) -> float:
    fps = DEFAULT_FPS
    if source_kind(camera.source) == "video":
        with _reading():
            fps = probe_video(Path(camera.source)).fps
    return min(fps, camera.max_fps or fps)


def _faces_of(events: Sequence[Event]) -> tuple[Face, ...]:
    return next((event.faces for event in events if isinstance(event, FacesEvent)), ())


def _ended(events: Sequence[Event]) -> list[TrackEvent]:
    return [event for event in events if isinstance(event, TrackEvent) and event.phase == "left"]
