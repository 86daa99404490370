"""A 1280x720 picture of nine faces out of a strip of three: three rows of one clip, a third of its length apart."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from daemon.records import Frame
from daemon.sources import read_video
from engines.geometry import Image

SIZE = (1280, 720)
ROWS = 3


def nine_faces(strips: Sequence[Image], index: int) -> Image:
    """(720, 1280, 3) uint8 BGR: three of the strips (H, W, 3) below each other, what is left filled by the border."""
    rows = [_row(strips[(index + k * len(strips) // ROWS) % len(strips)]) for k in range(ROWS)]
    left = (SIZE[0] - rows[0].shape[1]) // 2
    right = SIZE[0] - rows[0].shape[1] - left
    wall = cv2.copyMakeBorder(np.vstack(rows), 0, 0, left, right, cv2.BORDER_REPLICATE)
    return wall.astype(np.uint8, copy=False)


def _row(strip: Image) -> Image:
    height = SIZE[1] // ROWS
    width = min(SIZE[0], round(strip.shape[1] * height / strip.shape[0]))
    return cv2.resize(strip, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def clip_frames(video: Path, num: int, wall: bool) -> list[Frame]:
    """The first frames of a video, as they are or as walls of nine faces made of the whole of it."""
    frames = list(read_video(video, camera="bench"))
    if not wall:
        return frames[:num]
    strips = [frame.image for frame in frames]
    return [replace(frame, image=nine_faces(strips, i)) for i, frame in enumerate(frames[:num])]


def write_wall(video: Path, out: Path, seconds: float) -> None:
    """The wall as an H.264 video at 25 frames a second, for a daemon to read."""
    from daemon.video_file import VideoFile

    with VideoFile(out, fps=25.0) as file:
        for i, frame in enumerate(clip_frames(video, round(25 * seconds), wall=True)):
            file.write(frame.image, i / 25)


def timed_on(frames: Sequence[Frame]) -> Iterator[Frame]:
    """The frames over and over, their times going on at 25 a second."""
    index = 0
    while True:
        for frame in frames:
            time_ns = index * 40_000_000
            yield replace(frame, index=index, time_ns=time_ns, pts_s=time_ns / 1e9)
            index += 1


def first_walls(video: Path, num: int) -> list[Frame]:
    """The first walls out of the video's first frames alone: little memory, and no long wait."""
    frames = list(islice(read_video(video, camera="bench"), num))
    strips = [frame.image for frame in frames]
    return [replace(frame, image=nine_faces(strips, i)) for i, frame in enumerate(frames)]
