"""checkpoint -> exported program -> engine, through the parity gate, into the cache."""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from engines import lock, machine, manifest, memory
from engines.calibration import calibrated_before, calibration_as_before, calibration_batch
from engines.checkpoint import load_checkpoint
from engines.errors import MienError
from engines.manifest import EngineManifest
from engines.onnx_spec import OnnxSpec
from engines.parity import check_onnx, check_parity
from engines.request import EngineRequest, backend_module
from engines.runtime import load_built, why_unusable
from engines.source import Source, shapes

WRONG = re.compile(r"\berror: |cannot find -l|undefined reference")  # in what compilers and linkers tell


def build_engine(
    request: EngineRequest, calibrate: Path | None = None, *, force: bool = True
) -> EngineManifest:
    """Build into a folder of its own beside the cache, prove it, then move it into place.

    One builder at a time: whoever waited finds the other's engine in order and takes it, without `force` or
    `calibrate`: pictures for int8, which by default is calibrated on those that the engine before it was calibrated on.
    Raises MienError when the checkpoint does not fit, the engine disagrees with the reference, or the cache
    cannot be written.
    """
    with lock.building(request.folder):
        if not force and calibrate is None and why_unusable(request) is None:
            return EngineManifest.load(request.folder)
        _sweep(request.folder)
        with _new_folder(request) as folder:
            built = _build(request, folder, calibrate)
            _move_into_place(folder, request.folder)
    return built


def _build(request: EngineRequest, folder: Path, calibrate: Path | None) -> EngineManifest:
    started = time.monotonic()
    source, told = _source(request, calibrate)
    backend = backend_module(request.backend)
    needs = {} if source.onnx else _memory(source)
    program = source.spec.weights_sha256 if source.onnx else program_sha256(source)  # before it is compiled
    (backend.save_onnx if source.onnx else backend.save)(source, folder)
    engine = load_built(request, folder, 0)
    reference, parity = (check_onnx if source.onnx else check_parity)(engine, request)
    built = EngineManifest(
        model=request.model,
        source=str(request.checkpoint),
        backend=request.backend,
        device=request.device,
        precision=request.precision,
        input_size=request.size,
        max_batch=request.max_batch,
        inputs=shapes(source),
        weights_sha256=source.spec.weights_sha256,
        spec_sha256=manifest.sha256(_spec_file(request)),
        code_sha256=manifest.code_sha256(request.backend, request.is_onnx),
        program_sha256=program,
        versions={"torch": str(machine.version("torch"))} | backend.versions(request.device),
        cpu_isa=manifest.cpu_isa(),
        gpu=gpu_words(request),
        files={path.name: manifest.sha256(path) for path in sorted(folder.iterdir())},
        calibration=told,
        memory=needs,
        parity=parity,
        parity_reference=reference,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=round(time.monotonic() - started, 2),
    )
    built.save(folder)
    return built


def verify_engine(request: EngineRequest) -> dict[str, float]:
    """Prove a cached engine again; returns its deviations.

    Raises MienError when it is off or out of date, or when the checkpoint, exported now, is another program than
    the one it was built from.
    """
    if reason := why_unusable(request):
        raise MienError(f"{reason}; `mien engines build` makes it anew")
    found = EngineManifest.load(request.folder)
    request = replace(request, max_batch=found.max_batch)
    if _exports_differently(request, found):
        raise MienError("its network now exports to another program; `mien engines build` makes it anew")
    engine = load_built(request, request.folder, 0)
    return (check_onnx if request.is_onnx else check_parity)(engine, request)[1]


def _exports_differently(request: EngineRequest, found: EngineManifest) -> bool:
    """Another torch words the same program in another way, so only the builder's own is compared."""
    if request.is_onnx or found.versions.get("torch") != machine.version("torch"):
        return False
    return program_sha256(_source(request, None, quantised=False)[0]) != found.program_sha256


def program_sha256(source: Source) -> str:
    """Over the exported program's operators and shapes; the weights have a checksum of their own."""
    program = source.program
    text = f"{program.graph_module.code}{program.graph_signature}{program.range_constraints}"
    return hashlib.sha256(text.encode()).hexdigest()


def gpu_words(request: EngineRequest) -> str:
    """The GPU that torch takes first, with its capability; "" for an engine of the CPU."""
    found = machine.gpus() if request.device == "cuda" else ()
    return str(found[0]) if found else ""


def _source(
    request: EngineRequest, calibrate: Path | None, *, quantised: bool = True
) -> tuple[Source, dict[str, object]]:
    if request.is_onnx:
        onnx = OnnxSpec.load(request.checkpoint)
        return Source(request, onnx.model_spec(request.size, onnx.sha256()), onnx=onnx), {}
    network, spec = load_checkpoint(request.checkpoint)
    if request.precision != "int8" or not quantised:
        return Source(request, spec, network), {}
    if calibrate:
        crops, told = calibration_batch(spec.task, request.size, calibrate, spec.room, request.cache)
    else:
        before = calibrated_before(request.folder)
        crops, told = calibration_as_before(spec.task, request.size, before, spec.room, request.cache)
    return Source(request, spec, network, calibration=crops), told


def _memory(source: Source) -> dict[str, int]:
    """What it takes on a GPU, checked against what is free there; {} for the CPU."""
    if source.request.device != "cuda":
        return {}
    needs = memory.needed(source)
    memory.check(needs, source.request.max_batch, source.request.model)
    return needs


def _spec_file(request: EngineRequest) -> Path:
    return request.checkpoint if request.is_onnx else request.checkpoint / "spec.json"


@contextmanager
def _new_folder(request: EngineRequest) -> Iterator[Path]:
    """An empty folder beside the engine's, gone afterwards; what the disk or the compiler refuses, in words."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{request.folder.name}-", dir=request.cache))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise MienError(
            f"{request.cache}: cannot write the engine of {request.words} ({error.strerror or error}); "
            "make room, or set engines.cache_dir or MIEN_CACHE to another folder"
        ) from None
    except torch.OutOfMemoryError:
        raise MienError(
            f"{request.words}: the GPU's memory is too small for batches of {request.max_batch}; "
            f"build with --max-batch {max(1, request.max_batch // 2)}"
        ) from None
    except RuntimeError as error:
        raise MienError(
            f"{request.words}: the build failed ({reason_of(error)}); use another backend, or report it"
        ) from error


def reason_of(error: Exception) -> str:
    """An error's first line and, where a compiler or a linker tells more below, the first that says what is wrong."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    wrong = next((line for line in lines[1:] if WRONG.search(line)), None)
    return f"{lines[0][:200]}: {wrong[:300]}" if wrong else lines[0][:300]


def _sweep(folder: Path) -> None:
    """Remove what builders of this engine left that were killed; the caller holds its lock."""
    for pattern in (f".{folder.name}-*", f".old-{folder.name}-*"):
        for left in folder.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> None:
    """Rename is atomic; an old engine is moved aside first, since a folder that holds something is not replaced."""
    old = Path(tempfile.mkdtemp(prefix=f".old-{target.name}-", dir=target.parent))
    try:
        if target.exists():
            target.rename(old / "engine")
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(old, ignore_errors=True)
