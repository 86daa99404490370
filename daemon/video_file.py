"""Pictures into an H.264 file that is there whole or not at all."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from daemon.whole_file import told_of, whole_file
from engines.errors import MienError

TIME_BASE = Fraction(1, 90_000)


class VideoFile:
    """Writes an mp4; a context manager that leaves nothing behind when it is left by an exception.

    Raises MienError where the file cannot be written.
    """

    def __init__(self, path: Path, *, fps: float = 25.0, crf: int = 21) -> None:
        if path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise MienError(f"{path}: annotated videos are written as .mp4, .mov or .mkv; change the name")
        self._path, self._fps = path, Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": "veryfast"}
        self._whole = whole_file(path)
        self._stream: VideoStream | None = None
        self._last_pts = -1

    def __enter__(self) -> Self:
        part = self._whole.__enter__()
        format = {".mkv": "matroska"}.get(self._path.suffix.lower(), self._path.suffix.lower()[1:])
        self._container = av.open(str(part), "w", format=format)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with told_of(self._path), closing(self._container):
                if kind is None:
                    self._flush()
        except BaseException as failure:  # whatever it is, the file is not whole
            kind, error = type(failure), failure
            raise
        finally:
            self._whole.__exit__(kind, error, trace)

    def _flush(self) -> None:
        if self._stream is None:
            raise MienError(f"{self._path}: there was no picture to write; check the source")
        self._container.mux(self._stream.encode())

    def write(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Adds an (H, W, 3) uint8 BGR picture, shown from `time_s` on, fitted into the size of the first."""
        stream = self._stream or self._add_stream(image)
        frame = av.VideoFrame.from_ndarray(_fitted(image, stream.width, stream.height), format="bgr24")
        # Two pictures in one tick would end the file's clock.
        self._last_pts = max(round(time_s / TIME_BASE), self._last_pts + 1)
        frame.pts, frame.time_base = self._last_pts, TIME_BASE
        self._container.mux(stream.encode(frame))

    def _add_stream(self, image: NDArray[np.uint8]) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._fps, options=self._options)
        height, width = image.shape[:2]
        # Colour is stored at half the resolution, so both sides have to be even.
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        self._stream = stream
        return stream


def _fitted(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Shrunk where it is too large, and filled up to the size with its border or black."""
    rows, columns = image.shape[:2]
    scale = min(width / columns, height / rows, 1.0)
    if scale < 1:
        size = (max(1, int(columns * scale)), max(1, int(rows * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        rows, columns = image.shape[:2]
    below, right = height - rows, width - columns
    if not below and not right:
        return image
    kind = cv2.BORDER_REPLICATE if max(below, right) <= 1 else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(image, 0, below, 0, right, kind).astype(np.uint8, copy=False)
