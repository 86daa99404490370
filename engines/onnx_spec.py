"""A model of the user's own: an ONNX file and the small JSON file that says how it is fed and read.

{"onnx": "yunet.onnx", "task": "detector", "decoding": "yunet", "layout": "NCHW", "colour": "BGR",
 "mean": 0, "std": 1, "input_size": null, "batch": null, "threshold": 0.6}

`onnx` is taken from the spec file's folder. `mean` and `std` are one number or three, in the colour order
given, in units of 0..255. `input_size` [width, height] null: the file leaves it open. `batch` null: any.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.geometry import FACE_SIZE, FINE_STRIDES, location_centres
from engines.spec import ModelSpec

Floats = NDArray[np.float32]
LAYOUTS, COLOURS = ("NCHW", "NHWC"), ("BGR", "RGB")
DECODINGS = {"detector": ("yunet", "scrfd"), "embedder": ("embedding",)}
OUTPUTS = {"detector": ("scores", "sides"), "embedder": ("embedding",)}


@dataclass(frozen=True, slots=True)
class OnnxSpec:
    """See the module's docstring. `outputs` names an embedder's output, or a detector's in decoding order."""

    path: Path
    onnx: Path
    task: str
    decoding: str
    layout: str = "NCHW"
    colour: str = "BGR"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input_size: tuple[int, int] | None = None
    batch: int | None = None
    threshold: float | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "task": (self.task, tuple(DECODINGS)),
            "decoding": (self.decoding, DECODINGS.get(self.task, ())),
            "layout": (self.layout, LAYOUTS),
            "colour": (self.colour, COLOURS),
        }
        for key, (value, known) in checks.items():
            if value not in known:
                raise MienError(f"{self.path}: {key} {value!r} is not one of {', '.join(known)}")
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3) or min(self.std) <= 0:
            raise MienError(f"{self.path}: mean and std are one number or three, std above 0")
        if self.batch is not None and self.batch < 1:
            raise MienError(f"{self.path}: batch {self.batch} is below 1")
        self._check_threshold()
        size = self.input_size
        if size and (
            len(size) != 2 or min(size) < 1 or (self.task == "detector" and any(v % 32 for v in size))
        ):
            raise MienError(f"{self.path}: input_size is [width, height], a detector's in multiples of 32")
        if self.task == "embedder" and size not in (None, (FACE_SIZE, FACE_SIZE)):
            raise MienError(f"{self.path}: an embedder is fed aligned faces of {FACE_SIZE}x{FACE_SIZE} px")
        if not self.onnx.is_file():
            raise MienError(f"{self.path}: names {self.onnx}, which is not there")

    def _check_threshold(self) -> None:
        """A detector's is of scores, an embedder's of similarities."""
        if self.threshold is None:
            return
        if self.task == "detector" and not 0 < self.threshold < 1:
            raise MienError(f"{self.path}: threshold {self.threshold} of a detector is not between 0 and 1")
        if self.task == "embedder" and not -1 <= self.threshold <= 1:
            raise MienError(f"{self.path}: threshold {self.threshold} of an embedder is not within -1 to 1")

    @classmethod
    def load(cls, path: Path) -> "OnnxSpec":
        """Raises MienError naming the file and the key that is wrong."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MienError(f"{path}: not a readable JSON file ({error})") from None
        known = {field.name for field in fields(cls)} - {"path"}
        if not isinstance(raw, dict) or not {"onnx", "task", "decoding"} <= set(raw):
            raise MienError(f"{path}: needs at least the keys onnx, task and decoding")
        for key in set(raw) - known:
            near = difflib.get_close_matches(key, known, 1)
            raise MienError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        try:
            return cls(path=path, **_typed(raw, path.parent))
        except (TypeError, ValueError) as error:
            raise MienError(f"{path}: {error}") from None

    def model_spec(self, size: tuple[int, int], sha256: str) -> ModelSpec:
        """What the stages see of it."""
        return ModelSpec(
            name=self.path.stem,
            task=self.task,
            network="onnx",
            network_args={},
            input_size=size,
            outputs=OUTPUTS[self.task],
            threshold=self.threshold,
            weights_sha256=sha256,
        )

    def sha256(self) -> str:
        """Of the file, and of those beside it or in folders there in which it says that weights lie."""
        content = self.onnx.read_bytes()
        digest = hashlib.sha256(content)
        if b"location" in content:  # the key of ONNX's external data
            for path in sorted(_named(content, self.onnx.parent)):
                if path != self.onnx:
                    digest.update(path.read_bytes())
        return digest.hexdigest()

    def input_shape(self, size: tuple[int, int], batch: int) -> tuple[int, ...]:
        width, height = size
        return (batch, 3, height, width) if self.layout == "NCHW" else (batch, height, width, 3)

    def output_names(self, available: tuple[str, ...]) -> tuple[str, ...]:
        """The file's outputs in the order in which `decode` takes them."""
        if self.outputs:
            wanted = self.outputs
        elif self.decoding == "yunet":
            wanted = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in FINE_STRIDES)
        elif self.task == "embedder" and len(available) == 1:
            wanted = available
        else:
            which = (
                "the embedding's"
                if self.task == "embedder"
                else "scores, then boxes, of strides 8, 16 and 32"
            )
            raise MienError(
                f"{self.path}: {self.onnx.name} has the outputs {', '.join(available)}; name {which} as outputs"
            )
        missing = [name for name in wanted if name not in available]
        if missing:
            raise MienError(
                f"{self.onnx}: has no output {missing[0]!r}, which {self.path.name} needs; "
                f"it has {', '.join(available)}"
            )
        return wanted

    def decode(self, values: list[Floats], size: tuple[int, int]) -> dict[str, Floats]:
        """The file's outputs -> those of OUTPUTS, in our detector's convention (see engines.networks.detector)."""
        if self.task == "embedder":
            rows = values[0].reshape(len(values[0]), -1)
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            return {"embedding": (rows / np.maximum(length, 1e-12)).astype(np.float32)}
        decoder: Mapping[str, Callable[..., dict[str, Floats]]] = {"yunet": _yunet, "scrfd": _scrfd}
        return decoder[self.decoding](values, size)

    def check_decoded(self, decoded: dict[str, Floats], size: tuple[int, int], batch: int) -> None:
        """Raises MienError where what came out is not what this decoding gives."""
        if self.task == "detector":
            num = len(location_centres(size, FINE_STRIDES)[0])
            wanted = {"scores": (batch, num), "sides": (batch, num, 4)}
        else:
            wanted = {"embedding": (batch, max(2, decoded["embedding"].shape[-1]))}
        for name, shape in wanted.items():
            if decoded[name].shape != shape:
                raise MienError(
                    f"{self.onnx}: decoding {self.decoding!r} gives {name} {decoded[name].shape} where "
                    f"{shape} is due; correct input_size, decoding or outputs in {self.path.name}"
                )


def _named(content: bytes, folder: Path) -> Iterator[Path]:
    """The files in `folder`, and in folders within it, whose places from there stand in `content`."""

    def stands(path: Path, end: str = "") -> bool:
        return f"{path.relative_to(folder).as_posix()}{end}".encode() in content

    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if stands(Path(place, name), "/")]
        yield from (path for name in names if stands(path := Path(place, name)) and path.is_file())


def _typed(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    typed = dict(raw, onnx=folder / str(raw["onnx"]))
    for key in ("mean", "std"):
        if key in raw:
            values = raw[key] if isinstance(raw[key], list) else [raw[key]]
            typed[key] = tuple(_number(key, value) for value in values)
    if raw.get("threshold") is not None:
        typed["threshold"] = _number("threshold", raw["threshold"])
    for key in ("input_size", "outputs"):
        if raw.get(key) is not None:
            typed[key] = (raw[key],) if isinstance(raw[key], str) else tuple(raw[key])
    return {key: value for key, value in typed.items() if value is not None}


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} {value!r} is not a number") from None


def _yunet(values: list[Floats], size: tuple[int, int]) -> dict[str, Floats]:
    """YuNet (Wu et al. 2023), outputs cls, obj, bbox of each stride, (N, A_s, 1 or 4).

    A score is the root of cls x obj. A box is its centre's offset from the location's corner and the
    logarithm of its sides, in strides; ours are distances from the location's centre, half a stride on.
    """
    n = len(values[0])
    cls, obj, box = (
        np.concatenate([value.reshape(n, -1, width) for value in values[3 * i : 3 * i + 3]], 1)
        for i, width in enumerate((1, 1, 4))
    )
    scores = np.sqrt(np.clip(cls[..., 0], 0, 1) * np.clip(obj[..., 0], 0, 1))
    offset, half = box[..., :2] - 0.5, np.exp(box[..., 2:]) / 2
    return {"scores": scores, "sides": np.concatenate((half - offset, half + offset), -1)}


def _scrfd(values: list[Floats], size: tuple[int, int]) -> dict[str, Floats]:
    """SCRFD (Guo et al. 2021), outputs scores then sides of each stride, two anchors a location.

    The better anchor of each location is kept. Its locations are at corners, ours half a stride on.
    """
    counts = [(size[0] // stride) * (size[1] // stride) for stride in FINE_STRIDES]
    n = max(1, values[0].size // (2 * counts[0]))
    scores = np.concatenate([v.reshape(n, c, 2) for v, c in zip(values[:3], counts, strict=True)], 1)
    sides = np.concatenate([v.reshape(n, c, 2, 4) for v, c in zip(values[3:6], counts, strict=True)], 1)
    best = scores.argmax(2)
    chosen = np.take_along_axis(sides, best[:, :, None, None], 2)[:, :, 0]
    return {"scores": scores.max(2), "sides": chosen + np.array([0.5, 0.5, -0.5, -0.5], np.float32)}
