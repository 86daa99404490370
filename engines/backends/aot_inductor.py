"""AOTInductor: the exported program compiled to machine code, on the CPU or on a GPU without TensorRT."""

import os
import shutil
from collections.abc import Sequence
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
    return machine.torch_versions()


def save(source: "Source", folder: Path) -> None:
    """Compile. Raises MienError without a C++ compiler, which is needed here and not to load."""
    import torch

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise MienError("AOTInductor builds with a C++ compiler, and g++ is not here: apt install g++")
    # Weights become constants that are laid out once, at the build.
    options = {"freezing": source.request.device == "cpu"}
    with torch.no_grad():
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
