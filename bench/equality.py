"""The same videos through the whole chain on every CPU engine: how far the events are from eager float32's.

    python -m bench.equality --video FILE... [--stretches N] [--frames N] [--engines NAME...] [--json FILE]

Every face in every frame. Of each video those stretches are taken that show the most faces, one in each of as many
equal parts of its length; each is a video of its own to the chain. Who is to be seen there is enrolled, so that names
are compared, too. What is compared is in bench/deviations.py, the tolerances are in bench/tolerances.py; where
one is not held the exit code is 1.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.deviations import Frames, beyond, compare, figures
from bench.tolerances import TOLERANCES
from daemon.config import CameraConfig, Config
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.pipeline import FacePipeline
from daemon.records import FacesEvent, Frame
from daemon.sources import read_video
from daemon.stills import find_faces
from engines import machine
from engines.errors import MienError
from engines.runtime import FaceEngines, load_face_engines
from engines.stages import detect, embed

REFERENCE = ("eager", "f32")
ENGINES = {
    "openvino f32": ("openvino", "f32"),
    "aot_inductor f32": ("aot_inductor", "f32"),
    "openvino auto": ("openvino", "auto"),
    "openvino mixed": ("openvino", "mixed"),
    "openvino bf16": ("openvino", "bf16"),
    "openvino int8": ("openvino", "int8"),
}
LOOK_EVERY = 10  # frames, when it is found out where people are
Stretch = Sequence[Frame]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference tells of some stretches, with these people enrolled."""

    stretches: list[Stretch]
    people: GallerySnapshot
    told: Frames
    threshold: float


class Enrolled:
    """A gallery that does not change."""

    def __init__(self, snapshot: GallerySnapshot) -> None:
        self._snapshot = snapshot

    def snapshot(self) -> GallerySnapshot:
        return self._snapshot


def stretches_of(engines: FaceEngines, video: Path, num: int, length: int) -> list[Stretch]:
    """In each of `num` equal parts the `length` frames with the most faces; parts without any are left out.

    Raises MienError where the video shows nobody.
    """
    frames = list(read_video(video, camera="video"))
    seen = np.zeros(len(frames))
    for i in range(0, len(frames), LOOK_EVERY):
        seen[i] = len(detect(engines.detector, [frames[i].image])[0])
    ends = np.linspace(0, len(frames), num + 1).astype(int)
    parts = [(first, end) for first, end in pairwise(ends) if seen[first:end].any()]
    if not parts:
        raise MienError(f"{video}: shows no face; name a video that does")
    starts = [first + fullest(seen[first:end], length) for first, end in parts]
    return [frames[start : start + length] for start in starts]


def fullest(seen: np.ndarray, length: int) -> int:
    """Where the window of so many frames with the most faces begins; seen: (N,) faces of each frame."""
    return int(np.convolve(seen, np.ones(min(length, len(seen))), mode="valid").argmax())


def replayed(
    engines: FaceEngines, stretches: Sequence[Stretch], people: GallerySnapshot = EMPTY_SNAPSHOT
) -> Frames:
    """The faces of the events, by (stretch, frame's index)."""
    camera = CameraConfig(name="video", source="none")
    config = Config.model_validate({"publish": {"embeddings": True}}).model_copy(
        update={"cameras": (camera,)}
    )
    found = {}
    for number, stretch in enumerate(stretches):
        pipeline = FacePipeline(engines, config, Enrolled(people), every_frame=True)
        for frame in stretch:
            for event in pipeline.process([frame]):
                if isinstance(event, FacesEvent):
                    found[number, event.frame.index] = event.faces
    return found


def people_in(engines: FaceEngines, stretches: Sequence[Stretch]) -> GallerySnapshot:
    """The usable faces in the middle of each stretch, enrolled one look each, nobody twice."""
    assert engines.embedder is not None
    rows: list[np.ndarray] = []
    for stretch in stretches:
        faces = find_faces(engines, stretch[len(stretch) // 2].image, Config().quality)
        crops = [face.aligned_crop for face in faces if face.quality.usable]
        for row in embed(engines.embedder, np.stack(crops)) if crops else ():
            if all(row @ known < (engines.embedder.spec.threshold or 0.5) for known in rows):
                rows.append(row)
    if not rows:
        return EMPTY_SNAPSHOT
    names = tuple(f"person {i}" for i in range(len(rows)))
    return GallerySnapshot(names, np.stack(rows).astype(np.float32), np.arange(len(rows)))


def reference_of(video: Path, num: int, length: int) -> Reference:
    """Loads, runs and lets go of the reference's engines."""
    eager = load_face_engines(backend=REFERENCE[0], device="cpu", precision=REFERENCE[1])
    stretches = stretches_of(eager, video, num, length)
    people = people_in(eager, stretches)
    threshold = eager.detector.spec.threshold or 0.5
    return Reference(stretches, people, replayed(eager, stretches, people), threshold)


def deviations(video: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each engine's deviations from the reference on one video."""
    reference = reference_of(video, options.stretches, options.frames)
    for name in options.engines:
        backend, precision = ENGINES[name]
        engines = load_face_engines(backend=backend, device="cpu", precision=precision)
        told = replayed(engines, reference.stretches, reference.people)
        found = figures(compare(reference.told, told, reference.threshold))
        row = {"video": video.name, "engine": name, "frames": sum(map(len, reference.stretches))}
        yield row | {"enrolled": len(reference.people.names), **found, "beyond": beyond(found, precision)}


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    try:
        for video in options.video:
            with contextlib.redirect_stdout(sys.stderr):  # what engines tell while they are built
                for row in deviations(video, options):
                    print(f"{video.name}, {row['engine']}: {'; '.join(row['beyond']) or 'within'}")
                    rows.append(row)
                    save(rows, options.json)
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(rows)
    return 1 if any(row["beyond"] for row in rows) else 0


def save(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    if path:
        found = {"machine": machine.described(("openvino", "torch", "numpy")), "tolerances": TOLERANCES}
        path.write_text(json.dumps(found | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table a video: figures down, engines across."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for video in dict.fromkeys(row["video"] for row in rows):
        here = [row for row in rows if row["video"] == video]
        title = "{video}: {frames} frames, {faces:.0f} faces, {enrolled} people enrolled".format(**here[0])
        table = Table("", *(row["engine"] for row in here), title=title)
        for words, tell in FIGURES.items():
            table.add_row(words, *(tell(row) for row in here))
        table.add_row("within the tolerances", *("no" if row["beyond"] else "yes" for row in here))
        console.print(table)
    for row in rows:
        for words in row["beyond"]:
            console.print(f"{row['video']}, {row['engine']}: {words}", highlight=False)


def _deviation(name: str, scale: float = 1.0) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{scale * row[f'{name}_p99']:.3g} ({scale * row[name]:.3g})"


def _share(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{100 * row[name]:.2f}"


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "box, % of its side: p99 (largest)": _deviation("box_share", 100),
    "landmarks, % of the eyes' distance": _deviation("landmark_share", 100),
    "1 - cosine of the embeddings": _deviation("embedding_off"),
    "similarity to the enrolled": _deviation("similarity"),
    "age, years": _deviation("age_years"),
    "sure faces missed by one, %": _share("missed_sure"),
    "tracks apart, %": _share("tracks_apart"),
    "usable to one alone, %": _share("usable_differ"),
    "another's name": lambda row: f"{row['names_wrong']:.0f}",
    "name differs where clear, %": _share("names_differ_clear"),
    "gender differs where clear, %": _share("gender_differ_clear"),
    "emotion differs where clear, %": _share("emotion_differ_clear"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.equality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--video", type=Path, nargs="+", required=True)
    parser.add_argument("--stretches", type=int, default=4, help="of each video")
    parser.add_argument("--frames", type=int, default=60, help="of each stretch, at most")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
