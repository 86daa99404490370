"""Every network on every backend: right against eager float32, then how fast, how large, and how near the roof."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_clock import Timing, timed, used_mib
from engines.build import build_engine, reason_of
from engines.calibration import parity_batch
from engines.checkpoint import load_checkpoint
from engines.deploy import Deployed
from engines.manifest import EngineManifest
from engines.parity import check_parity
from engines.request import EngineRequest, resolve
from engines.runtime import Engine, load_engine, why_unusable

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}
BUILD_S = 150.0  # a build is not begun with less than this left


@dataclass(frozen=True, slots=True)
class Kind:
    """A backend in one precision on one device."""

    backend: str
    precision: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True, slots=True)
class Settings:
    """until: the time, by the monotonic clock, from which on nothing is begun."""

    device: str
    batches: tuple[int, ...]
    seconds: float
    cache: Path
    until: float


class TimeUpError(Exception):
    """Too little time is left for a build."""


class Loaded(NamedTuple):
    """build_s: of the build that made the engine, now or before."""

    engine: Engine
    request: EngineRequest
    build_s: float
    load_s: float


def told(error: Exception) -> str:
    """An error's type and reason, for a row of the results."""
    return f"{type(error).__name__}: {reason_of(error)}"


def load(model: str, kind: Kind, settings: Settings) -> Loaded:
    """Raises MienError where the engine cannot be had, TimeUpError where too little time is left to build it."""
    most, cache = max(settings.batches), settings.cache
    asked: dict[str, Any] = {"device": kind.device, "precision": kind.precision, "max_batch": most}
    request = resolve(model, kind.backend, cache=cache, **asked)
    build_s = 0.0
    if request.needs_build:
        if why_unusable(request) is not None:
            if time.monotonic() + BUILD_S > settings.until:
                raise TimeUpError
            build_engine(request)
        build_s = EngineManifest.load(request.folder).build_seconds
    started = time.monotonic()
    engine = load_engine(model, backend=kind.backend, cache=cache, **asked)
    return Loaded(engine, request, build_s, round(time.monotonic() - started, 2))


def measure_engine(
    model: str, kind: Kind, settings: Settings, peak: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for each batch size, with and without CUDA graphs; where one of these fails, a row with its error.

    Raises what `load` raises.
    """
    before = used_mib(kind.device)
    engine, request, build_s, load_s = load(model, kind, settings)
    named: dict[str, Any] = {"model": model, "backend": kind.backend, "precision": kind.precision}
    named |= {"build_s": build_s, "load_s": load_s}
    rows = []
    for graphs, variant in variants(engine):
        named |= {"graphs": graphs}
        try:
            parity = check_parity(variant, request)[1]
            for batch in settings.batches:
                timing = time_engine(variant, batch, kind.device, settings.seconds)
                row = {**named, "batch": batch, "parity": max(parity.values()), **timing.record()}
                row["pictures_s"] = round(batch / timing.device_ms * 1e3, 1)
                rows.append(row | roof(model, kind.precision, batch, timing, peak))
        except Exception as error:
            traceback.print_exc()
            rows.append({**named, "error": told(error)})
    taken = round(used_mib(kind.device) - before, 1)
    return [{**row, "memory_mib": taken} for row in rows]


def variants(engine: Any) -> list[tuple[bool, Engine]]:
    """With CUDA graphs and without, where an engine has them."""
    plain = getattr(engine, "without_graphs", None)
    if plain is None or getattr(engine, "device", "cpu") != "cuda":
        return [(False, engine)]
    return [(False, plain()), (True, engine)] if engine.graphs else [(False, engine)]


def time_engine(engine: Engine, batch: int, device: str, seconds: float) -> Timing:
    """Pictures that are on the device already, answers that stay there."""
    faces = parity_batch(engine.spec.task, engine.input_size, engine.spec.room)
    pictures = faces[np.arange(batch) % len(faces)]
    on_device = getattr(engine, "on_device", None)
    if on_device is None:
        return timed(lambda: engine(pictures), device, seconds)
    there = torch.from_numpy(pictures).to(device)
    return timed(lambda: on_device(there), device, seconds)


def roof(model: str, precision: str, batch: int, timing: Timing, peak: dict[str, float]) -> dict[str, float]:
    """How much of what the device reaches an engine uses: of its operations, or of its memory if that is nearer.

    Nothing where the peak was not measured.
    """
    if "tflops" not in peak:
        return {}
    flops, numbers = counted(model)
    least_compute_ms = flops * batch / peak["tflops"] / 1e9
    moved = (numbers["weights"] + numbers["activations"] * batch) * BYTES[precision]
    least_memory_ms = moved / peak["gb_s"] / 1e6
    return {
        "gflops": round(flops * batch / 1e9, 3),
        "mb": round(moved / 1e6, 2),
        "roof": round(max(least_compute_ms, least_memory_ms) / timing.device_ms, 4),
    }


_COUNTED: dict[str, tuple[int, dict[str, int]]] = {}


def counted(model: str) -> tuple[int, dict[str, int]]:
    """Operations for one picture, and numbers moved: weights once, and what each layer reads and writes."""
    if model not in _COUNTED:
        network, spec = load_checkpoint(resolve(model, "eager", device="cpu").checkpoint)
        deployed = Deployed(network, spec).eval()
        width, height = spec.input_size
        moved = 0

        def look(_: object, given: Sequence[object], output: object) -> None:
            nonlocal moved
            moved += sum(value.numel() for value in (*given, output) if isinstance(value, torch.Tensor))

        leaves = [module for module in deployed.modules() if not list(module.children())]
        for leaf in leaves:
            leaf.register_forward_hook(look)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            deployed(torch.zeros((1, height, width, 3), dtype=torch.uint8))
        weights = sum(parameter.numel() for parameter in deployed.parameters())
        _COUNTED[model] = counter.get_total_flops(), {"weights": weights, "activations": moved}
    return _COUNTED[model]
