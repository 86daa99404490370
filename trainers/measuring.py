"""What every measurement shares: its options, its engines, and faces found through the whole chain."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.checkpoint import SPEC_FILE
from engines.errors import UsageError
from engines.geometry import Floats, Image, recognition_crop
from engines.runtime import Engine, load_engine
from engines.stages import embed, embed_both_sides, find_landmarks
from trainers.bootstrap import Figure
from trainers.faces import box_from_interocular, central_face

Figures = dict[str, Figure | str]
STILL_BOX = box_from_interocular(128, 33.0, 0.42)  # where a face stands in a 128 px picture of LFW or CelebA


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    data: str = "data"
    weights: str = ""  # a folder of checkpoints; none: the shipped ones
    video: str = ""  # a folder with the two test videos; none: they are left out
    video_step: int = 5  # one in so many of their frames judges the detector; 1 is all
    faint_ignored: bool = True  # what YuNet scores 0.3 to 0.6 in them; false: such a find is an error
    yunet: str = ""  # the YuNet ONNX file: a peer to measure beside; none: ours alone
    wider: str = ""  # a folder in the public WIDER FACE layout, to be measured too
    plots: str = ""  # a folder for pictures; none: no pictures
    backend: str = "auto"
    precision: str = "auto"  # f32, bf16, int8 ...: as the backend knows them
    limit: int = 0  # images of each set; 0 is all
    run: str = ""  # a folder that keeps found landmarks for the next measurement; none: found anew

    def __post_init__(self) -> None:
        if self.video_step < 1:
            raise UsageError(f"video_step={self.video_step}: must be 1 (every frame) or more")


def checkpoint_of(config: EvaluationConfig, model: str) -> Path:
    from engines.runtime import WEIGHTS

    return (Path(config.weights) if config.weights else WEIGHTS) / model


def holder_of(weights: str, model: str) -> str:
    """The folder that holds the model's checkpoint: `weights`, or its parent where `weights` is the checkpoint itself.

    Raises UsageError where there is none: the shipped model would be measured in its place.
    """
    folder = Path(weights).absolute()
    if (folder / model / SPEC_FILE).is_file():
        return weights
    is_one = (folder / SPEC_FILE).is_file()
    if is_one and folder.name == model:
        return str(folder.parent)
    found = "is itself a checkpoint" if is_one else f"there is no checkpoint {Path(weights) / model}"
    raise UsageError(f"weights={weights}: {found}; name the folder that holds {model}, or {model} itself")


def engine(config: EvaluationConfig, model: str, size: tuple[int, int] | None = None) -> Engine:
    """The model to be measured, or, where the folder of weights has none of it, the shipped one."""
    weights = Path(config.weights) if config.weights and checkpoint_of(config, model).is_dir() else None
    return load_engine(
        model,
        backend=config.backend,
        precision=config.precision,
        size=size,
        weights=weights,
        progress=print,
    )


def faces_through_chain(
    config: EvaluationConfig, images: list[Image], size: tuple[int, int], fallback: Floats
) -> tuple[Floats, int]:
    """Landmarks (M, 5, 2) by our detector and landmark network; the fallback box where no face is found."""
    detector = engine(config, "detector", size)
    boxes = [central_face(detector, image, min_score=0.2) for image in images]
    missed = sum(box is None for box in boxes)
    filled = np.stack([fallback if box is None else box for box in boxes])
    points, _ = find_landmarks(engine(config, "landmarks"), images, filled)
    return points, missed


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit embeddings of M pictures: as seen once (M, D), and with their mirror images (M, D); and faces missed."""

    once: Floats
    both: Floats
    missed: int


def embed_chain(config: EvaluationConfig, images: list[Image]) -> Embedded:
    """128x128 face pictures through the whole chain: a track's look is seen once, what is enrolled from both sides."""
    points, missed = faces_through_chain(config, images, (128, 128), STILL_BOX)
    crops = np.stack([recognition_crop(i, p) for i, p in zip(images, points, strict=True)])
    embedder = engine(config, "embedder")
    return Embedded(embed(embedder, crops), embed_both_sides(embedder, crops), missed)
