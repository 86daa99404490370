"""What the compiler of an engine for a GPU needs beside itself: CUDA's headers, and the driver's library to link."""

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines import machine
from engines.errors import MienError

TOOLKITS = Path("/usr/local")
HEADERS = ("cuda.h", "cuda_runtime.h", "cuda_fp16.h")  # what torch's own headers include


@contextmanager
def cuda_for_the_compiler(compiler: str) -> Iterator[None]:
    """Meanwhile torch and the linker find both. Raises MienError where there are no headers.

    torch takes any folder in which it guesses a toolkit, and asks the linker for libcuda.so, of which a machine that
    only runs programs has libcuda.so.1.
    """
    from torch.utils import cpp_extension

    home = next((str(each) for each in homes() if compiles(compiler, each)), None)
    if home is None:
        raise MienError(
            f"AOTInductor builds for a GPU with CUDA's headers ({', '.join(HEADERS)} and what they include), which are "
            "not here whole: install the CUDA toolkit, and set CUDA_HOME where it is not in /usr/local"
        )
    with tempfile.TemporaryDirectory() as folder:
        if driver := driver_file():
            (Path(folder) / "libcuda.so").symlink_to(driver)
        libraries = os.pathsep.join(filter(None, (folder, os.environ.get("LIBRARY_PATH"))))
        with _environment(CUDA_HOME=home, LIBRARY_PATH=libraries):
            cpp_extension.CUDA_HOME = home
            yield


def homes() -> list[Path]:
    """Where CUDA may lie: as the user says, as torch guesses, where toolkits are installed, and in pip's packages."""
    from torch.utils import cpp_extension

    named = [Path(each) for each in (os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME) if each]
    newest_first = sorted(TOOLKITS.glob("cuda-*"), key=_numbers, reverse=True)
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found else None
    packed = [each for place in places or () for each in Path(place).glob("cu[0-9]*")]
    return [*named, TOOLKITS / "cuda", *newest_first, *sorted(packed, key=_numbers, reverse=True)]


def compiles(compiler: str, home: Path) -> bool:
    """Whether the headers are there, and all that they include."""
    if not (home / "include" / HEADERS[0]).is_file():
        return False
    program = "".join(f"#include <{header}>\n" for header in HEADERS)
    words = [compiler, f"-I{home / 'include'}", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(words, input=program, capture_output=True, text=True, check=False).returncode == 0


def driver_file() -> Path | None:
    """Where the driver's library lies, which is found as libcuda.so.1."""
    machine.driver_cuda()  # loads it
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    match = re.search(r"(/\S*/libcuda\.so\S*)$", maps, re.MULTILINE)
    return Path(match[1]) if match else None


def _numbers(path: Path) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", path.name)]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These environment variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
