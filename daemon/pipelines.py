"""The seam between the daemon's loop and what it makes of frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.config import CameraConfig
from daemon.records import Event, Frame


class PartlyFailedError(Exception):
    """Some frames of a batch could not be processed, for this reason; `events` are those of the others.

    cameras: whose frames failed.
    """

    def __init__(self, reason: Exception, cameras: Collection[str], events: Sequence[Event]) -> None:
        super().__init__(f"{', '.join(sorted(cameras))}: {reason}")
        self.reason = reason
        self.cameras = cameras
        self.events = events


class Pipeline(Protocol):
    """Frames in, unstamped events out."""

    def process(self, frames: Sequence[Frame]) -> Sequence[Event]:
        """The events of one batch, at most one frame a camera.

        Raises PartlyFailedError where there are events though something failed.
        """

    def close_camera(self, camera: str) -> Sequence[Event]:
        """Ends a camera's tracks."""

    def add_camera(self, camera: CameraConfig) -> Sequence[Event]:
        """Follows a camera from now on, or gives one that is followed new settings."""


class MovablePipeline(Pipeline, Protocol):
    """A pipeline whose cameras can go over to another one."""

    def release_camera(self, camera: str) -> Any:
        """What is known of a camera, for `adopt`; None where it is not followed here."""

    def adopt(self, state: Any) -> None:
        """Goes on with a camera of another pipeline."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline with its engines loaded, and the backend of each.

    prepare: loads what a camera needs that is to be added, from another thread than the one that processes.
    Raises MienError where an engine cannot be had.
    """

    pipeline: Pipeline
    backends: dict[str, str]
    prepare: Callable[[CameraConfig], None] = lambda camera: None


class PipelinesByCamera:
    """Several pipelines as one: each frame goes to its camera's, in one batch a pipeline.

    A detector engine has one input size, so cameras whose `detector_size` differs cannot share a pipeline.
    choose: the pipeline a camera's settings ask for, already loaded.
    """

    def __init__(
        self,
        by_camera: Mapping[str, MovablePipeline],
        choose: Callable[[CameraConfig], MovablePipeline] | None = None,
    ) -> None:
        self._by_camera = dict(by_camera)
        self._choose = choose

    def process(self, frames: Sequence[Frame]) -> list[Event]:
        """Every pipeline gets its batch, whatever became of the others; where all fail, raises as the first did."""
        events: list[Event] = []
        failed: list[str] = []
        reasons: list[Exception] = []
        for pipeline, batch in self._batches(frames):
            try:
                events += pipeline.process(batch)
            except Exception as error:
                reasons.append(error)
                failed += [frame.camera for frame in batch]
        if reasons:
            raise reasons[0] if len(failed) == len(frames) else PartlyFailedError(reasons[0], failed, events)
        return events

    def _batches(self, frames: Sequence[Frame]) -> Iterator[tuple[MovablePipeline, list[Frame]]]:
        for pipeline in {id(pipeline): pipeline for pipeline in self._by_camera.values()}.values():
            batch = [frame for frame in frames if self._by_camera[frame.camera] is pipeline]
            if batch:
                yield pipeline, batch

    def close_camera(self, camera: str) -> Sequence[Event]:
        return self._by_camera[camera].close_camera(camera)

    def add_camera(self, camera: CameraConfig) -> Sequence[Event]:
        """A camera that needs another pipeline than before takes its tracks along."""
        before = self._by_camera.get(camera.name)
        chosen = self._choose(camera) if self._choose else before
        assert chosen is not None, "a camera that is new needs `choose`"
        if before is not None and before is not chosen:
            state = before.release_camera(camera.name)
            if state is not None:
                chosen.adopt(state)
        self._by_camera[camera.name] = chosen
        return chosen.add_camera(camera)
