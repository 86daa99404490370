"""What a machine's GPU makes of Mien, in one call: `python -m bench.gpu --out results`.

Needs torch, torchvision, numpy, opencv, safetensors and rich. Parts: engines (right against eager float32, latency,
throughput, memory, build time, with and without CUDA graphs), images (the image path beside cv2 on the host), chain
(one to sixteen faces a frame) and streams (of 25 frames a second). What is measured is kept in results/gpu.json
after every step; with --limit the call ends in time, and the same command goes on where it ended. With --device cpu
all of it runs without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu_chain import measure_chain, measure_images, streams_served
from bench.gpu_clock import peaks
from bench.gpu_engines import Kind, Settings, load, measure_engine
from engines import machine
from engines.backends.torch_engine import TorchEngine
from engines.errors import MienError
from engines.image_ops import ImageOps
from engines.image_ops_torch import TorchOps
from engines.request import MODELS
from engines.runtime import FaceEngines
from engines.source import DTYPES

PARTS = ("engines", "images", "chain", "streams")
KINDS = {
    "cuda": "eager:f32,eager:f16,tensorrt:f16,tensorrt:f32,aot_inductor:f16,aot_inductor:f32",
    "cpu": "eager:f32,aot_inductor:f32",
}
BATCHES = {"cuda": "1,8,32,128", "cpu": "1,8"}
FRAMES = {"cuda": (1, 8, 32), "cpu": (1, 4)}
FACES = (1, 4, 16)
SIZES = ((1280, 720), (1920, 1080))


@dataclass(slots=True)
class Results:
    """Everything measured so far, by a key that says what it is; written after every step."""

    path: Path
    until: float
    rows: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def step(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this key, before or now; None where the time is up."""
        if key in self.rows:
            return self.rows[key]
        if time.monotonic() > self.until:
            self.left.append(key)
            return None
        print(f"{key} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        self.rows[key] = measure()
        print(f"{key}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        half.replace(self.path)
        return self.rows[key]


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"error: {machine.why_no_gpu()}; --device cpu tries the script without one", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    until = time.monotonic() + options.limit
    results = Results(path, until, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
    results.rows["machine"] = about(options.device)
    settings = Settings(
        options.device,
        tuple(int(batch) for batch in options.batches.split(",")),
        options.seconds,
        options.cache or options.out / "engines",
    )
    TorchEngine.graphs = options.graphs
    kinds = [kind_of(each, options.device) for each in options.engines.split(",")]
    models = options.models.split(",")
    if "engines" in options.parts:
        measure_engines(results, settings, kinds, models)
    if "images" in options.parts:
        measure_image_path(results, settings)
    if {"chain", "streams"} & set(options.parts):
        measure_chains(results, settings, options.chain or fastest(results, kinds), options.parts)
    from bench.gpu_report import tables

    tables(results.rows)
    if results.left:
        print(
            f"the time is up with {len(results.left)} steps to go; the same command goes on", file=sys.stderr
        )
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--cache", type=Path, help="where engines are built; by default within --out")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", help="backend:precision, separated by commas")
    parser.add_argument("--chain", help="backend:precision for chain and streams; the fastest by default")
    parser.add_argument("--batches", help="such as 1,8,32,128")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="without CUDA graphs")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each figure is measured")
    parser.add_argument("--limit", type=float, default=540.0, help="begin nothing after so many seconds")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(unknown)}: known are {', '.join(PARTS)}")
    options.engines = options.engines or KINDS[options.device]
    options.batches = options.batches or BATCHES[options.device]
    return options


def kind_of(name: str, device: str) -> Kind:
    """From words such as tensorrt:f16."""
    backend, _, precision = name.partition(":")
    return Kind(backend, precision, device)


def about(device: str) -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    gpus = machine.gpus() if device == "cuda" else ()
    names = (
        "torch",
        "torchvision",
        "torch-tensorrt",
        "torch-tensorrt-rtx",
        "numpy",
        "opencv-python-headless",
    )
    driver = machine.driver_cuda() if device == "cuda" else None
    return {
        "gpu": str(gpus[0]) if gpus else "none",
        "driver_serves_cuda": f"{driver[0]}.{driver[1]}" if driver else "none",
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := machine.version(name))},
        "threads": torch.get_num_threads(),
    }


def measure_engines(
    results: Results, settings: Settings, kinds: Sequence[Kind], models: Sequence[str]
) -> None:
    for kind in kinds:
        if kind.precision not in DTYPES:
            raise SystemExit(f"--engines {kind.backend}:{kind.precision}: known are {', '.join(DTYPES)}")
        dtype = DTYPES[kind.precision]
        peak = results.step(
            f"peak {kind.precision}", lambda dtype=dtype: peaks(settings.device, dtype, settings.seconds)
        )
        for model in models:
            if peak:
                results.step(
                    f"engine {kind} {model}",
                    lambda model=model, kind=kind, peak=peak: measure_engine(model, kind, settings, peak),
                )


def measure_image_path(results: Results, settings: Settings) -> None:
    ops = TorchOps(settings.device)
    for size in SIZES:
        for frames in FRAMES[settings.device]:
            results.step(
                f"images {size[0]}x{size[1]} {frames}",
                lambda size=size, frames=frames: measure_images(
                    ops, settings.device, size, frames, settings.seconds
                ),
            )


def fastest(results: Results, kinds: Sequence[Kind]) -> str:
    """The engines whose embedder is the fastest at the largest batch measured; the first asked for otherwise."""
    measured = {}
    for kind in kinds:
        rows = results.rows.get(f"engine {kind} embedder", [{}])
        if "pictures_s" in rows[-1]:
            measured[f"{kind.backend}:{kind.precision}"] = max(row["pictures_s"] for row in rows)
    return (
        max(measured, key=lambda name: measured[name])
        if measured
        else f"{kinds[0].backend}:{kinds[0].precision}"
    )


def measure_chains(results: Results, settings: Settings, name: str, parts: Sequence[str]) -> None:
    kind = kind_of(name, settings.device)
    try:
        engines = FaceEngines(*(load(model, kind, settings)[0] for model in MODELS))
    except (MienError, RuntimeError) as error:
        results.rows[f"chain {kind}"] = {"error": str(error)[:500]}
        return
    ops: ImageOps = TorchOps(settings.device)
    for size in SIZES:
        for faces in FACES:
            what = f"{kind} {size[0]}x{size[1]} {faces} faces"
            if "chain" in parts:
                for frames in FRAMES[settings.device]:
                    results.step(
                        f"chain {what} {frames}",
                        lambda faces=faces, size=size, frames=frames: measure_chain(
                            engines, ops, settings.device, faces, size, frames, settings.seconds
                        ),
                    )
            if "streams" in parts:
                results.step(
                    f"streams {what}",
                    lambda faces=faces, size=size: streams_served(
                        engines, ops, faces, size, 4 * settings.seconds
                    ),
                )


if __name__ == "__main__":
    raise SystemExit(main())
