"""Builds every shipped network with TensorRT-RTX on a machine that has no GPU, and says what came of it.

Run as `python -m tests.tensorrt_without_gpu [SPEC.json ...]` with torch-tensorrt-rtx installed; one JSON line an
engine. TensorRT-RTX builds without a GPU, but its front-end asks torch about one: those questions are answered
here, and what would deserialise the engine is replaced by something that only keeps its bytes. Private names of
torch_tensorrt are used, so its version is pinned where this is installed.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from engines.backends import tensorrt, tensorrt_onnx
from engines.checkpoint import load_checkpoint
from engines.errors import MienError
from engines.onnx_spec import OnnxSpec
from engines.request import MODELS, WEIGHTS, EngineRequest
from engines.source import Source

PRETENDED = SimpleNamespace(
    name="none", major=8, minor=6, total_memory=16 << 30, multi_processor_count=1
)  # an Ampere GPU
ANSWERS = {
    "get_device_capability": (PRETENDED.major, PRETENDED.minor),
    "get_device_properties": PRETENDED,
    "get_device_name": PRETENDED.name,
    "current_device": 0,
    "mem_get_info": (PRETENDED.total_memory, PRETENDED.total_memory),
    "empty_cache": None,
    "synchronize": None,
}


def pretend() -> None:
    """Answer what torch_tensorrt asks at its import and while it lowers a program."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type(PRETENDED)
    is_file = os.path.isfile
    # Its C++ runtime needs CUDA; the Python parts do without.
    with patch("os.path.isfile", lambda path: "libtorchtrt" not in str(path) and is_file(path)):
        import torch_tensorrt  # noqa: F401
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_tensorrt") and hasattr(module, "to_torch_device"):
            module.to_torch_device = lambda *_: torch.device("cpu")


class KeptEngine:
    """Stands for a deserialised engine."""

    def __init__(self, plan: bytes) -> None:
        self.plan = plan

    def serialize(self) -> bytes:
        return self.plan

    def serialize_with_config(self, _: object) -> bytes:
        return self.plan

    def create_serialization_config(self) -> object:
        return SimpleNamespace(set_flag=lambda _: True, clear_flag=lambda _: True)

    def get_aliased_input_tensor(self, _: str) -> None:
        return None


class KeptLibrary:
    """The TensorRT module, with a Runtime that needs no GPU."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        if name == "Runtime":
            return lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: KeptEngine(bytes(plan)))
        return getattr(self._real, name)


def build(model: str, precision: str, batch: int) -> dict[str, object]:
    """One network, whole, into one engine: for one picture only, or for batches from 1 to `batch`."""
    import torch_tensorrt
    from torch_tensorrt.dynamo import _compiler
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    network, spec = load_checkpoint(WEIGHTS / model)
    request = EngineRequest(
        model, "tensorrt", "cpu", precision, spec.input_size, batch, WEIGHTS / model, Path()
    )
    source = Source(request, spec, network)
    options = tensorrt.options(source)
    program = source.program
    if batch == 1:
        program = torch.export.export(source.deployed(), (source.example(1),))
        options["arg_inputs"] = [source.example(1)]
    with patch.object(_TRTInterpreter, "trt", KeptLibrary(_TRTInterpreter.trt)):
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, offload_module_to_cpu=False, **options
        )
    seen: list[Any] = []
    with patch.object(_compiler, "dryrun_stats_display", lambda tracker, _: seen.append(tracker)):
        torch_tensorrt.dynamo.compile(program, **options, dryrun=True)
    return {
        "model": model,
        "precision": precision,
        "batch": batch,
        "bytes": len(plan),
        "operators": seen[0].total_ops_in_graph,
        "supported": seen[0].supported_ops_in_graph,
        "unconverted": [*map(str, seen[0].unsupported_ops), *seen[0].to_run_in_torch],
        "engines": seen[0].tensorrt_graph_count,
    }


def build_onnx(path: Path) -> dict[str, object]:
    spec = OnnxSpec.load(path)
    size = spec.input_size or (640, 384)
    request = EngineRequest(spec.task, "tensorrt", "cpu", "f32", size, 8, path, Path())
    try:
        return {"onnx": path.stem, "bytes": len(tensorrt_onnx.plan(spec, request))}
    except MienError as error:
        return {"onnx": path.stem, "refused": str(error)}


def main(argv: list[str]) -> None:
    pretend()
    print(json.dumps({"types": [*tensorrt_onnx.library().DataType.__members__]}), flush=True)
    for path in argv:
        print(json.dumps(build_onnx(Path(path))), flush=True)
    for model in MODELS:
        for precision in ("f32", "f16"):
            for max_batch in (1, 32):
                print(json.dumps(build(model, precision, max_batch)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
