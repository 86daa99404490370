"""The chain on pictures of real faces: the image path beside cv2, throughput, and how many streams are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from bench.gpu_clock import busy_ms, timed, wait
from engines.calibration import shipped_faces
from engines.errors import MienError
from engines.geometry import (
    FACE_SIZE,
    LANDMARK_SIZE,
    Floats,
    Image,
    alignment_matrix,
    attribute_matrix,
    landmark_matrix,
)
from engines.image_ops import HOST, ImageOps
from engines.runtime import FaceEngines
from engines.stages import AttributeScores, classify, detect, embed, find_landmarks

CROP = (FACE_SIZE, FACE_SIZE)
FPS = 25
WITHIN_MS = 40.0
MOST_AT_ONCE = 32  # frames of different streams in one batch
Lap = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Told:
    """What the chain says of M faces. found: the faces of each picture; landmarks (M, 5, 2) px, embeddings (M, D)."""

    found: list[int]
    boxes_xyxy: Floats
    landmarks: Floats
    embeddings: Floats
    attributes: AttributeScores


def wall_of_faces(num_faces: int, size: tuple[int, int]) -> Image:
    """The shipped portraits side by side on grey, in a picture of (width, height)."""
    across = int(np.ceil(np.sqrt(num_faces * size[0] / size[1])))
    down = int(np.ceil(num_faces / across))
    side = int(min(size[0] / across, size[1] / down, 360) * 0.9)
    picture = np.full((size[1], size[0], 3), 110, np.uint8)
    faces = shipped_faces()
    for i in range(num_faces):
        x = int((i % across + 0.5) * size[0] / across - side / 2)
        y = int((i // across + 0.5) * size[1] / down - side / 2)
        portrait = cv2.resize(faces[i % len(faces)].image, (side, side), interpolation=cv2.INTER_AREA)
        picture[y : y + side, x : x + side] = portrait
    return picture


def chain(engines: FaceEngines, images: Sequence[Image], ops: ImageOps, lap: Lap = lambda _: None) -> Told:
    """Every face of every picture found, embedded and judged, as the daemon does it.

    Raises MienError where no picture shows a face.
    """
    pictures = ops.take(images)
    lap("upload")
    found = detect(engines.detector, pictures, ops=ops)
    lap("detect")
    boxes = np.concatenate([each.boxes_xyxy for each in found])
    of_face = [picture for picture, each in zip(pictures, found, strict=True) for _ in range(len(each))]
    if not of_face:
        raise MienError(f"the chain finds no face in {len(images)} pictures")
    points, _ = find_landmarks(engines.landmarks, of_face, boxes, ops=ops)
    lap("landmarks")
    crops = ops.warp(of_face, [alignment_matrix(five) for five in points], CROP)
    ops.fetch(crops)
    lap("align")
    assert engines.embedder is not None and engines.attributes is not None
    embeddings = embed(engines.embedder, crops, ops=ops)
    lap("embed")
    size, room = engines.attributes.input_size, engines.attributes.spec.room
    close = ops.warp(of_face, [attribute_matrix(five, size[0], room) for five in points], size)
    attributes = classify(engines.attributes, close, ops=ops)
    lap("attributes")
    return Told([len(each) for each in found], boxes, points, embeddings, attributes)


def check_found(told: Told, faces: Sequence[int]) -> None:
    """Raises MienError unless every picture's faces were found, and nothing else: less work is not speed."""
    if told.found != list(faces):
        raise MienError(f"the chain finds {told.found} faces in pictures of {list(faces)}")


def measure_chain(
    engines: FaceEngines,
    ops: ImageOps,
    device: str,
    faces: int,
    size: tuple[int, int],
    frames: int,
    seconds: float,
) -> dict[str, Any]:
    """Latency and throughput of one batch of frames, and where its time goes. Raises MienError: see check_found."""
    images = [wall_of_faces(faces, size) for _ in range(frames)]
    check_found(chain(engines, images, ops), [faces] * frames)
    timing = timed(lambda: chain(engines, images, ops), device, seconds, least=5)
    stages = stages_ms(engines, images, ops, device)
    row: dict[str, Any] = {
        "faces": faces,
        "size": f"{size[0]}x{size[1]}",
        "frames": frames,
        **timing.record(),
        "frames_s": round(frames / timing.device_ms * 1e3, 1),
        "upload_ms": stages["upload"],
        "stages_ms": stages,
    }
    if device == "cuda":
        busy = busy_ms(lambda: chain(engines, images, ops))
        row["busy_ms"] = busy
        row["gaps_ms"] = None if busy is None else round(max(0.0, timing.p50_ms - busy), 4)
    return row


def stages_ms(
    engines: FaceEngines, images: Sequence[Image], ops: ImageOps, device: str, rounds: int = 5
) -> dict[str, float]:
    """Median milliseconds of each stage, waited for; upload among them."""
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        wait(device)
        at = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal at
            wait(device)
            now = time.perf_counter()
            taken.setdefault(name, []).append((now - at) * 1e3)
            at = now

        chain(engines, images, ops, lap)
    return {name: round(float(np.median(values)), 4) for name, values in taken.items()}


def measure_images(
    ops: ImageOps, device: str, size: tuple[int, int], frames: int, seconds: float
) -> dict[str, Any]:
    """Letterbox and three crops of four faces a frame, there and by cv2 on the host, and how far they are apart."""
    images = [wall_of_faces(4, size) for _ in range(frames)]
    boxes = [[100 + 40 * i, 80, 300 + 40 * i, 280] for i in range(4)]
    matrices = [landmark_matrix(box) for box in boxes] * frames
    crop = (LANDMARK_SIZE, LANDMARK_SIZE)

    def work(these: ImageOps) -> list[Any]:
        pictures = these.take(images)
        of_face = [picture for picture in pictures for _ in boxes]
        return [these.letterbox(pictures, (640, 384))[0]] + [
            these.warp(of_face, matrices, crop) for _ in range(3)
        ]

    apart = max(
        int(np.abs(HOST.fetch(a).astype(int) - ops.fetch(b)).max())
        for a, b in zip(work(HOST), work(ops), strict=True)
    )
    there, here = timed(lambda: work(ops), device, seconds), timed(lambda: work(HOST), "cpu", seconds)
    return {
        "size": f"{size[0]}x{size[1]}",
        "frames": frames,
        "levels_apart": apart,
        "device_ms": round(there.p50_ms, 4),
        "host_ms": round(here.p50_ms, 4),
    }


def streams_served(
    engines: FaceEngines, ops: ImageOps, faces: int, size: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """The most streams of 25 frames a second whose 99th percentile of latency stays under 40 ms, none dropped.

    Raises MienError: see check_found.
    """
    image = wall_of_faces(faces, size)
    for count in (1, 2, 4, 8, 16, MOST_AT_ONCE):  # every batch size has run
        check_found(chain(engines, [image] * count, ops), [faces] * count)
    served, refused, tried = 0, 0, []
    streams = 1
    while streams - served >= 1 and len(tried) < 14:
        p99_ms, dropped = _one_trial(engines, ops, image, streams, seconds)
        tried.append({"streams": streams, "p99_ms": round(p99_ms, 2), "dropped": dropped})
        if p99_ms < WITHIN_MS and not dropped:
            served = streams
        else:
            refused = streams
        streams = (served + refused) // 2 if refused else served * 2
    return {"faces": faces, "size": f"{size[0]}x{size[1]}", "streams": served, "tried": tried}


def _one_trial(
    engines: FaceEngines, ops: ImageOps, image: Image, streams: int, seconds: float
) -> tuple[float, int]:
    """Streams begin spread over a frame's time; whoever has a frame ready is served, the longest waiting first."""
    period = 1 / FPS
    started = time.perf_counter() + 0.01
    due = [started + period * i / streams for i in range(streams)]  # each stream's next frame
    latencies: list[float] = []
    dropped = 0
    while (now := time.perf_counter()) < started + seconds:
        ready = sorted((at, i) for i, at in enumerate(due) if at <= now)[:MOST_AT_ONCE]
        if not ready:
            time.sleep(max(0.0, min(due) - now))
            continue
        chain(engines, [image] * len(ready), ops)
        done = time.perf_counter()
        for at, i in ready:
            latencies.append((done - at) * 1e3)
            missed = max(0, int((done - at) / period) - 1)  # the newest wins
            dropped += missed
            due[i] = at + period * (1 + missed)
    return float(np.percentile(latencies, 99)), dropped
