"""Engines, gallery and pipeline, put together after the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from daemon.config import CameraConfig, Config
from daemon.pipeline import FacePipeline
from daemon.pipelines import LoadedPipeline, PipelinesByCamera
from engines.runtime import Engine, FaceEngines, Progress, load_engine, load_face_engines

log = structlog.get_logger(__name__)


def _tell(words: str) -> None:
    log.info("engine", progress=words)


def load_pipeline(config: Config, *, every_frame: bool = False, progress: Progress = _tell) -> LoadedPipeline:
    """The pipeline of all enabled cameras; engines that are missing are built first, and `progress` is told.

    Raises MienError where an engine cannot be had or the gallery cannot be read.
    """
    cameras = [camera for camera in config.cameras if camera.enabled]
    sizes = list(dict.fromkeys(camera.detector_size for camera in cameras))
    shared = _engines(config, cameras, sizes[0], progress)
    pipelines = {sizes[0]: FacePipeline(shared, config, every_frame=every_frame)}
    for size in sizes[1:]:
        pipelines[size] = FacePipeline(
            replace(shared, detector=_detector(config, size, progress)), config, every_frame=every_frame
        )
    by_camera = {camera.name: pipelines[camera.detector_size] for camera in cameras}
    return LoadedPipeline(PipelinesByCamera(by_camera), _backends(shared))


def _engines(
    config: Config, cameras: Sequence[CameraConfig], size: tuple[int, int], progress: Progress
) -> FaceEngines:
    return load_face_engines(
        backend=config.engines.backend,
        detector_size=size,
        threads=config.engines.threads,
        cache=config.engines.cache_dir,
        embedder=any(camera.identity for camera in cameras),
        attributes=any(camera.age or camera.gender or camera.emotion for camera in cameras),
        progress=progress,
    )


def _detector(config: Config, size: tuple[int, int], progress: Progress) -> Engine:
    return load_engine(
        "detector",
        backend=config.engines.backend,
        size=size,
        threads=config.engines.threads,
        cache=config.engines.cache_dir,
        progress=progress,
    )


def _backends(engines: FaceEngines) -> dict[str, str]:
    loaded = {
        "detector": engines.detector,
        "landmarks": engines.landmarks,
        "embedder": engines.embedder,
        "attributes": engines.attributes,
    }
    return {name: engine.backend for name, engine in loaded.items() if engine is not None}
