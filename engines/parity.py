"""The gate every built engine passes: its numbers beside the reference's, on real faces."""

import importlib.util

import numpy as np
from numpy.typing import NDArray

from engines.backends.eager import reference
from engines.calibration import parity_batch
from engines.errors import MienError
from engines.onnx_spec import OnnxSpec
from engines.request import EngineRequest
from engines.runtime import Engine

# Largest deviation allowed, as a share of an output's largest magnitude.
LIMITS = {"f32": 0.01, "f16": 0.03, "bf16": 0.1, "int8": 0.25}
NEAR_A_FACE = 0.1  # a detector's sides count where the reference's score is at least this

Outputs = dict[str, NDArray[np.float32]]


def check_parity(
    engine: Engine, request: EngineRequest, against: Engine | None = None
) -> tuple[str, dict[str, float]]:
    """What the engine was compared with, and its deviation per output; raises MienError where one is off."""
    against = against or reference(request)
    batch = parity_batch(against.spec.task, request.size, against.spec.room)
    wanted = against(batch)
    got = {name: np.concatenate([engine(picture[None])[name] for picture in batch]) for name in wanted}
    _check_batched(engine, batch, got, request)
    return "eager f32", compare(got, wanted, request)


def check_onnx(engine: Engine, request: EngineRequest) -> tuple[str, dict[str, float]]:
    """A user's model: beside ONNX Runtime where that is installed, else only that it gives finite numbers."""
    spec = OnnxSpec.load(request.checkpoint)
    batch = parity_batch(spec.task, request.size)
    got = {name: value for name, value in engine(batch).items()}
    if importlib.util.find_spec("onnxruntime") is None:
        return "none: finite numbers only (pip install onnxruntime to compare)", compare(got, got, request)
    from engines.backends import onnxruntime

    try:
        reference, in_half = onnxruntime.load(spec, request, engine.spec)
        wanted = reference(batch)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return f"none: finite numbers only (ONNX Runtime: {reason})", compare(got, got, request)
    return "onnxruntime", compare(got, wanted, request, LIMITS["f16"] if in_half else None)


def compare(
    got: Outputs, wanted: Outputs, request: EngineRequest, limit: float | None = None
) -> dict[str, float]:
    limit = limit or LIMITS[request.precision]
    errors = {}
    for name, want in wanted.items():
        error = _deviation(got[name], want, _counts(name, wanted))
        if not (error <= limit and np.isfinite(got[name]).all()):
            raise MienError(
                f"{request.words}: output {name} is off by {error:.3g} of its range (limit {limit}); "
                "the engine was not kept; use precision: f32 or another backend, and report it"
            )
        errors[name] = round(error, 8)
    return errors


def _counts(name: str, wanted: Outputs) -> NDArray[np.bool_] | None:
    """Which rows of an output count: a detector's sides mean something only near a face."""
    if name != "sides":
        return None
    near: NDArray[np.bool_] = wanted["scores"] >= NEAR_A_FACE
    return near if near.any() else None


def _deviation(got: NDArray[np.float32], want: NDArray[np.float32], rows: NDArray[np.bool_] | None) -> float:
    if got.shape != want.shape:
        return float("inf")
    got, want = (got, want) if rows is None else (got[rows], want[rows])
    return float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-6))


def _check_batched(engine: Engine, batch: NDArray[np.uint8], alone: Outputs, request: EngineRequest) -> None:
    """A picture's numbers may not depend on the batch it is in, beyond rounding."""
    compare(engine(batch), alone, request)
