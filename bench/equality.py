"""The same videos through the whole chain on every backend: how far the events are from eager's.

    python -m bench.equality --video FILE... [--frames N] [--json FILE]

Every face in every frame. Who is in the fullest of the first frames, as eager sees it, is enrolled, so that names are
compared, too. Faces are paired by their track's number, which must be equal; the tables give the largest and the mean
deviation of each field, and how often names, gender, main emotion or tracks differ.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from daemon.config import CameraConfig, Config
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.pipeline import FacePipeline
from daemon.records import FacesEvent
from daemon.sources import read_video
from engines import machine
from engines.errors import MienError
from engines.runtime import FaceEngines, load_face_engines

REFERENCE = ("eager", "f32")
ENGINES = (("openvino", "f32"), ("openvino", "bf16"), ("openvino", "int8"))
# Pixels of the frame, years, 1 - cosine of the two embeddings, and counts. bf16 and int8 have none: they are told only.
TOLERANCES: dict[str, dict[str, float]] = {
    "f32": {"box_px": 0.2, "landmark_px": 0.3, "age_years": 0.2, "embedding_off": 5e-4, "names_differ": 0}
    | {"tracks_differ": 0, "gender_differ": 0, "emotion_differ": 0},
}
Frames = dict[int, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One face told by both: absolute differences."""

    box_px: float
    landmark_px: float
    age_years: float
    embedding_off: float
    similarity: float
    name: bool
    gender: bool
    emotion: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """faces: of the reference; alone: those that only one side told of."""

    pairs: list[Pair]
    faces: int
    alone: int


class Enrolled:
    """A gallery that does not change."""

    def __init__(self, snapshot: GallerySnapshot) -> None:
        self._snapshot = snapshot

    def snapshot(self) -> GallerySnapshot:
        return self._snapshot


def replayed(engines: FaceEngines, video: Path, num: int, people: GallerySnapshot = EMPTY_SNAPSHOT) -> Frames:
    """The faces of the events of a video's first frames, by the frame's index."""
    camera = CameraConfig(name="video", source=str(video), speed="max")
    config = Config.model_validate({"publish": {"embeddings": True}}).model_copy(
        update={"cameras": (camera,)}
    )
    pipeline = FacePipeline(engines, config, Enrolled(people), every_frame=True)
    found: Frames = {}
    for frame in islice(read_video(video, camera="video"), num or None):
        for event in pipeline.process([frame]):
            if isinstance(event, FacesEvent):
                found[event.frame.index] = event.faces
    return found


def people_in(frames: Frames) -> GallerySnapshot:
    """The faces of the frame with the most of them, enrolled one look each."""
    full = [faces for faces in frames.values() if all(face.embedding for face in faces)]
    if not full:
        return EMPTY_SNAPSHOT
    first = max(full, key=len)
    names = tuple(f"person {i}" for i in range(len(first)))
    rows = np.array([face.embedding for face in first], np.float32)
    return GallerySnapshot(names, rows, np.arange(len(first)))


def compare(reference: Frames, other: Frames) -> Compared:
    """Faces of the same frame and track beside each other."""
    pairs, alone, total = [], 0, 0
    for index in sorted({*reference, *other}):
        a = {face.track: face for face in reference.get(index, ())}
        b = {face.track: face for face in other.get(index, ())}
        total += len(a)
        alone += len(a.keys() ^ b.keys())
        pairs += [_pair(a[track], b[track]) for track in a.keys() & b.keys()]
    return Compared(pairs, total, alone)


def _pair(a: Any, b: Any) -> Pair:
    return Pair(
        box_px=_furthest(a.box_xyxy, b.box_xyxy),
        landmark_px=_furthest(a.landmarks, b.landmarks),
        age_years=abs(a.age - b.age) if a.age is not None and b.age is not None else 0.0,
        embedding_off=_off(a.embedding, b.embedding),
        similarity=abs((a.identity.similarity or 0.0) - (b.identity.similarity or 0.0)),
        name=a.identity.name == b.identity.name,
        gender=a.gender == b.gender,
        emotion=a.max_emotion == b.max_emotion,
    )


def _furthest(a: Any, b: Any) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


def _off(a: Any, b: Any) -> float:
    """One less the cosine."""
    if not a or not b:
        return 0.0
    u, v = np.array(a), np.array(b)
    return max(0.0, 1.0 - float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))


def largest(compared: Compared) -> dict[str, float]:
    """The largest deviation of each field, the 99th percentile of some, and what differs, counted."""
    fields = ("box_px", "landmark_px", "age_years", "embedding_off", "similarity")
    values = {name: [getattr(pair, name) for pair in compared.pairs] or [0.0] for name in fields}
    found: dict[str, float] = {"faces": compared.faces, "tracks_differ": compared.alone}
    found |= {name: round(max(each), 5) for name, each in values.items()}
    found |= {f"{name}_p99": round(float(np.percentile(each, 99)), 5) for name, each in values.items()}
    for name in ("name", "gender", "emotion"):
        plural = "names" if name == "name" else name
        found[f"{plural}_differ"] = sum(not getattr(pair, name) for pair in compared.pairs)
    return found


def beyond(found: dict[str, float], precision: str) -> list[str]:
    """The tolerances that are not held, in words."""
    limits = TOLERANCES.get(precision, {})
    return [f"{name} {found[name]:g} > {limit:g}" for name, limit in limits.items() if found[name] > limit]


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    try:
        for video in options.video:
            for row in deviations(video, options.frames):
                print(
                    f"{video.name}, {row['engine']}: {len(row['beyond'])} tolerances passed", file=sys.stderr
                )
                rows.append(row)
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(rows)
    if options.json:
        found = {"machine": machine.described(("openvino", "torch", "numpy")), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["beyond"] for row in rows) else 0


def deviations(video: Path, num: int) -> Iterator[dict[str, Any]]:
    """Each engine's deviations from the reference on one video."""
    eager = load_face_engines(backend=REFERENCE[0], device="cpu", precision=REFERENCE[1])
    people = people_in(replayed(eager, video, min(num or 50, 50)))
    reference = replayed(eager, video, num, people)
    for backend, precision in ENGINES:
        engines = load_face_engines(backend=backend, device="cpu", precision=precision)
        found = largest(compare(reference, replayed(engines, video, num, people)))
        engine = f"{backend} {precision}"
        yield {"video": video.name, "engine": engine, **found, "beyond": beyond(found, precision)}


def show(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("box_px", "landmark_px", "age_years", "embedding_off", "similarity")
    counts = ("tracks_differ", "names_differ", "gender_differ", "emotion_differ")
    table = Table("video", "engine", "faces", *(f"{name} max (p99)" for name in names), *counts)
    for row in rows:
        values = (f"{row[name]:.3g} ({row[f'{name}_p99']:.2g})" for name in names)
        table.add_row(
            row["video"], row["engine"], str(row["faces"]), *values, *(str(row[name]) for name in counts)
        )
    Console(width=190).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.equality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--video", type=Path, nargs="+", required=True)
    parser.add_argument("--frames", type=int, default=0, help="of each video; 0: all")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
