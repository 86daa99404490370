"""ModelSpec: what a network is and how it is fed, saved beside its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import MienError

EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
EXPRESSIONS = ("Angry", "Fear", "Happy", "Sad", "Surprised")
TASKS = ("detector", "landmarks", "embedder", "attributes", "expression")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The contract of one model.

    An engine takes (N, H, W, 3) uint8 BGR and applies `mean` and `std` (in units of 0..255, the same for
    every channel) itself, so that nobody outside can get them wrong.
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

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise MienError(f"spec of {self.name}: task {self.task!r} is none of {', '.join(TASKS)}")
        if min(self.input_size) < 1 or self.std <= 0:
            raise MienError(f"spec of {self.name}: input_size and std must be positive")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

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
