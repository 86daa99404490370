"""checkpoint -> exported program -> engine, through the parity gate, into the cache."""

import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from engines import manifest
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed, export
from engines.errors import MienError
from engines.manifest import EngineManifest
from engines.runtime import COMPILED, Engine, EngineRequest, why_unusable

PARITY_LIMIT = 0.01  # of an output's largest magnitude


def build_engine(request: EngineRequest) -> EngineManifest:
    """Build into a folder of its own beside the cache, prove it, then move it into place.

    Raises MienError when the checkpoint does not fit or the engine disagrees with eager torch.
    """
    started = time.monotonic()
    network, spec = load_checkpoint(request.checkpoint)
    backend = COMPILED[request.backend]
    request.cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{request.folder.name}-", dir=request.cache))
    try:
        backend.save(export(network, spec, request.size), folder)
        files = {path.name: manifest.sha256(path) for path in sorted(folder.iterdir())}
        engine = backend.load(folder, spec, request.size, 0)
        built = EngineManifest(
            model=request.model,
            backend=request.backend,
            precision="f32",
            input_size=request.size,
            weights_sha256=spec.weights_sha256,
            spec_sha256=manifest.sha256(request.checkpoint / "spec.json"),
            versions={request.backend: backend.version(), "torch": str(torch.__version__)},
            cpu_isa=manifest.cpu_isa(),
            files=files,
            parity=check_parity(engine, Deployed(network, spec), request),
            build_seconds=round(time.monotonic() - started, 2),
        )
        built.save(folder)
        _move_into_place(folder, request.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return built


def verify_engine(request: EngineRequest) -> dict[str, float]:
    """Prove a cached engine again; returns its deviations. Raises MienError when it is off or out of date."""
    if reason := why_unusable(request):
        raise MienError(f"{reason}; `mien engines build` makes it anew")
    network, spec = load_checkpoint(request.checkpoint)
    engine = COMPILED[request.backend].load(request.folder, spec, request.size, 0)
    return check_parity(engine, Deployed(network, spec), request)


def _move_into_place(folder: Path, target: Path) -> None:
    """Rename is atomic; whoever loses a race against another builder keeps the other's equal engine."""
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
    try:
        if target.exists():
            target.rename(old / "engine")
        folder.rename(target)
    except OSError:
        if not (target / manifest.MANIFEST_FILE).is_file():
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def parity_batch(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Two fixed pictures with structure at every scale: (2, H, W, 3) uint8."""
    rng = np.random.default_rng(281)
    width, height = size
    picture = np.zeros((height, 2 * width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = rng.normal(0, 30, (cells, 2 * cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture + 128, 0, 255).astype(np.uint8)
    return np.stack((picture[:, :width], picture[:, width:]))


def check_parity(engine: Engine, reference: Deployed, request: EngineRequest) -> dict[str, float]:
    """Largest deviation from eager per output, over the output's largest magnitude; off means refused."""
    batch = parity_batch(request.size)
    with torch.inference_mode():
        wanted = [out.numpy() for out in reference(torch.from_numpy(batch))]
    errors = {}
    for (name, got), want in zip(engine(batch).items(), wanted, strict=True):
        error = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-6))
        if not error <= PARITY_LIMIT:  # also catches NaN
            raise MienError(
                f"{request.model} on {request.backend}: output {name} is off by {error:.3g} of its range "
                f"(limit {PARITY_LIMIT}); the engine was not kept, use backend: eager and report it"
            )
        errors[name] = round(error, 8)
    return errors
