"""Torch-TensorRT on an NVIDIA GPU, over TensorRT or TensorRT-RTX: both come as the module torch_tensorrt.

Precision is strongly typed: the network is cast, TensorRT keeps to it, and float32 is not computed as TF32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import machine
from engines.errors import MienError
from engines.request import EngineRequest
from engines.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engines.source import Source

MODEL_FILE = "model.ep"
PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx")


def why_not(device: str, precision: str) -> str | None:
    return why_not_installed() or machine.why_no_gpu()


def why_not_installed() -> str | None:
    """What is wrong with the installed packages, apart from the GPU."""
    installed = [package for package in PACKAGES if machine.version(package)]
    if len(installed) == 2:
        return (
            "torch-tensorrt and torch-tensorrt-rtx are both installed, and both are the module torch_tensorrt; "
            "pip uninstall both, then pip install one"
        )
    if not installed:
        return "Torch-TensorRT is not installed: pip install 'mien[gpu]', or 'mien[rtx]' for TensorRT-RTX"
    return None


def versions(device: str) -> dict[str, str]:
    names = (*PACKAGES, "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt_rtx", "tensorrt-rtx-cu13")
    return machine.torch_versions() | {name: found for name in names if (found := machine.version(name))}


def save(source: "Source", folder: Path) -> None:
    """Compile the whole program into one engine for batches 1 to max_batch, and save it with its program."""
    import torch_tensorrt

    program = source.program
    compiled = torch_tensorrt.dynamo.compile(program, **options(source))
    _check_whole(compiled, source.request.model)
    torch_tensorrt.save(compiled, str(folder / MODEL_FILE), arg_inputs=[input_shapes(source)])


def options(source: "Source") -> dict[str, Any]:
    """Settings of the compiler: nothing may fall out of the engine, and its own weakly keyed cache is off."""
    return {
        "arg_inputs": [input_shapes(source)],
        "use_explicit_typing": True,
        "disable_tf32": source.request.precision == "f32",
        "require_full_compilation": True,
        "min_block_size": 1,
        "immutable_weights": True,
        "cache_built_engines": False,
        "reuse_cached_engines": False,
    }


def input_shapes(source: "Source") -> Any:
    """One optimisation profile from one picture to max_batch."""
    import torch
    import torch_tensorrt

    width, height = source.request.size
    most = source.request.max_batch
    shapes = {
        f"{name}_shape": (batch, height, width, 3)
        for name, batch in (("min", 1), ("opt", min(8, most)), ("max", most))
    }
    return torch_tensorrt.Input(**shapes, dtype=torch.uint8, name="images")


def _check_whole(compiled: "torch.fx.GraphModule", model: str) -> None:
    """Raises MienError naming what stayed outside the engine."""
    engines = [name for name, _ in compiled.named_children() if "_run_on_acc" in name]
    rest = [
        str(node.target)
        for node in compiled.graph.nodes
        if node.op == "call_function" and "getitem" not in str(node.target)
    ]
    if len(engines) != 1 or rest:
        raise MienError(
            f"{model}: TensorRT made {len(engines)} engines of it, and left to torch: {', '.join(rest) or 'nothing'}; "
            "use backend: aot_inductor and report it"
        )


def load(request: EngineRequest, folder: Path, spec: ModelSpec, threads: int) -> Any:
    """Load the saved program with its engine; nothing is compiled."""
    if request.is_onnx:
        from engines.backends import tensorrt_onnx

        return tensorrt_onnx.load(request, folder, spec)
    import torch
    import torch_tensorrt  # noqa: F401  registers the operators that run an engine

    from engines.backends.torch_engine import TorchEngine

    path = folder / MODEL_FILE
    try:
        module = torch.export.load(path).module()
    except (RuntimeError, ValueError, OSError) as error:
        raise MienError(f"{path}: TensorRT does not take it ({str(error).splitlines()[0][:200]})") from None

    def run(images: "Tensor") -> Sequence["Tensor"]:
        outputs = module(images)
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

    return TorchEngine(run, request, spec)


def save_onnx(source: "Source", folder: Path) -> None:
    """A user's ONNX file through TensorRT's own parser."""
    from engines.backends import tensorrt_onnx

    tensorrt_onnx.save(source, folder)
