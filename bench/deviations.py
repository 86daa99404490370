"""Two tellings of the same frames side by side: how far apart they are, and whether a user would notice.

A face of one is paired with the face of the other that its box covers best. A field of few values (name, gender,
main emotion) is *clear* where the reference is away from the boundary at which it turns into another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.tolerances import CLEAR_EMOTION, CLEAR_GENDER, TOLERANCES
from daemon.assignment import assign
from daemon.config import IdentityConfig
from engines.geometry import iou_matrix

Frames = Mapping[Any, Sequence[Any]]  # the faces of each frame's event, by (stretch, frame's index)

MIN_IOU = 0.5
MIN_MARGIN = IdentityConfig().min_margin
SURE_SCORE = 0.1  # above the threshold: noise of a score does not reach so far
CLEAR_SIMILARITY = 0.02  # from the threshold, and of the lead over the second from the margin


@dataclass(frozen=True, slots=True)
class Pair:
    """One face told by both: absolute differences; None where not both say.

    box_share: of the box's longer side; landmark_share: of the distance between the eyes. Landmarks and embeddings
    are compared where both say that the look is usable. A verdict (name, gender, emotion) is whether both agree and
    whether the reference is clear about it.
    """

    box_px: float
    box_share: float
    landmark_px: float | None
    landmark_share: float | None
    age_years: float | None
    embedding_off: float | None
    similarity: float | None
    usable: bool
    name: tuple[bool, bool] | None
    named_as_another: bool
    gender: tuple[bool, bool] | None
    emotion: tuple[bool, bool] | None


@dataclass(frozen=True, slots=True)
class Compared:
    """faces: of the reference. missed: those of either that the other lacks; sure: those well above the threshold."""

    pairs: list[Pair]
    faces: int
    missed: int
    sure: int
    missed_sure: int
    tracks_apart: int


def compare(reference: Frames, other: Frames, threshold: float) -> Compared:
    """threshold: the detector's score from which a face begins a track."""
    pairs: list[Pair] = []
    tracks: list[tuple[Any, Any]] = []
    faces = missed = sure = missed_sure = 0
    for key in sorted({*reference, *other}):
        ours, theirs = reference.get(key, ()), other.get(key, ())
        matched = _matched(ours, theirs)
        pairs += [pair_of(ours[i], theirs[k]) for i, k in matched]
        tracks += [((key[0], ours[i].track), (key[0], theirs[k].track)) for i, k in matched]
        alone = [face for i, face in enumerate(ours) if i not in {i for i, _ in matched}]
        alone += [face for k, face in enumerate(theirs) if k not in {k for _, k in matched}]
        faces += len(ours)
        missed += len(alone)
        sure += sum(is_sure(face, threshold) for face in ours)
        missed_sure += sum(is_sure(face, threshold) for face in alone)
    return Compared(pairs, faces, missed, sure, missed_sure, _apart(tracks))


def is_sure(face: Any, threshold: float) -> bool:
    return bool(face.score >= threshold + SURE_SCORE)


def _matched(ours: Sequence[Any], theirs: Sequence[Any]) -> list[tuple[int, int]]:
    """Pairs of indices, by the largest overlap in all."""
    if not ours or not theirs:
        return []
    iou = iou_matrix(*(np.array([face.box_xyxy for face in side], np.float32) for side in (ours, theirs)))
    apart = np.full((len(ours), len(ours)), np.inf)
    np.fill_diagonal(apart, 1.0)  # what it costs to be left alone
    chosen = assign(np.hstack((np.where(iou >= MIN_IOU, 1 - iou, np.inf), apart)).astype(np.float64))
    return [(i, k) for i, k in chosen if k < len(theirs)]


def _apart(tracks: Sequence[tuple[Any, Any]]) -> int:
    """Pairs whose two tracks are not each other's most frequent partners: one was cut, joined or exchanged."""
    partners, owners = {}, {}
    for (ours, theirs), _ in reversed(Counter(tracks).most_common()):
        partners[ours], owners[theirs] = theirs, ours
    return sum(partners[ours] != theirs or owners[theirs] != ours for ours, theirs in tracks)


def pair_of(ours: Any, theirs: Any) -> Pair:
    box = np.array(ours.box_xyxy)
    points = np.array(ours.landmarks)
    box_px = _furthest(ours.box_xyxy, theirs.box_xyxy)
    landmark_px = _furthest(ours.landmarks, theirs.landmarks)
    eyes_px = max(float(np.linalg.norm(points[1] - points[0])), 1.0)
    both = ours.quality.usable and theirs.quality.usable
    return Pair(
        box_px=box_px,
        box_share=box_px / max(float((box[2:] - box[:2]).max()), 1.0),
        landmark_px=landmark_px if both else None,
        landmark_share=landmark_px / eyes_px if both else None,
        age_years=abs(ours.age - theirs.age) if ours.age is not None and theirs.age is not None else None,
        embedding_off=_off(ours.embedding, theirs.embedding) if both else None,
        similarity=_similarity(ours.identity, theirs.identity),
        usable=ours.quality.usable == theirs.quality.usable,
        name=_name(ours.identity, theirs.identity),
        named_as_another=_is_another(ours.identity.name, theirs.identity.name),
        gender=_gender(ours, theirs),
        emotion=_emotion(ours, theirs),
    )


def _furthest(a: Any, b: Any) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


def _off(a: Any, b: Any) -> float | None:
    """One less the cosine."""
    if not a or not b:
        return None
    u, v = np.array(a), np.array(b)
    return max(0.0, 1.0 - float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))


def _similarity(ours: Any, theirs: Any) -> float | None:
    if ours.similarity is None or theirs.similarity is None:
        return None
    return abs(float(ours.similarity - theirs.similarity))


def _name(ours: Any, theirs: Any) -> tuple[bool, bool] | None:
    """Undecided is no name yet: a vote that came a frame later."""
    if "undecided" in (ours.status, theirs.status) or ours.similarity is None:
        return None
    clear = abs(ours.similarity - ours.threshold) > CLEAR_SIMILARITY
    leads = ours.margin is None or abs(ours.margin - MIN_MARGIN) > CLEAR_SIMILARITY
    return ours.name == theirs.name, clear and leads


def _is_another(ours: str | None, theirs: str | None) -> bool:
    return ours is not None and theirs is not None and ours != theirs


def _gender(ours: Any, theirs: Any) -> tuple[bool, bool] | None:
    if ours.gender is None or theirs.gender is None:
        return None
    return ours.gender == theirs.gender, ours.gender_score >= CLEAR_GENDER


def _emotion(ours: Any, theirs: Any) -> tuple[bool, bool] | None:
    if ours.max_emotion is None or theirs.max_emotion is None:
        return None
    first, second = sorted(
        (getattr(ours.emotion, name) for name in ours.emotion.__struct_fields__), reverse=True
    )[:2]
    return ours.max_emotion == theirs.max_emotion, first - second >= CLEAR_EMOTION


def figures(compared: Compared) -> dict[str, float]:
    """The largest and the 99th percentile of each deviation; what is missed or differs as a share of what could."""
    found: dict[str, float] = {
        "faces": compared.faces,
        "usable": sum(pair.landmark_px is not None for pair in compared.pairs),
        "missed": compared.missed / max(compared.faces, 1),
        "missed_sure": compared.missed_sure / max(compared.sure, 1),
        "tracks_apart": compared.tracks_apart / max(len(compared.pairs), 1),
        "usable_differ": sum(not pair.usable for pair in compared.pairs) / max(len(compared.pairs), 1),
        "names_wrong": sum(pair.named_as_another for pair in compared.pairs),
    }
    names = ("box_px", "box_share", "landmark_px", "landmark_share", "age_years", "embedding_off")
    for name in (*names, "similarity"):
        values = [value for pair in compared.pairs if (value := getattr(pair, name)) is not None] or [0.0]
        found |= {name: max(values), f"{name}_p99": float(np.percentile(values, 99))}
    for name in ("name", "gender", "emotion"):
        verdicts = [verdict for pair in compared.pairs if (verdict := getattr(pair, name)) is not None]
        clear = [same for same, is_clear in verdicts if is_clear]
        told = "names" if name == "name" else name
        found[f"{told}_differ"] = sum(not same for same, _ in verdicts) / max(len(verdicts), 1)
        found[f"{told}_differ_clear"] = sum(not same for same in clear) / max(len(clear), 1)
        found[f"{told}_clear"] = len(clear)
    return {name: round(value, 5) for name, value in found.items()}


def beyond(found: Mapping[str, float], precision: str) -> list[str]:
    """The tolerances that are not held, in words; nothing compared is beyond all."""
    if not found["faces"]:
        return ["no faces"]
    limits = TOLERANCES[precision]
    return [f"{name} {found[name]:g} > {limit:g}" for name, limit in limits.items() if found[name] > limit]
