"""Whether a chain on a device tells what eager float32 tells on the host: the GPU's share of bench.equality."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from bench.gpu_chain import Told, chain, check_found, wall_of_faces
from bench.tolerances import CLEAR_EMOTION, CLEAR_GENDER, TOLERANCES
from engines.errors import MienError
from engines.geometry import iou_matrix
from engines.image_ops import HOST, ImageOps
from engines.runtime import FaceEngines, load_face_engines

WALLS = ((1, (1280, 720)), (4, (1920, 1080)), (16, (1280, 720)))  # faces, and the picture's size: one batch
MIN_IOU = 0.5


@cache
def told_on_the_host() -> Told:
    """Of WALLS, by eager float32 and cv2."""
    return told(load_face_engines(backend="eager", device="cpu", precision="f32"), HOST)


def told(engines: FaceEngines, ops: ImageOps) -> Told:
    """Of WALLS. Raises MienError unless every face is found."""
    found = chain(engines, [wall_of_faces(*wall) for wall in WALLS], ops)
    check_found(found, [faces for faces, _ in WALLS])
    return found


def measure_equality(engines: FaceEngines, ops: ImageOps, precision: str) -> dict[str, Any]:
    """The deviations, and in words those beyond bench.equality's tolerances for this precision."""
    found = deviations(told_on_the_host(), told(engines, ops))
    limits = {name: limit for name, limit in TOLERANCES[precision].items() if name in found}
    beyond = [
        f"{name} {found[name]:g} > {limit:g}" for name, limit in limits.items() if not found[name] <= limit
    ]
    return {**found, "beyond": "; ".join(beyond)}


def deviations(wanted: Told, got: Told) -> dict[str, float]:
    """The largest and the 99th percentile, named as bench.deviations does. Raises MienError for another face."""
    picture = np.repeat(np.arange(len(wanted.found)), wanted.found)[:, None] * 10_000.0  # px: no overlap
    overlap = iou_matrix(wanted.boxes_xyxy + picture, got.boxes_xyxy + picture)
    pairs = overlap.argmax(1)
    if overlap.max(1).min() < MIN_IOU or len(set(pairs)) < len(pairs):
        raise MienError("the chain finds faces in other places than eager f32 on the host")
    box = np.abs(wanted.boxes_xyxy - got.boxes_xyxy[pairs]).max(1)
    landmark = np.abs(wanted.landmarks - got.landmarks[pairs]).max((1, 2))
    values = {
        "box_px": box,
        "box_share": box / (wanted.boxes_xyxy[:, 2:] - wanted.boxes_xyxy[:, :2]).max(1),
        "landmark_px": landmark,
        "landmark_share": landmark / np.linalg.norm(wanted.landmarks[:, 1] - wanted.landmarks[:, 0], axis=1),
        "embedding_off": np.abs(1 - (wanted.embeddings * got.embeddings[pairs]).sum(1)),
        "age_years": np.abs(wanted.attributes.age_years - got.attributes.age_years[pairs]),
    }
    found: dict[str, float] = {"faces": len(pairs)}
    for name, each in values.items():
        found |= {name: float(each.max()), f"{name}_p99": float(np.percentile(each, 99))}
    female, other = wanted.attributes.female, got.attributes.female[pairs]
    differs = ((female >= 0.5) != (other >= 0.5)) & (np.maximum(female, 1 - female) >= CLEAR_GENDER)
    found["gender_differ_clear"] = float(differs.mean())
    emotion, told_of = wanted.attributes.emotion, got.attributes.emotion[pairs]
    second, first = np.sort(emotion, axis=1)[:, -2:].T
    differs = (emotion.argmax(1) != told_of.argmax(1)) & (first - second >= CLEAR_EMOTION)
    found["emotion_differ_clear"] = float(differs.mean())
    return {name: round(value, 6) for name, value in found.items()}
