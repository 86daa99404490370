"""What the machine can run, found out without torch: NVIDIA GPUs and their driver, the CPU, what is installed."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # of a CPU that has instructions for bf16
OLDEST_GPU = {12: (5, 0), 13: (7, 5)}  # by CUDA's major version: the least compute capability it compiles for
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device, in the order in which torch numbers them."""

    name: str
    capability: str  # such as 9.0
    memory_bytes: int

    @property
    def version(self) -> tuple[int, int]:
        """The capability as numbers."""
        major, minor = self.capability.split(".")
        return int(major), int(minor)

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability.replace('.', '')})"


def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices this process may use; none where there is no driver."""
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return ()
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, number) for number in range(count.value))


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Gpu(name.value.decode("utf-8", "replace"), ".".join(parts), memory.value)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version the driver serves, such as (13, 0); None where there is no driver."""
    driver = _driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA version that the installed torch is built for, read from its files; None for a CPU build."""
    folder = _torch_folder()
    if folder is None:
        return None
    text = (folder / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*= *'(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


@functools.cache
def least_capability() -> tuple[int, int]:
    """Of the oldest GPU that the installed torch has kernels for, such as (7, 5).

    Read from its files, where torch.cuda.get_arch_list() has it from; else the oldest that its CUDA knows.
    """
    folder, cuda = _torch_folder(), torch_cuda()
    library = folder / "lib" / "libtorch_python.so" if folder else None
    content = library.read_bytes() if library and library.is_file() else b""
    if match := re.search(rb"\0((?:(?:sm|compute)_\d+[af]? ?)+)\0", content):
        return min(divmod(int(number), 10) for number in re.findall(rb"\d+", match[1]))
    return OLDEST_GPU.get(cuda[0] if cuda else 0, (0, 0))


def _torch_folder() -> Path | None:
    found = importlib.util.find_spec("torch")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def torch_versions() -> dict[str, str]:
    """torch and the CUDA it is built for, as a manifest states them."""
    cuda = torch_cuda()
    return {"torch": str(version("torch")), "torch_cuda": f"{cuda[0]}.{cuda[1]}" if cuda else "none"}


def why_no_gpu() -> str | None:
    """Why torch cannot use an NVIDIA GPU here, and what to do; None where it can."""
    driver, torch = driver_cuda(), torch_cuda()
    if version("torch") is None:
        return "torch is not installed: pip install torch"
    if driver is None:
        return "there is no NVIDIA driver here (no libcuda.so.1); install one, or use backend: openvino"
    if torch is None:
        return "the installed torch is built without CUDA: pip install torch from its CUDA index"
    if driver[0] < torch[0]:
        return (
            f"the NVIDIA driver is too old: it serves CUDA {driver[0]}.{driver[1]}, torch is built for "
            f"{torch[0]}.{torch[1]}; update the driver, or install a torch for CUDA {driver[0]}"
        )
    found = gpus()
    if not found:
        return "the NVIDIA driver shows no GPU to this process; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    major, minor = least_capability()
    if found[0].version < (major, minor):
        return (
            f"{found[0]} is older than what the installed torch has kernels for (sm_{major}{minor} and newer); "
            "install a torch that is built for it, or use backend: openvino"
        )
    return None


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def cpu_flags_sha256() -> str:
    """The beginning of a checksum over all of them, for code that is compiled for just this CPU."""
    return hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:12]


def version(package: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor as Linux names it, or as Python's platform does."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    line = next((line for line in text.splitlines() if line.startswith("model name")), "")
    return line.partition(":")[2].strip() or platform.processor() or platform.machine()


def described(packages: Sequence[str]) -> dict[str, Any]:
    """Hardware and versions, to stand beside a figure; packages that are not installed are left out."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [str(gpu) for gpu in gpus()],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := version(name))},
    }
