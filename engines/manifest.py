"""What an engine was built from and for, written beside it and checked at every load."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engines import machine
from engines.errors import MienError
from engines.request import engine_words

MANIFEST_FILE = "manifest.json"
NETWORK_SOURCES = ("deploy.py", "networks/*.py", "calibration.py")
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd")


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """Provenance of one built engine. `files` maps each engine file to its sha256."""

    model: str
    source: str  # the checkpoint's folder, or the spec file of an ONNX model
    backend: str
    device: str
    precision: str
    input_size: tuple[int, int]
    max_batch: int
    inputs: dict[str, list[str]]  # name -> dimensions, in words where they are free
    weights_sha256: str
    spec_sha256: str
    code_sha256: str  # of the source of the backend and, but for an ONNX model, of the networks
    program_sha256: str  # of the exported program, or of the ONNX file
    versions: dict[str, str]
    cpu_isa: str
    gpu: str  # name and capability of the GPU it was built on; "" for the CPU
    files: dict[str, str]
    calibration: dict[str, Any]  # int8: what the ranges were measured on
    memory: dict[str, int]  # GPU: bytes of the weights and, estimated, of one picture's activations
    parity: dict[
        str, float
    ]  # largest deviation from the reference, per output, relative to the output's range
    parity_reference: str  # what it was compared with
    built_at: str  # RFC 3339, UTC
    build_seconds: float

    @property
    def words(self) -> str:
        return engine_words(self.model, self.input_size, self.backend, self.device, self.precision)

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "EngineManifest":
        """Raises MienError when it is missing or damaged."""
        try:
            raw = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            known = {**raw, "input_size": tuple(raw["input_size"])}
            if set(known) != {field.name for field in fields(cls)}:
                raise ValueError("its fields are those of another version of Mien")
            return cls(**known)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MienError(
                f"{folder / MANIFEST_FILE}: unreadable ({error}); `mien engines build` makes it anew"
            ) from None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a load asks of a built engine."""

    words: str  # EngineRequest.words
    weights_sha256: str
    spec_sha256: str
    code_sha256: str
    versions: Mapping[str, str]
    gpu: str
    batch: int  # 0: any


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256(backend: str, onnx: bool) -> str:
    """One checksum over the source that makes the engine: the same weights in changed code are another engine."""
    root = Path(__file__).parent
    sources = (f"backends/{backend}*.py", *(() if onnx else NETWORK_SOURCES))
    digest = hashlib.sha256()
    for path in sorted(path for pattern in sources for path in root.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cpu_isa() -> str:
    """The machine and the vector extensions that compiled code may use."""
    flags = machine.cpu_flags()
    return "+".join([platform.machine(), *(flag for flag in ISA_FLAGS if flag in flags)])


def difference(found: EngineManifest, wanted: Wanted) -> str | None:
    """Why a built engine is not the one wanted, or None."""
    if found.words != wanted.words:
        return f"what lies there was built as {found.words}"
    if found.weights_sha256 != wanted.weights_sha256:
        return "the weights have changed"
    if found.spec_sha256 != wanted.spec_sha256:
        return "the spec has changed"
    if found.code_sha256 != wanted.code_sha256:
        return "the code that it is made by has changed"
    for library, version in wanted.versions.items():
        if found.versions.get(library) != version:
            return f"built with {library} {found.versions.get(library)}, here is {version}"
    if found.cpu_isa != cpu_isa():
        return f"built for {found.cpu_isa}, here is {cpu_isa()}"
    if found.gpu != wanted.gpu:
        return f"built for {found.gpu or 'no GPU'}, here is {wanted.gpu or 'none'}"
    if found.max_batch < wanted.batch:
        return f"built for batches up to {found.max_batch}, wanted are {wanted.batch}"
    return None


def damage(folder: Path, found: EngineManifest) -> str | None:
    """The first engine file that is missing or not as built, or None."""
    for name, digest in found.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            return f"{name} is missing or damaged"
    return None if found.files else "it lists no files"
