"""The four expression sets in their real layouts, tiny; one tint a class, so that there is something to learn."""

from pathlib import Path

import cv2
import numpy as np

from tests.face_sets import face, write_zip

WORDS = ("angry", "fear", "happy", "sad", "surprise")
TINTS = ((40, 40, 200), (200, 40, 40), (40, 200, 40), (200, 200, 40), (40, 200, 200))
VOTED = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
VOTE_OF = (0, 3, 4, 6, 7)


def tinted(rng: np.random.Generator, label: int, size: int, interocular: float, height: float) -> np.ndarray:
    picture = face(rng, size, interocular, height)[0]
    return np.clip(picture * 0.6 + np.array(TINTS[label]) * 0.4, 0, 255).astype(np.uint8)


def write_expression(folder: Path, each: int = 6) -> None:
    """`each` pictures of every class and set; the first two of a class in FER are near-duplicates of each other."""
    rng = np.random.default_rng(281)
    for name, size, interocular, height in (("emotion_masked", 112, 43, 0.32), ("expw", 128, 32, 0.45)):
        rows = [{"file": f"{word}_{i}.webp", "emotion": word} for word in WORDS for i in range(each)]
        rows.append({"file": "neutral_0.webp", "emotion": "neutral"})
        pictures = {
            row["file"]: tinted(rng, i // each % 5, size, interocular, height) for i, row in enumerate(rows)
        }
        write_zip(folder / f"{name}.zip", pictures, rows)
    write_votes(folder, rng, each)
    rows = [
        {"file": f"{word}_{i}.webp", "emotion": "anger" if word == "angry" else word, "subject": f"S{i}"}
        for word in WORDS
        for i in range(each)
    ]
    small = {
        row["file"]: cv2.resize(tinted(rng, i // each, 112, 41, 0.38), (48, 48)) for i, row in enumerate(rows)
    }
    write_zip(folder / "ckplus.zip", small, rows)


def write_votes(folder: Path, rng: np.random.Generator, each: int) -> None:
    rows = []
    for label, word in enumerate(WORDS):
        for i in range(each):
            votes = {f"v_{name}": 0 for name in VOTED} | {
                f"v_{VOTED[VOTE_OF[label]]}": 2 if i == 2 else (4, 6, 6, 7)[i % 4]
            }
            copy = f"fer_{word}_0.webp" if i == 1 else ""
            rows.append(
                {
                    "path": f"fer_{word}_{i}.webp",
                    "usage": "Training",
                    "fer2013_label": word,
                    "dup_of": copy,
                    "unknown": 0,
                    **votes,
                }
            )
    small = {
        row["path"]: cv2.resize(tinted(rng, i // each, 112, 42, 0.38), (48, 48)) for i, row in enumerate(rows)
    }
    write_zip(folder / "ferplus.zip", small, [*rows, rows[0]])
