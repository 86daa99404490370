"""The seam between the daemon's loop and what it makes of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.records import Event, Frame


class Pipeline(Protocol):
    """Frames in, unstamped events out."""

    def process(self, frames: Sequence[Frame]) -> Sequence[Event]:
        """The events of one batch, at most one frame a camera."""

    def close_camera(self, camera: str) -> Sequence[Event]:
        """Ends a camera's tracks."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline with its engines loaded, and the backend of each."""

    pipeline: Pipeline
    backends: dict[str, str]


class PipelinesByCamera:
    """Several pipelines as one: each frame goes to its camera's, in one batch a pipeline.

    A detector engine has one input size, so cameras whose `detector_size` differs cannot share a pipeline.
    """

    def __init__(self, by_camera: Mapping[str, Pipeline]) -> None:
        self._by_camera = by_camera
        self._pipelines = tuple({id(pipeline): pipeline for pipeline in by_camera.values()}.values())

    def process(self, frames: Sequence[Frame]) -> list[Event]:
        events: list[Event] = []
        for pipeline in self._pipelines:
            batch = [frame for frame in frames if self._by_camera[frame.camera] is pipeline]
            if batch:
                events += pipeline.process(batch)
        return events

    def close_camera(self, camera: str) -> Sequence[Event]:
        return self._by_camera[camera].close_camera(camera)
