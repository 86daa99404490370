"""ModelSpec: what a network is and how it is fed, saved beside its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import MienError

EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
EXPRESSIONS = ("Angry", "Fear", "Happy", "Sad", "Surprised")
TASKS = ("detector", "landmarks", "embedder", "attributes", "expression")
# These fields came later, and are written only where they differ: a spec from before keeps its bytes and checksum.
LATER = {"room": 0, "aligned": True}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The contract of one model.

    An engine takes (N, H, W, 3) uint8 BGR and applies `mean` and `std` (in units of 0..255, the same for
    every channel) itself, so that nobody outside can get them wrong. What attributes are fed is
    `engines.geometry.attribute_crop` with `room`, where `aligned`; else a whole picture, as it was trained on.
    """

    name: str
    task: str  # one of TASKS
    network: str  # class in engines.networks
    network_args: dict[str, Any]
    input_size: tuple[int, int]  # (width, height)
    outputs: tuple[str, ...]
    mean: float = 127.5
    std: float = 128.0
    labels: tuple[str, ...] = ()
    threshold: float | None = None  # detector: score; embedder: cosine similarity
    weights_sha256: str = ""
    room: int = 0  # attributes: px of 112 around the attribute crop
    aligned: bool = True  # attributes: False, where no crop of a face is what it was trained on

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise MienError(f"spec of {self.name}: task {self.task!r} is none of {', '.join(TASKS)}")
        if min(self.input_size) < 1 or self.std <= 0:
            raise MienError(f"spec of {self.name}: input_size and std must be positive")
        if self.room < 0:
            raise MienError(f"spec of {self.name}: room must be 0 or more")

    def check_aligned(self) -> None:
        """Raises MienError where it was trained on whole pictures, so that a crop of a face would be misread."""
        if not self.aligned:
            raise MienError(
                f"{self.task} {self.name!r} was trained on whole thumbnails (crop=thumbnail), not on faces as they "
                "are cut here, and would misread them; `mien evaluate ffhq` alone can feed it. Train one with "
                "`mien train ffhq crop=wide` (or crop=attribute), or leave it out of engines:"
            )

    def to_json(self) -> str:
        fields = {k: v for k, v in asdict(self).items() if k not in LATER or v != LATER[k]}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> "ModelSpec":
        """Raises MienError naming the file when it is missing, not JSON, or does not fit."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            return cls(**fields)
        except FileNotFoundError:
            raise MienError(
                f"{path}: missing; a checkpoint is weights.safetensors + spec.json + card.md"
            ) from None
        except (ValueError, TypeError) as error:
            raise MienError(
                f"{path}: not a model spec ({error}); train or copy the checkpoint again"
            ) from None
