"""The seam between the daemon's loop and what it makes of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.config import CameraConfig
from daemon.records import Event, Frame

Failure = tuple[Exception, Sequence[str]]
"""An error, and the cameras whose frames were lost by it."""


class PartlyFailedError(Exception):
    """Some frames of a batch could not be processed; `events` are those of the others.

    failures: why, and of which cameras.
    """

    def __init__(self, failures: Sequence[Failure], events: Sequence[Event]) -> None:
        super().__init__("; ".join(f"{', '.join(cameras)}: {error}" for error, cameras in failures))
        self.failures = failures
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
        """Every pipeline gets its batch, whatever became of the others; one alone raises as it did."""
        events: list[Event] = []
        failures: list[Failure] = []
        for pipeline, batch in self._batches(frames):
            cameras = [frame.camera for frame in batch]
            try:
                events += pipeline.process(batch)
            except Exception as error:
                if len(batch) == len(frames):
                    raise
                failures.append((error, cameras))
        if failures:
            raise PartlyFailedError(failures, events)
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
