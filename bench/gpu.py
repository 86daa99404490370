"""What a machine's GPU makes of Mien, in one call: `python -m bench.gpu --out results`.

Needs torch, numpy, opencv and safetensors. Parts: engines (right against eager float32, latency, throughput, memory,
build time, with and without CUDA graphs), images (the image path beside cv2 on the host), chain (one to sixteen faces
a frame, equal to what eager float32 tells on the host) and streams (of 25 frames a second). First comes what targets
are set for: one face at 1280x720 on the first of --engines; the engines of its precision; that chain again on the
fastest of them; then the rest, streams last. A step that fails is a row with its error, and the next one follows.
With --device cpu all of it runs without a GPU.

What is measured is kept in results/gpu.json after every step; the same command goes on where it ended, and measures
again what failed (--keep-errors: leaves it). On a machine that is lent for commands of ten minutes, of which what
lies in a folder BACK is kept:

    timeout 580 python -m bench.gpu --out /tmp/r --limit 420; cp /tmp/r/gpu.json BACK

and the same at once until nothing is left; built engines stay in /tmp/r while the machine is held. A step begun
before --limit ends within a minute of it, and a build is not begun in the last 150 s. On a fresh machine of the same
GPU, `mkdir -p /tmp/r; cp gpu.json /tmp/r` first; of one model and backend alone: `--models landmarks --engines
aot_inductor:f16 --parts engines`. Anywhere, `python -m bench.gpu_report gpu.json` prints the tables.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch

from bench.gpu_chain import measure_chain, measure_images, streams_served
from bench.gpu_clock import peaks
from bench.gpu_engines import Kind, Settings, load, measure_engine
from bench.gpu_equality import measure_equality
from bench.gpu_report import tables
from bench.gpu_results import Results, earlier, failed, rows_of
from engines import machine
from engines.backends.torch_engine import TorchEngine
from engines.image_ops_torch import TorchOps
from engines.request import MODELS
from engines.runtime import FaceEngines
from engines.source import DTYPES

PARTS = ("engines", "images", "chain", "streams")
KINDS = {
    "cuda": "eager:f16,tensorrt:f16,aot_inductor:f16,eager:f32,tensorrt:f32,aot_inductor:f32",
    "cpu": "eager:f32,aot_inductor:f32",
}
BATCHES = {"cuda": "1,8,32,128", "cpu": "1,8"}
FRAMES = {"cuda": (1, 8, 32), "cpu": (1, 4)}
FACES = (1, 4, 16)
SIZES = ((1280, 720), (1920, 1080))
PACKAGES = ("torch", "triton", "torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt_rtx", "numpy")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"error: {machine.why_no_gpu()}; --device cpu tries the script without one", file=sys.stderr)
        return 1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32
    TorchEngine.graphs = options.graphs
    options.out.mkdir(parents=True, exist_ok=True)
    path, until = options.out / "gpu.json", time.monotonic() + options.limit
    here = about(options.device)
    results = Results(path, until, options.keep_errors, earlier(path, here["gpu"]) | {"machine": here})
    results.save()
    settings = Settings(
        options.device,
        tuple(int(batch) for batch in options.batches.split(",")),
        options.seconds,
        options.cache or options.out / "engines",
        until,
    )
    try:
        measure(results, settings, options)
    finally:
        tables(results.rows)
    if results.left:
        left = len(results.left)
        print(f"the time is up with {left} steps to go, or more; the same command goes on", file=sys.stderr)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--cache", type=Path, help="where engines are built; by default within --out")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", help="backend:precision, separated by commas")
    parser.add_argument("--chain", help="backend:precision for chain and streams; the fastest by default")
    parser.add_argument("--batches", help="such as 1,8,32,128")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="without CUDA graphs")
    parser.add_argument("--keep-errors", action="store_true", help="what failed is not measured again")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each figure is measured")
    parser.add_argument("--limit", type=float, default=420.0, help="begin nothing after so many seconds")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(unknown)}: known are {', '.join(PARTS)}")
    options.batches = options.batches or BATCHES[options.device]
    options.kinds = [
        kind_of(each, options.device) for each in (options.engines or KINDS[options.device]).split(",")
    ]
    options.of_chain = [kind_of(options.chain, options.device)] if options.chain else []
    for kind in (*options.kinds, *options.of_chain):
        if kind.precision not in DTYPES:
            parser.error(f"{kind.backend}:{kind.precision}: known precisions are {', '.join(DTYPES)}")
    return options


def kind_of(name: str, device: str) -> Kind:
    """From words such as tensorrt:f16."""
    backend, _, precision = name.partition(":")
    return Kind(backend, precision, device)


def about(device: str) -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    gpus = machine.gpus() if device == "cuda" else ()
    driver = machine.driver_cuda() if device == "cuda" else None
    return {
        "gpu": str(gpus[0]) if gpus else "none",
        "driver_serves_cuda": f"{driver[0]}.{driver[1]}" if driver else "none",
        "cpu": machine.cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := machine.version(name))}
        | {"cv2": cv2.__version__},
        "f32": "without TF32",
        "threads": torch.get_num_threads(),
    }


def measure(results: Results, settings: Settings, options: argparse.Namespace) -> None:
    """What targets are set for, then the rest."""
    kinds, parts, models = options.kinds, options.parts, options.models.split(",")
    chains = Chains(results, settings)
    first = [kind for kind in kinds if kind.precision == kinds[0].precision]
    if "chain" in parts and not options.of_chain:
        chains.target(kinds[0])
    if "engines" in parts:
        measure_engines(results, settings, first, models)
    best = None
    if {"chain", "streams"} & set(parts):
        best = next(filter(chains.target, options.of_chain or by_speed(results, kinds)), None)
    if "engines" in parts:
        measure_engines(results, settings, [kind for kind in kinds if kind not in first], models)
    if "images" in parts:
        measure_image_path(results, settings)
    if "chain" in parts:
        for kind in options.of_chain or kinds:
            chains.equality(kind)
        if best:
            chains.rows(best)
    if "streams" in parts and best:
        chains.streams(best)


def measure_engines(
    results: Results, settings: Settings, kinds: Sequence[Kind], models: Sequence[str]
) -> None:
    for kind in kinds:
        dtype = DTYPES[kind.precision]
        peak = results.step(
            f"peak {kind.precision}", lambda dtype=dtype: peaks(settings.device, dtype, settings.seconds)
        )
        for model in models:
            results.step(
                f"engine {kind} {model}",
                lambda model=model, kind=kind, peak=peak: measure_engine(model, kind, settings, peak),
            )


def measure_image_path(results: Results, settings: Settings) -> None:
    for size in SIZES:
        for frames in FRAMES[settings.device]:
            results.step(
                f"images {size[0]}x{size[1]} {frames}",
                lambda size=size, frames=frames: measure_images(
                    TorchOps(settings.device), settings.device, size, frames, settings.seconds
                ),
            )


def by_speed(results: Results, kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds whose embedder is the fastest at its best batch first; those not measured last, as asked for."""

    def pictures_s(kind: Kind) -> float:
        rows = rows_of(results.rows.get(f"engine {kind} embedder", []))
        return max((row.get("pictures_s", 0.0) for row in rows), default=0.0)

    return sorted(kinds, key=pictures_s, reverse=True)


@dataclass(slots=True)
class Chains:
    """The chain on engines of one kind or another, each loaded when it is first measured."""

    results: Results
    settings: Settings
    loaded: dict[Kind, FaceEngines] = field(default_factory=dict)

    def engines(self, kind: Kind) -> FaceEngines:
        if kind not in self.loaded:
            self.loaded[kind] = FaceEngines(*(load(model, kind, self.settings).engine for model in MODELS))
        return self.loaded[kind]

    def target(self, kind: Kind) -> bool:
        """One face at 1280x720, and whether all is equal; False where the chain does not run, or the time is up."""
        for frames in FRAMES[self.settings.device]:
            row = self.row(kind, SIZES[0], FACES[0], frames)
            if row is None or failed(row):
                return False
        self.equality(kind)
        return True

    def row(self, kind: Kind, size: tuple[int, int], faces: int, frames: int) -> Any:
        device, seconds = self.settings.device, self.settings.seconds
        return self.results.step(
            f"chain {kind} {size[0]}x{size[1]} {faces} faces {frames}",
            lambda: (
                {"kind": str(kind)}
                | measure_chain(self.engines(kind), TorchOps(device), device, faces, size, frames, seconds)
            ),
        )

    def rows(self, kind: Kind) -> None:
        for size in SIZES:
            for faces in FACES:
                for frames in FRAMES[self.settings.device]:
                    self.row(kind, size, faces, frames)

    def equality(self, kind: Kind) -> None:
        device = self.settings.device
        self.results.step(
            f"equality {kind}",
            lambda: (
                {"kind": str(kind)} | measure_equality(self.engines(kind), TorchOps(device), kind.precision)
            ),
        )

    def streams(self, kind: Kind) -> None:
        device, seconds = self.settings.device, 4 * self.settings.seconds
        for size in SIZES:
            for faces in FACES:
                self.results.step(
                    f"streams {kind} {size[0]}x{size[1]} {faces} faces",
                    lambda faces=faces, size=size: (
                        {"kind": str(kind)}
                        | streams_served(self.engines(kind), TorchOps(device), faces, size, seconds)
                    ),
                )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it sees the tables
    raise SystemExit(main())
