"""AOTInductor: the exported program compiled to machine code, on the CPU or on a GPU without TensorRT."""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from engines import machine
from engines.errors import MienError
from engines.request import EngineRequest
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from engines.backends.torch_engine import TorchEngine
    from engines.source import Source

MODEL_FILE = "model.pt2"


def why_not(device: str, precision: str) -> str | None:
    if machine.version("torch") is None:
        return "torch is not installed: pip install torch"
    return machine.why_no_gpu() if device == "cuda" else None


def versions(device: str) -> dict[str, str]:
    """On a CPU with its flags, all of which the compiler may use."""
    flags = {"cpu_flags": machine.cpu_flags_sha256()} if device == "cpu" else {}
    return machine.torch_versions() | flags


def save(source: "Source", folder: Path) -> None:
    """Compile. Raises MienError without a C++ compiler, or CUDA's headers for a GPU; to load, neither is needed."""
    import torch

    from engines.backends.aot_inductor_cuda import cuda_for_the_compiler

    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MienError("AOTInductor builds with a C++ compiler, and g++ is not here: apt install g++")
    on_cpu = source.request.device == "cpu"
    # Weights become constants that are laid out once, at the build.
    options = {"freezing": on_cpu}
    with torch.no_grad(), nullcontext() if on_cpu else cuda_for_the_compiler(compiler):
        torch._inductor.aoti_compile_and_package(
            source.program, package_path=str(folder / MODEL_FILE), inductor_configs=options
        )


def load(request: EngineRequest, folder: Path, spec: ModelSpec, threads: int) -> "TorchEngine":
    """Load the compiled package. Raises MienError where torch does not take it."""
    import torch

    from engines.backends.torch_engine import TorchEngine

    if threads:
        torch.set_num_threads(threads)
    path = folder / MODEL_FILE
    try:
        # Its events, which tell of runs at the same time, are not allowed in a CUDA graph's capture.
        model = torch._inductor.aoti_load_package(str(path), run_single_threaded=request.device == "cuda")
    except (RuntimeError, OSError) as error:
        raise MienError(f"{path}: torch does not take it ({str(error).splitlines()[0][:200]})") from None

    def run(images: "Tensor") -> Sequence["Tensor"]:
        outputs = model(images)
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

    return TorchEngine(run, request, spec)
