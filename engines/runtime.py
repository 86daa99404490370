"""Engines: the protocol, and how one is found, checked, built when it must be, and loaded.

This module and what it imports at the top stay free of torch: a start with built engines needs none.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines import manifest
from engines.backends import openvino
from engines.errors import MienError, UsageError
from engines.manifest import EngineManifest
from engines.spec import ModelSpec

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("detector", "landmarks", "embedder", "attributes")
BACKENDS = ("openvino", "eager")
Progress = Callable[[str], None]
COMPILED: Mapping[str, ModuleType] = {"openvino": openvino}


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


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One model on one backend at one input size, and where its parts lie."""

    model: str
    backend: str
    size: tuple[int, int]
    checkpoint: Path
    cache: Path

    @property
    def folder(self) -> Path:
        name = f"{self.model}-{self.size[0]}x{self.size[1]}-{self.backend}-f32"
        return self.cache / name


def default_cache() -> Path:
    """$MIEN_CACHE, a systemd unit's CACHE_DIRECTORY, or the user's cache folder."""
    for name in ("MIEN_CACHE", "CACHE_DIRECTORY"):
        if value := os.environ.get(name):
            return Path(value.split(":")[0]) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mien" / "engines"


def resolve(
    model: str, backend: str, size: tuple[int, int] | None, weights: Path | None, cache: Path | None
) -> EngineRequest:
    """Fill in defaults. Raises UsageError for an unknown model or backend, MienError for a missing spec."""
    backend = "openvino" if backend == "auto" else backend
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    checkpoint = (weights or WEIGHTS) / model
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint}: there is no model of this name; known are {', '.join(MODELS)}")
    spec = ModelSpec.load(checkpoint / "spec.json")
    return EngineRequest(model, backend, size or spec.input_size, checkpoint, cache or default_cache())


def why_unusable(request: EngineRequest) -> str | None:
    """Why the cached engine cannot be taken as it is, or None."""
    if not (request.folder / manifest.MANIFEST_FILE).is_file():
        return "not built yet"
    try:
        found = EngineManifest.load(request.folder)
    except MienError:
        return "its manifest is damaged"
    weights, spec = request.checkpoint / "weights.safetensors", request.checkpoint / "spec.json"
    if not weights.is_file():
        raise MienError(f"{weights}: missing; copy the whole checkpoint folder again")
    versions = {request.backend: COMPILED[request.backend].version()}
    wrong = manifest.difference(found, manifest.sha256(weights), manifest.sha256(spec), versions)
    return wrong or manifest.damage(request.folder, found)


def cached(cache: Path, weights: Path | None = None) -> list[EngineRequest]:
    """What lies in the cache, by the names of its folders."""
    found = []
    for folder in sorted(cache.glob("*-*x*-*-f32")):
        model, size, backend, _ = folder.name.rsplit("-", 3)
        checkpoint = (weights or WEIGHTS) / model
        if backend in COMPILED and checkpoint.is_dir():
            width, height = (int(v) for v in size.split("x"))
            found.append(EngineRequest(model, backend, (width, height), checkpoint, cache))
    return found


def load_engine(
    model: str,
    *,
    backend: str = "auto",
    size: tuple[int, int] | None = None,
    weights: Path | None = None,
    cache: Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Engine:
    """Load a model's engine, building it first when the cached one is missing, damaged or out of date.

    `progress` is told what is being built and why. Raises MienError when the checkpoint does not fit or
    the built engine's numbers are off.
    """
    request = resolve(model, backend, size, weights, cache)
    if request.backend == "eager":
        from engines.backends import eager

        return eager.load(request.checkpoint, size, threads)
    if reason := why_unusable(request):
        from engines.build import build_engine

        if progress:
            progress(f"building {model} {request.size[0]}x{request.size[1]} for {request.backend}: {reason}")
        build_engine(request)
    spec = ModelSpec.load(request.checkpoint / "spec.json")
    engine: Engine = COMPILED[request.backend].load(request.folder, spec, request.size, threads)
    return engine


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
) -> FaceEngines:
    """All engines of the chain; see load_engine."""

    def load(model: str, size: tuple[int, int] | None = None) -> Engine:
        return load_engine(
            model,
            backend=backend,
            size=size,
            weights=weights,
            cache=cache,
            threads=threads,
            progress=progress,
        )

    return FaceEngines(
        detector=load("detector", detector_size),
        landmarks=load("landmarks"),
        embedder=load("embedder") if embedder else None,
        attributes=load("attributes") if attributes else None,
    )
