"""What an engine was built from and for, written beside it and checked at every load."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.errors import MienError

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """Provenance of one built engine. `files` maps each engine file to its sha256."""

    model: str
    backend: str
    precision: str
    input_size: tuple[int, int]
    weights_sha256: str
    spec_sha256: str
    versions: dict[str, str]
    cpu_isa: str
    files: dict[str, str]
    parity: dict[str, float]  # largest deviation from eager, per output, relative to the output's range
    build_seconds: float

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "EngineManifest":
        """Raises MienError when it is missing or damaged."""
        try:
            raw = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            return cls(**{**raw, "input_size": tuple(raw["input_size"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MienError(
                f"{folder / MANIFEST_FILE}: unreadable ({error}); `mien engines build` makes it anew"
            ) from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cpu_isa() -> str:
    """The machine and the vector extensions that compiled code may use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return "+".join([platform.machine(), *(flag for flag in wanted if flag in flags)])


def difference(
    found: EngineManifest, weights_sha256: str, spec_sha256: str, versions: dict[str, str]
) -> str | None:
    """Why a built engine is not the one wanted, or None."""
    if found.weights_sha256 != weights_sha256:
        return "the weights have changed"
    if found.spec_sha256 != spec_sha256:
        return "the spec has changed"
    for library, wanted in versions.items():
        if found.versions.get(library) != wanted:
            return f"built with {library} {found.versions.get(library)}, here is {wanted}"
    if found.cpu_isa != cpu_isa():
        return f"built for {found.cpu_isa}, here is {cpu_isa()}"
    return None


def damage(folder: Path, found: EngineManifest) -> str | None:
    """The first engine file that is missing or not as built, or None."""
    for name, digest in found.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            return f"{name} is missing or damaged"
    return None
