"""Which engine is wanted: model, backend, device, precision, and where its parts lie. Free of torch."""

import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from engines import machine
from engines.backends import openvino_bf16
from engines.errors import MienError, UsageError
from engines.spec import ModelSpec

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("detector", "landmarks", "embedder", "attributes")
# Each with its precisions, the default first: on the CPU, then on a GPU. Empty: it does not run there.
PRECISIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "tensorrt": {"cpu": (), "cuda": ("f16", "f32")},
    "aot_inductor": {"cpu": ("f32", "bf16"), "cuda": ("f16", "f32", "bf16")},
    "openvino": {"cpu": ("f32", "bf16", "int8"), "cuda": ()},
    "eager": {"cpu": ("f32", "bf16"), "cuda": ("f32", "f16", "bf16")},
}
BACKENDS = tuple(PRECISIONS)
DEVICES = ("cpu", "cuda")
# `auto` takes bf16 for these where the CPU is faster in it, `mixed` int8. Where a face is, is told in float32: a box
# that moves by half a pixel moves every crop after it.
READS_A_FACE = ("embedder", "attributes")
MAX_BATCH = {"detector": 8}  # pictures a call, for backends that must know; other models take 32


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One model on one backend at one input size. `checkpoint` is a folder, or the spec of an ONNX model."""

    model: str
    backend: str
    device: str
    precision: str
    size: tuple[int, int]
    max_batch: int
    checkpoint: Path
    cache: Path

    @property
    def is_onnx(self) -> bool:
        return self.checkpoint.suffix == ".json"

    @property
    def name(self) -> str:
        """The model's, and where it is not the shipped one, by what name its user keeps it."""
        if self.checkpoint.parent == WEIGHTS:
            return self.model
        keeper = self.checkpoint.parent if self.checkpoint.name == self.model else self.checkpoint
        name = keeper.stem if self.is_onnx else keeper.name
        place = hashlib.sha256(str(self.checkpoint.absolute()).encode()).hexdigest()
        return f"{self.model}+{name}.{place[:6]}"

    @property
    def folder(self) -> Path:
        parts = (self.name, f"{self.size[0]}x{self.size[1]}", self.backend, self.device, self.precision)
        return self.cache / "-".join(parts)

    @property
    def needs_build(self) -> bool:
        return self.backend != "eager"

    @property
    def words(self) -> str:
        return engine_words(self.model, self.size, self.backend, self.device, self.precision)


def engine_words(model: str, size: tuple[int, int], backend: str, device: str, precision: str) -> str:
    on = f"{backend} {precision}" + (" (GPU)" if device == "cuda" else "")
    return f"{model} {size[0]}x{size[1]} for {on}"


def backend_module(name: str) -> ModuleType:
    """The module of engines.backends; see there for what each offers."""
    return importlib.import_module(f"engines.backends.{name}")


def default_cache() -> Path:
    """$MIEN_CACHE, a systemd unit's CACHE_DIRECTORY, or the user's cache folder."""
    for name in ("MIEN_CACHE", "CACHE_DIRECTORY"):
        if value := os.environ.get(name):
            return Path(value.split(":")[0]) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mien" / "engines"


def best_backend(device: str = "auto") -> tuple[str, str]:
    """The (backend, device) that `auto` takes: TensorRT, then AOTInductor on a GPU; OpenVINO without one."""
    if device != "cpu" and machine.why_no_gpu() is None:
        usable = backend_module("tensorrt").why_not("cuda", "f16") is None
        return ("tensorrt" if usable else "aot_inductor"), "cuda"
    if device == "cuda":
        raise MienError(f"device: cuda is asked for, but {machine.why_no_gpu()}")
    return ("openvino" if machine.version("openvino") else "eager"), "cpu"


def resolve(
    model: str,
    backend: str = "auto",
    size: tuple[int, int] | None = None,
    weights: Path | None = None,
    cache: Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    max_batch: int | None = None,
    own: Path | None = None,
) -> EngineRequest:
    """Fill in defaults. Raises UsageError for an unknown name, MienError for what cannot run here.

    `own` is a model that takes the place of ours: a checkpoint's folder, or the spec file of an ONNX model.
    """
    own = own.absolute() if own else None  # its manifest tells from anywhere where it lies
    onnx = own if own is not None and own.suffix == ".json" else None
    backend, device = _backend_and_device(backend, device, onnx)
    checkpoint = own or (weights or WEIGHTS) / model
    if onnx is None and not checkpoint.is_dir():
        raise UsageError(
            f"{own}: neither the folder of a checkpoint nor the .json file of an ONNX model"
            if own
            else f"{checkpoint}: there is no model of this name; known are {', '.join(MODELS)}"
        )
    own_size = onnx_size(onnx, model, size) if onnx else _own_size(checkpoint, model)
    size = own_size if onnx else (size or own_size)
    if onnx and precision in ("int8", "f16"):
        raise UsageError(f"{onnx}: a user's ONNX model is not made {precision} here; give a file that is")
    if precision == "mixed":
        _check_precision(backend, device, "int8")
        precision = "int8" if model in READS_A_FACE and not onnx else "auto"
    if precision == "auto":
        precision = "f32" if onnx else best_precision(model, backend, device, cache or default_cache())
    _check_precision(backend, device, precision)
    if reason := backend_module(backend).why_not(device, precision):
        raise MienError(f"backend {backend} cannot run here: {reason}")
    batch = max_batch or MAX_BATCH.get(model, 32)
    return EngineRequest(model, backend, device, precision, size, batch, checkpoint, cache or default_cache())


def _own_size(checkpoint: Path, model: str) -> tuple[int, int]:
    """The input size of a checkpoint. Raises UsageError where it is of another model."""
    spec = ModelSpec.load(checkpoint / "spec.json")
    if model in MODELS and spec.task != model:
        raise UsageError(f"{checkpoint}: holds weights of {spec.task}, not of {model}; name another folder")
    return spec.input_size


def onnx_size(path: Path, model: str, size: tuple[int, int] | None) -> tuple[int, int]:
    """The size a user's ONNX model runs at: its own, or the one asked for where its spec leaves it open."""
    from engines.onnx_spec import OnnxSpec

    spec = OnnxSpec.load(path)
    if spec.task != model:
        raise UsageError(f"{path}: this is a spec for a {spec.task}, not for the {model}")
    return spec.input_size or size or ((640, 384) if model == "detector" else (112, 112))


def _backend_and_device(backend: str, device: str, onnx: Path | None) -> tuple[str, str]:
    if device not in ("auto", *DEVICES):
        raise UsageError(f"device {device!r} is not one of auto, {', '.join(DEVICES)}")
    if backend == "auto":
        backend, found = best_backend(device)
        if onnx and backend not in ("openvino", "tensorrt"):
            if device == "cuda":
                raise MienError(
                    f"{onnx}: device: cuda is asked for, and there an ONNX model needs TensorRT, but "
                    f"{backend_module('tensorrt').why_not('cuda', 'f32')}"
                )
            return "openvino", "cpu"
        return backend, found
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    if onnx and backend not in ("openvino", "tensorrt"):
        raise UsageError(
            f"{onnx}: an ONNX model runs on openvino and on tensorrt, not on {backend}; "
            "choose one of them, or leave the model out"
        )
    runs_on = [each for each in DEVICES if PRECISIONS[backend][each]]
    if device == "auto":
        device = "cuda" if runs_on == ["cuda"] or (len(runs_on) == 2 and not machine.why_no_gpu()) else "cpu"
    if device not in runs_on:
        raise UsageError(f"backend {backend} runs on {runs_on[0]}, not on {device}")
    return backend, device


def best_precision(model: str, backend: str, device: str, cache: Path) -> str:
    """What `auto` takes: the fastest that tells the same of a video, within bench.equality's tolerances."""
    if (
        backend == "openvino"
        and model in READS_A_FACE
        and not backend_module(backend).why_not(device, "bf16")
    ):
        return "bf16" if openvino_bf16.pays(cache) else "f32"
    return PRECISIONS[backend][device][0]


def _check_precision(backend: str, device: str, precision: str) -> None:
    known = PRECISIONS[backend][device]
    if precision not in known:
        raise UsageError(
            f"backend {backend} on {device} has no precision {precision}; it has {', '.join(known)}"
        )
