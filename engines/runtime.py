"""Engines: the protocol, and how one is found, checked, built when it must be, and loaded.

This module and what it imports at the top stay free of torch: a start with built engines needs none.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from engines import machine, manifest
from engines.errors import MienError
from engines.manifest import EngineManifest, Wanted
from engines.onnx_spec import OnnxSpec
from engines.request import (
    BACKENDS,
    DEVICES,
    MODELS,
    WEIGHTS,
    EngineRequest,
    backend_module,
    default_cache,
    onnx_size,
    resolve,
)
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from engines.memory import Gpu

__all__ = [
    "BACKENDS",
    "MODELS",
    "WEIGHTS",
    "Engine",
    "EngineRequest",
    "FaceEngines",
    "Progress",
    "cached",
    "check_memory",
    "clean",
    "default_cache",
    "load_built",
    "load_engine",
    "load_face_engines",
    "resolve",
    "why_unusable",
]

Progress = Callable[[str], None]
REBUILDS = ("when_needed", "never")


class Engine(Protocol):
    """A runnable network. Takes (N, H, W, 3) uint8 BGR of its input size; see engines.deploy for outputs."""

    spec: ModelSpec
    backend: str
    input_size: tuple[int, int]  # (width, height)

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...


@dataclass(frozen=True, slots=True)
class FaceEngines:
    """The chain's engines; what is switched off is None."""

    detector: Engine
    landmarks: Engine
    embedder: Engine | None
    attributes: Engine | None

    def loaded(self) -> dict[str, Engine]:
        """By model, those that are on."""
        every = (self.detector, self.landmarks, self.embedder, self.attributes)
        return {model: engine for model, engine in zip(MODELS, every, strict=True) if engine is not None}


def spec_of(model: str, own: Path | None = None) -> ModelSpec:
    """What a model's engine will say of itself, without loading it; `own` as in load_engine."""
    if own is None or own.suffix != ".json":
        return ModelSpec.load((own or WEIGHTS / model) / "spec.json")
    spec = OnnxSpec.load(own)
    return spec.model_spec(onnx_size(own, model, None), spec.sha256())


def why_unusable(request: EngineRequest) -> str | None:
    """Why the cached engine cannot be taken as it is, or None."""
    if not (request.folder / manifest.MANIFEST_FILE).is_file():
        return "not built yet"
    try:
        found = EngineManifest.load(request.folder)
    except MienError:
        return "its manifest is damaged"
    return manifest.difference(found, _wanted(request)) or manifest.damage(request.folder, found)


def _wanted(request: EngineRequest) -> Wanted:
    if request.is_onnx:
        weights_sha256, spec = OnnxSpec.load(request.checkpoint).sha256(), request.checkpoint
    else:
        weights, spec = request.checkpoint / "weights.safetensors", request.checkpoint / "spec.json"
        if missing := next((file for file in (weights, spec) if not file.is_file()), None):
            raise MienError(f"{missing}: missing; copy the whole checkpoint folder again")
        weights_sha256 = manifest.sha256(weights)
    gpus = machine.gpus() if request.device == "cuda" else ()
    return Wanted(
        words=request.words,
        weights_sha256=weights_sha256,
        spec_sha256=manifest.sha256(spec),
        code_sha256=manifest.code_sha256(request.backend, request.is_onnx),
        versions=backend_module(request.backend).versions(request.device),
        gpu=str(gpus[0]) if gpus else "",
        batch=request.max_batch if request.backend == "tensorrt" else 0,
    )


def cached(cache: Path, weights: Path | None = None) -> list[EngineRequest]:
    """What lies in the cache, by the names of its folders."""
    found = []
    for folder in sorted(cache.glob("[!.]*-*x*-*-*-*")):
        model, size, backend, device, precision = folder.name.rsplit("-", 4)
        checkpoint = _checkpoint(folder, model, weights)
        width, _, height = size.partition("x")
        if backend not in BACKENDS or device not in DEVICES or not checkpoint.exists():
            continue
        shape = (int(width), int(height))
        request = EngineRequest(
            model.partition("+")[0], backend, device, precision, shape, 1, checkpoint, cache
        )
        found.append(request)
    return found


def _checkpoint(folder: Path, model: str, weights: Path | None) -> Path:
    """A user's model is found where its manifest says that it came from."""
    if "+" not in model:
        return (weights or WEIGHTS) / model
    try:
        return Path(EngineManifest.load(folder).source)
    except MienError:
        return folder / "unknown"


def clean(cache: Path, model: str | None = None) -> list[str]:
    """Remove built engines, of one model or all; returns their names. What others keep there is left alone."""
    removed = []
    for folder in sorted(cache.glob(f"{model or '*'}[-+]*x*-*-*-*")):
        backend = folder.name.rsplit("-", 3)[-3]
        if folder.is_dir() and not folder.name.startswith(".") and backend in BACKENDS:
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def load_built(request: EngineRequest, folder: Path, threads: int) -> Engine:
    """Load what was built into `folder`, without looking at its manifest."""
    if request.is_onnx:
        onnx = OnnxSpec.load(request.checkpoint)
        spec = onnx.model_spec(request.size, onnx.sha256())
    else:
        spec = ModelSpec.load(request.checkpoint / "spec.json")
    engine: Engine = backend_module(request.backend).load(request, folder, spec, threads)
    return engine


def load_engine(
    model: str,
    *,
    backend: str = "auto",
    size: tuple[int, int] | None = None,
    weights: Path | None = None,
    cache: Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_batch: int | None = None,
    rebuild: str = "when_needed",
    own: Path | None = None,
) -> Engine:
    """Load a model's engine, building it first when the cached one is missing, damaged or out of date.

    `progress` is told what is being built and why; with rebuild "never" that reason is an error instead.
    `own` is a user's model in this one's place: a checkpoint's folder, or the spec file of an ONNX model. Raises
    MienError when the backend cannot run here, the checkpoint does not fit, or the built engine's numbers are off.
    """
    request = resolve(
        model,
        backend,
        size,
        weights,
        cache,
        device=device,
        precision=precision,
        max_batch=max_batch,
        own=own,
    )
    if not request.needs_build:
        loaded: Engine = backend_module(request.backend).load(request, threads)
        return loaded
    if reason := why_unusable(request):
        _build(request, reason, rebuild, progress)
    elif request.device == "cuda":
        check_memory(request)
    try:
        return load_built(request, request.folder, threads)
    except MienError as error:
        if reason:  # built a moment ago: building again would give the same
            raise
        _build(request, str(error), rebuild, progress, force=True)
        return load_built(request, request.folder, threads)


def _build(
    request: EngineRequest, reason: str, rebuild: str, progress: Progress | None, force: bool = False
) -> None:
    if rebuild == "never":
        raise MienError(
            f"engine {request.words}: {reason}, and engines.rebuild is never; "
            "`mien engines build --config FILE` makes it"
        )
    from engines.build import build_engine

    if progress:
        progress(f"building {request.words}: {reason}")
    built = build_engine(request, force=force)
    if progress and (lost := built.calibration.get("lost")):
        progress(f"{request.words}: calibrated on the shipped portraits; {lost}")


def check_memory(request: EngineRequest, gpu: "Gpu | None" = None) -> None:
    """Raises MienError where a built engine does not fit on the GPU, by what its manifest says it needs."""
    from engines import memory

    memory.check(EngineManifest.load(request.folder).memory, request.max_batch, request.model, gpu)


def load_face_engines(
    *,
    backend: str = "auto",
    detector_size: tuple[int, int] | None = None,
    threads: int = 0,
    weights: Path | None = None,
    cache: Path | None = None,
    embedder: bool = True,
    attributes: bool = True,
    progress: Progress | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_batch: int | None = None,
    rebuild: str = "when_needed",
    own: Mapping[str, Path] = MappingProxyType({}),
) -> FaceEngines:
    """All engines of the chain; `own` are models in ours' place, by model. See load_engine."""

    def load(model: str, size: tuple[int, int] | None = None) -> Engine:
        return load_engine(
            model,
            backend=backend,
            size=size,
            weights=weights,
            cache=cache,
            threads=threads,
            progress=progress,
            device=device,
            precision=precision,
            max_batch=max_batch,
            rebuild=rebuild,
            own=own.get(model),
        )

    return FaceEngines(
        detector=load("detector", detector_size),
        landmarks=load("landmarks"),
        embedder=load("embedder") if embedder else None,
        attributes=load("attributes") if attributes else None,
    )
