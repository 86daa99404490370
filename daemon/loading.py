"""Engines, gallery and pipeline, put together after the configuration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog

from daemon.config import CameraConfig, Config
from daemon.pipeline import FacePipeline
from daemon.pipelines import LoadedPipeline, PipelinesByCamera
from engines.errors import MienError, UsageError
from engines.runtime import Engine, FaceEngines, Progress, load_engine, load_face_engines

log = structlog.get_logger(__name__)

Size = tuple[int, int]

GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg")
"""What an NVIDIA driver that is up shows: on a PC or server, on a Jetson, under WSL."""

GPU_LOOK_S = 0.5


def _tell(words: str) -> None:
    log.info("engine", progress=words)


def load_pipeline(config: Config, *, every_frame: bool = False, progress: Progress = _tell) -> LoadedPipeline:
    """The pipeline of all enabled cameras; engines that are missing are built first, and `progress` is told.

    Every engine has run once when this returns. Raises MienError where an engine cannot be had or the gallery
    cannot be read.
    """
    cameras = [camera for camera in config.cameras if camera.enabled]
    stock = EngineStock(config, cameras, every_frame, progress)
    by_camera = {camera.name: stock.pipeline_for(camera) for camera in cameras}
    pipelines = PipelinesByCamera(by_camera, stock.pipeline_for)
    return LoadedPipeline(
        pipelines, {name: engine.backend for name, engine in stock.shared.loaded().items()}, stock.prepare
    )


class EngineStock:
    """The engines loaded so far, and a pipeline for each detector size."""

    def __init__(
        self, config: Config, cameras: Sequence[CameraConfig], every_frame: bool, progress: Progress
    ) -> None:
        self._config = config
        self._every_frame = every_frame
        self._progress = progress
        first = cameras[0].detector_size
        self.shared = _engines(config, cameras, first, progress)
        _warm_up(self.shared.loaded().values())
        self._pipelines = {first: FacePipeline(self.shared, config, every_frame=every_frame)}
        for camera in cameras[1:]:
            self.prepare(camera)

    def prepare(self, camera: CameraConfig) -> None:
        """Loads what a camera needs; raises MienError where that takes a new start or cannot be had."""
        if camera.identity and self.shared.embedder is None:
            raise MienError(f"camera {camera.name}: identity was off for all cameras; restart the daemon")
        if (camera.age or camera.gender or camera.emotion) and self.shared.attributes is None:
            raise MienError(f"camera {camera.name}: attributes were off for all cameras; restart the daemon")
        size = camera.detector_size
        if size not in self._pipelines:
            detector = _detector(self._config, size, self._progress)
            _warm_up([detector])  # the others are at work, in another thread
            engines = replace(self.shared, detector=detector)
            self._pipelines[size] = FacePipeline(engines, self._config, every_frame=self._every_frame)

    def pipeline_for(self, camera: CameraConfig) -> FacePipeline:
        """The pipeline of a camera that was prepared."""
        return self._pipelines[camera.detector_size]


def wait_for_gpu(config: Config, stop: threading.Event) -> None:
    """Waits for the GPU an engine is asked to run on, as long as the configuration says.

    Raises MienError where it does not come; a GPU that was asked for is never replaced by the CPU.
    """
    if config.engines.backend != "tensorrt" and config.engines.device != "cuda":
        return
    until_s = time.monotonic() + config.service.gpu_wait_s
    told = False
    while not any(Path(device).exists() for device in GPU_DEVICES):
        if time.monotonic() >= until_s or stop.is_set():
            raise MienError(
                f"engines are to run on a GPU, and after {config.service.gpu_wait_s:g} s there is no NVIDIA GPU;"
                " check the driver with nvidia-smi, or set engines.backend: openvino and engines.device: cpu"
            )
        if not told:
            log.warning("gpu_awaited", seconds=config.service.gpu_wait_s)
            told = True
        stop.wait(GPU_LOOK_S)


def build_engines(config: Config, progress: Progress) -> list[Engine]:
    """All that the enabled cameras run with: what is missing or out of date is built, whatever engines.rebuild says."""
    config = config.model_copy(
        update={"engines": config.engines.model_copy(update={"rebuild": "when_needed"})}
    )
    cameras = [camera for camera in config.cameras if camera.enabled]
    if not cameras:
        raise UsageError(
            "no camera of the configuration is enabled, so nothing is to be built; add one to cameras"
        )
    first, *others = dict.fromkeys(camera.detector_size for camera in cameras)
    shared = _engines(config, cameras, first, progress)
    return [*shared.loaded().values(), *(_detector(config, size, progress) for size in others)]


def _warm_up(engines: Iterable[Engine]) -> None:
    """Empty pictures through every engine: the first run is slow, and no camera should wait for it.

    On a GPU at every batch size that is captured as a CUDA graph: for a capture all work there has to stop.
    """
    for engine in engines:
        width, height = engine.input_size
        for batch in getattr(engine, "captured_sizes", None) or (1,):
            engine(np.zeros((batch, height, width, 3), np.uint8))


def _engines(config: Config, cameras: Sequence[CameraConfig], size: Size, progress: Progress) -> FaceEngines:
    return load_face_engines(
        **config.engines.for_faces(),
        detector_size=size,
        embedder=any(camera.identity for camera in cameras),
        attributes=any(camera.age or camera.gender or camera.emotion for camera in cameras),
        progress=progress,
    )


def _detector(config: Config, size: Size, progress: Progress) -> Engine:
    return load_engine(
        "detector",
        **config.engines.common(),
        own=config.engines.detector,
        size=size,
        progress=progress,
    )
