"""Are two images of the same person: similarity, threshold, verdict, and a picture of what was compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.config import Config
from daemon.identity import threshold_of
from daemon.images import read_image
from daemon.stills import StillFace, find_faces
from engines.errors import MienError
from engines.runtime import FaceEngines
from engines.stages import embed_both_sides

Image = NDArray[np.uint8]

MAGNIFIED = 3
CAPTION_PX = 56
GROUND = (32, 32, 32)
INK = (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two faces and their cosine. num_faces: how many each image shows; the largest is compared."""

    faces: tuple[StillFace, StillFace]
    num_faces: tuple[int, int]
    similarity: float
    threshold: float

    @property
    def same(self) -> bool:
        """Whether they are taken for one person."""
        return self.similarity >= self.threshold

    @property
    def verdict(self) -> str:
        """In words."""
        return "the same person" if self.same else "different people"


def compare(engines: FaceEngines, config: Config, first: Path, second: Path) -> Comparison:
    """Compares the largest faces of two images; raises MienError where one shows none or cannot be read."""
    if engines.embedder is None:
        raise MienError("comparing needs an embedder; load the engines with one")
    found = [_faces(engines, config, path) for path in (first, second)]
    largest = (found[0][0], found[1][0])
    a, b = embed_both_sides(engines.embedder, np.stack([face.aligned_crop for face in largest]))
    return Comparison(
        faces=largest,
        num_faces=(len(found[0]), len(found[1])),
        similarity=float(a @ b),
        threshold=threshold_of(config.identity, engines.embedder.spec),
    )


def _faces(engines: FaceEngines, config: Config, path: Path) -> list[StillFace]:
    faces = find_faces(engines, read_image(path), config.quality)
    if not faces:
        raise MienError(f"{path}: shows no face; give an image with a face in it")
    return faces


def picture(comparison: Comparison) -> Image:
    """(H, W, 3) uint8 BGR: the two aligned crops side by side, and the verdict below."""
    crops = [
        cv2.resize(face.aligned_crop, None, fx=MAGNIFIED, fy=MAGNIFIED, interpolation=cv2.INTER_CUBIC)
        for face in comparison.faces
    ]
    pair = np.hstack((crops[0], np.full((crops[0].shape[0], 8, 3), GROUND, np.uint8), crops[1]))
    caption = np.full((CAPTION_PX, pair.shape[1], 3), GROUND, np.uint8)
    words = (
        f"{comparison.verdict}: similarity {comparison.similarity:.3f}, threshold {comparison.threshold:.3f}"
    )
    cv2.putText(caption, words, (16, 36), INK, cv2.FontFace("sans"), 22, 500)
    return np.vstack((pair, caption)).astype(np.uint8, copy=False)


def write_picture(path: Path, comparison: Comparison) -> None:
    """Writes the picture as the kind of image that the name says; raises MienError where that cannot be."""
    try:
        encoded = cv2.imencode(path.suffix or ".png", picture(comparison))[1]
    except cv2.error:
        raise MienError(f"{path}: no kind of image; name a .png, .jpg or .webp file") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise MienError(f"{path}: cannot be written ({error.strerror}); check the folder") from None
