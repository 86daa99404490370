"""How long each stage takes on a clip, alone and in batches, and the whole chain with and without decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.config import CameraConfig, Config
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.pipeline import FacePipeline
from daemon.prefetch import prefetched
from daemon.records import Event, FacesEvent, Frame, encode
from daemon.sources import read_video
from daemon.timing import Timing, gpu_used_mb, peak_resident_mb, summed_up, timed
from engines import machine
from engines.errors import MienError
from engines.geometry import FACE_SIZE, alignment_matrix, attribute_matrix
from engines.image_ops import ImageOps, ops_for
from engines.runtime import FaceEngines
from engines.stages import classify, detect, embed, find_landmarks

PACKAGES = (
    "mien",
    "openvino",
    "torch",
    "torch-tensorrt",
    "torch-tensorrt-rtx",
    "opencv-python-headless",
    "av",
    "numpy",
)
MAX_FRAMES = 150
MAX_FRAME_BYTES = 400_000_000
WARM_UP_FRAMES = 5
CROP = (FACE_SIZE, FACE_SIZE)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chain:
    """Frames through the whole chain. p50_ms and p99_ms: from a batch of frames to its encoded events.

    Where decoding is included, waiting for the next frame counts.
    """

    name: str
    cameras: int
    frames: int
    faces: int
    seconds: float
    frames_per_s: float
    faces_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Faces:
    """Faces of a clip's frames: images[i] is what face i lies in, boxes_xyxy (M, 4) and landmarks (M, 5, 2)."""

    images: list[Any]
    boxes_xyxy: Floats
    landmarks: Floats

    def first(self, num: int) -> Faces:
        """So many, the first again where there are fewer."""
        rows = np.arange(num) % len(self.images)
        return Faces([self.images[i] for i in rows], self.boxes_xyxy[rows], self.landmarks[rows])


class NobodyEnrolled:
    """A gallery without people: what a user has enrolled must not change a figure."""

    def snapshot(self) -> GallerySnapshot:
        return EMPTY_SNAPSHOT


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: a clip, engines, and how. seconds: of every measurement; batch: faces, cameras."""

    clip: Path
    engines: FaceEngines
    config: Config
    camera: CameraConfig
    seconds: float = 2.0
    batch: int = 16
    cameras: int = 4
    told: Callable[[str], None] = lambda words: None

    def run(self) -> dict[str, Any]:
        """Everything, as JSON has it. Raises MienError where the clip cannot be read or shows no face."""
        frames = self._frames()
        ops = ops_for(self.engines)
        faces = self._faces(frames, ops)
        stages = [*self._frame_stages(frames, ops), *self._face_stages(faces, ops)]
        chains = [self._chain(frames, *each) for each in self._variants()]
        height, width = frames[0].image.shape[:2]
        return {
            "machine": machine.described(PACKAGES),
            "clip": {"file": self.clip.name, "width": width, "height": height, "frames_held": len(frames)},
            "engines": engine_words(self.engines),
            "threads": self.config.engines.threads,
            "stages": [asdict(stage) for stage in stages],
            "chain": [asdict(chain) for chain in chains],
            "memory": {"peak_resident_mb": peak_resident_mb(), "gpu_used_mb": gpu_used_mb()},
        }

    def _frames(self) -> list[Frame]:
        """The clip's first frames, decoded, as many as memory may hold."""
        self.told("decoding the clip")
        frames: list[Frame] = []
        for frame in read_video(self.clip, camera=self.camera.name):
            frames.append(frame)
            if len(frames) >= MAX_FRAMES or len(frames) * frame.image.nbytes > MAX_FRAME_BYTES:
                break
        return frames

    def _faces(self, frames: Sequence[Frame], ops: ImageOps) -> Faces:
        self.told("finding faces")
        images, boxes = [], []
        for frame in frames[:: max(1, len(frames) // self.batch)]:
            (picture,) = ops.take([frame.image])
            (found,) = detect(self.engines.detector, [picture], ops=ops)
            images += [picture] * len(found)
            boxes += list(found.boxes_xyxy)
        if not boxes:
            raise MienError(f"{self.clip}: shows no face; name a clip that does")
        landmarks, _ = find_landmarks(self.engines.landmarks, images, np.stack(boxes), ops=ops)
        return Faces(images, np.stack(boxes), landmarks)

    def _frame_stages(self, frames: Sequence[Frame], ops: ImageOps) -> Iterator[Timing]:
        endless = read_video(self.clip, camera=self.camera.name, loop=True)
        yield self._timed("decode", 1, lambda: next(endless))
        pictures = [frame.image for frame in frames]
        for num in (1, self.cameras):
            source = cycle(pictures)

            def look(num: int = num, source: Iterator[Any] = source) -> object:
                taken = ops.take(list(islice(source, num)))
                return detect(self.engines.detector, taken, ops=ops)

            yield self._timed("letterbox + detect", num, look)

    def _face_stages(self, faces: Faces, ops: ImageOps) -> Iterator[Timing]:
        engines = self.engines
        close_size = engines.attributes.input_size if engines.attributes else CROP
        room = engines.attributes.spec.room if engines.attributes else 0
        for num in (1, self.batch):
            some = faces.first(num)
            find = partial(find_landmarks, engines.landmarks, some.images, some.boxes_xyxy, ops=ops)
            yield self._timed("landmarks", num, find)
        for num in (1, self.batch):
            yield self._timed(
                "align (two crops)", num, partial(aligned_on_host, faces.first(num), ops, close_size, room)
            )
        for num in (1, self.batch):
            aligned, close = crops_of(faces.first(num), ops, close_size, room)
            if engines.embedder is not None:
                yield self._timed("embed", num, partial(embed, engines.embedder, aligned, ops=ops))
            if engines.attributes is not None:
                yield self._timed("attributes", num, partial(classify, engines.attributes, close, ops=ops))

    def _timed(self, name: str, batch: int, call: Callable[[], object]) -> Timing:
        self.told(f"{name}, {batch} a call")
        return timed(name, batch, call, self.seconds)

    def _variants(self) -> list[tuple[str, bool, bool, int]]:
        """name, every_frame, decode, cameras."""
        return [
            ("when due, decoded before", False, False, 1),
            ("when due, with decoding", False, True, 1),
            ("every frame, decoded before", True, False, 1),
            ("every frame, with decoding", True, True, 1),
            (f"every frame, {self.cameras} cameras at once", True, False, self.cameras),
        ]

    def _chain(self, frames: Sequence[Frame], name: str, every_frame: bool, decode: bool, num: int) -> Chain:
        self.told(f"chain: {name}")
        cameras = [self.camera.model_copy(update={"name": f"camera{i}"}) for i in range(num)]
        config = self.config.model_copy(update={"cameras": tuple(cameras)})
        pipeline = FacePipeline(self.engines, config, NobodyEnrolled(), every_frame=every_frame)
        with ExitStack() as stack:
            if decode:
                source: Iterator[Frame] = read_video(self.clip, camera=cameras[0].name, loop=True)
                source = stack.enter_context(prefetched(source))
            else:
                source = over_and_over(frames)
            batches = ([replace(frame, camera=camera.name) for camera in cameras] for frame in source)
            return measured_chain(name, pipeline, batches, self.seconds)


def crops_of(faces: Faces, ops: ImageOps, close_size: tuple[int, int], room: int = 0) -> tuple[Any, Any]:
    """The recognition crops (M, 112, 112, 3), and the attribute crops (M, S, S, 3), of the close size and room."""
    aligned = ops.warp(faces.images, [alignment_matrix(five) for five in faces.landmarks], CROP)
    maps = [attribute_matrix(five, close_size[0], room) for five in faces.landmarks]
    return aligned, ops.warp(faces.images, maps, close_size)


def aligned_on_host(faces: Faces, ops: ImageOps, close_size: tuple[int, int], room: int) -> None:
    """crops_of, waited for where a device makes them."""
    for crops in crops_of(faces, ops, close_size, room):
        ops.fetch(crops)


def over_and_over(frames: Sequence[Frame]) -> Iterator[Frame]:
    """Frames held in memory, without end, their times going on."""
    step_ns = frames[-1].time_ns // max(1, len(frames) - 1) or 40_000_000
    for index, frame in enumerate(cycle(frames)):
        yield replace(frame, index=index, time_ns=index * step_ns, pts_s=index * step_ns / 1e9)


def measured_chain(
    name: str, pipeline: FacePipeline, batches: Iterator[list[Frame]], seconds: float
) -> Chain:
    """Batches of frames to encoded events for so long."""
    took_s: list[float] = []
    num_frames = num_faces = 0
    for batch in islice(batches, WARM_UP_FRAMES):
        pipeline.process(batch)
    started_s = last_s = time.perf_counter()
    for batch in batches:
        events = pipeline.process(batch)
        for event in events:
            encode(event)
        now_s = time.perf_counter()
        took_s.append(now_s - last_s)
        last_s = now_s
        num_frames += len(batch)
        num_faces += faces_in(events)
        if now_s - started_s >= seconds and len(took_s) >= WARM_UP_FRAMES:
            break
    timing = summed_up(name, len(batch), took_s)
    total_s = last_s - started_s
    return Chain(
        name=name,
        cameras=len(batch),
        frames=num_frames,
        faces=num_faces,
        seconds=round(total_s, 4),
        frames_per_s=round(num_frames / total_s, 2),
        faces_per_s=round(num_faces / total_s, 2),
        p50_ms=timing.p50_ms,
        p99_ms=timing.p99_ms,
    )


def faces_in(events: Sequence[Event]) -> int:
    """How many faces the events of some frames tell of."""
    return sum(len(event.faces) for event in events if isinstance(event, FacesEvent))


def engine_words(engines: FaceEngines) -> dict[str, str]:
    """Model -> backend, device, precision and input size."""
    return {
        name: f"{engine.backend} {getattr(engine, 'device', 'cpu')} {getattr(engine, 'precision', 'f32')} "
        f"{engine.input_size[0]}x{engine.input_size[1]}"
        for name, engine in engines.loaded().items()
    }
