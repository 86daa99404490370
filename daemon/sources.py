"""Sources of frames: video files, folders of images, camera devices, RTSP and HTTP streams.

Files and folders are replayed: every frame, in order, on a clock of presentation times. The rest is live, on
the clock of arrival; reconnecting is the business of `daemon.capture`.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import structlog

from daemon.config import CameraConfig
from daemon.decoding import DEFAULT_FPS, Picture, VideoProperties, VideoReader, always, sign_of_life
from daemon.images import list_images, read_image
from daemon.paths import is_folder, stat_of
from daemon.records import Frame
from daemon.sender_clock import SenderClock
from engines.errors import MienError

log = structlog.get_logger(__name__)

SourceKind = Literal["video", "folder", "device", "url"]
Wanted = Callable[[float], bool]
Pictures = Generator[Picture, None, tuple[int, float]]
"""The wanted pictures of a clip; returns how many there were in all, and the pts_s of the last."""

LONGEST_WAIT_S = 10.0
"""A file whose times leap by more is not waited for any longer."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def source_kind(source: str) -> SourceKind:
    """What a `source` of the configuration is; a path that is not there counts as a video."""
    if "://" in source:
        return "url"
    if source.isdecimal() or source.startswith("/dev/"):
        return "device"
    return "folder" if is_folder(Path(source)) else "video"


def is_live(source: str) -> bool:
    """Whether frames come when they come, and a lost connection is to be made anew."""
    return source_kind(source) in ("device", "url")


def check_source(source: str) -> None:
    """Raises MienError where a file or folder cannot be read; a live source may yet come up, so it passes."""
    kind = source_kind(source)
    if kind == "video":
        probe_video(Path(source))
    elif kind == "folder":
        _images_of(Path(source))


def probe_video(path: Path) -> VideoProperties:
    """Size, frame rate and length of a video file; raises MienError where it is missing or not a video."""
    with _opened(path) as reader:
        return reader.properties


def read_source(camera: CameraConfig, *, start: datetime = EPOCH) -> Iterator[Frame]:
    """The frames of a camera's source, through one connection; raises MienError where it cannot be read."""
    kind = source_kind(camera.source)
    if kind in ("device", "url"):
        return read_live(camera)
    thinning = Thinning(camera.max_fps)
    read = read_folder if kind == "folder" else read_video
    return read(
        Path(camera.source),
        camera=camera.name,
        start=start,
        rotate=camera.rotate,
        loop=camera.loop,
        wanted=thinning,
    )


@dataclass(slots=True)
class Thinning:
    """Wants at most `max_fps` pictures a second; all where that is None."""

    max_fps: float | None
    _due_s: float = 0.0
    _last_s: float = 0.0

    def __call__(self, pts_s: float) -> bool:
        if self.max_fps is None:
            return True
        step_s = 1 / self.max_fps
        if pts_s < self._last_s:  # the video began anew
            self._due_s = pts_s
        self._last_s = pts_s
        # A thousandth of grace, so that rounding in the times does not halve the rate.
        if pts_s < self._due_s - step_s / 1000:
            return False
        self._due_s = max(self._due_s + step_s, pts_s)
        return True


def read_video(
    path: Path,
    *,
    camera: str,
    start: datetime = EPOCH,
    rotate: int = 0,
    loop: bool = False,
    wanted: Wanted = always,
) -> Iterator[Frame]:
    """Every frame of a video file; the first is at `start`, the others by their presentation times.

    rotate: degrees, clockwise. wanted: is asked with a frame's time in seconds, which goes on in a loop.
    What can be read of a truncated file is read, then a warning names the number of frames. Raises MienError
    where the file is missing, empty, not a video, or holds not one readable frame.
    """

    def pictures(wanted: Wanted) -> Pictures:
        with _opened(path, rotate) as reader:
            yield from reader.pictures(wanted)
            if not reader.num_decoded:
                raise MienError(f"{path}: not one frame could be read; check that it plays")
            if reader.shortfall:
                log.warning("video_incomplete", detail=reader.shortfall)
            return reader.num_decoded, reader.last_pts_s

    return _replayed(pictures, wanted, camera, start, loop)


def read_folder(
    path: Path,
    *,
    camera: str,
    start: datetime = EPOCH,
    rotate: int = 0,
    loop: bool = False,
    wanted: Wanted = always,
    fps: float = DEFAULT_FPS,
) -> Iterator[Frame]:
    """The images of a folder in the order of their names, `fps` to the second; the rest is as in `read_video`.

    An image that cannot be read is warned of and left out. Raises MienError where none can.
    """
    paths = _images_of(path)

    def pictures(wanted: Wanted) -> Pictures:
        num_read = 0
        for index, image_path in enumerate(paths):
            try:
                image = read_image(image_path)
            except MienError as error:
                log.warning("image_skipped", detail=str(error))
                continue
            num_read += 1
            if wanted(index / fps):
                yield Picture(index, index / fps, np.ascontiguousarray(np.rot90(image, -rotate // 90)))
        if not num_read:
            raise MienError(f"{path}: none of its {len(paths)} images could be read; check that they open")
        return len(paths), (len(paths) - 1) / fps

    return _replayed(pictures, wanted, camera, start, loop)


def read_live(camera: CameraConfig) -> Iterator[Frame]:
    """The frames of a device or stream as they arrive, until it breaks off.

    A video file behind a URL comes as fast as the network goes, so it is held to its own times. Ends where
    the stream ends; raises SourceLostError where it cannot be opened, falls silent or breaks off.
    """
    with _connected(camera) as reader:
        start_s, is_file = time.monotonic(), reader.properties.duration_s is not None
        sender = SenderClock()
        for picture in reader.pictures(Thinning(camera.max_fps)):
            if is_file:
                _wait_until(start_s + picture.pts_s)
            now_ns, now = time.monotonic_ns(), datetime.now(UTC)
            sent_at = sender.captured_at(picture.sent_at_s, now)
            yield Frame(
                camera=camera.name,
                index=picture.index,
                captured_at=sent_at or now,
                clock="rtcp" if sent_at else "arrival",
                pts_s=round(picture.pts_s, 6),
                time_ns=now_ns,
                monotonic_ns=now_ns,
                image=picture.image,
            )


def _wait_until(due_s: float) -> None:
    """Until time.monotonic() is there; whoever waits for the next picture of a slow file is no dead connection."""
    while (left_s := due_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 1.0))
        sign_of_life.get()()


def paced(frames: Iterable[Frame], wait: Callable[[float], object] = time.sleep) -> Iterator[Frame]:
    """The frames at the speed of their own clock, but for leaps in it; `wait` is given seconds."""
    start_ns: int | None = None
    for frame in frames:
        now_ns = time.monotonic_ns()
        start_ns = now_ns - frame.time_ns if start_ns is None else start_ns
        ahead_s = (start_ns + frame.time_ns - now_ns) / 1e9
        if ahead_s > 0:
            if ahead_s > LONGEST_WAIT_S:
                start_ns -= round((ahead_s - LONGEST_WAIT_S) * 1e9)
            wait(min(ahead_s, LONGEST_WAIT_S))
        yield frame


@dataclass(slots=True)
class _Round:
    """Once through a clip; at its end, how many pictures it had, wanted or not, and the pts_s of the last."""

    pictures: Pictures
    num: int = 0
    last_s: float = 0.0

    def __iter__(self) -> Iterator[Picture]:
        self.num, self.last_s = yield from self.pictures


def _replayed(
    pictures: Callable[[Wanted], Pictures], wanted: Wanted, camera: str, start: datetime, loop: bool
) -> Iterator[Frame]:
    first_index, first_ns = 0, 0
    while True:
        once = _Round(pictures(_later(first_ns / 1e9, wanted)))
        for picture in once:
            time_ns = first_ns + round(picture.pts_s * 1e9)
            yield Frame(
                camera=camera,
                index=first_index + picture.index,
                captured_at=start + timedelta(microseconds=time_ns // 1000),
                clock="pts",
                pts_s=round(time_ns / 1e9, 6),
                time_ns=time_ns,
                monotonic_ns=None,
                image=picture.image,
            )
        if not loop:
            return
        # The clip's own mean frame time separates its last frame from its first.
        last_ns = round(once.last_s * 1e9)
        mean_ns = last_ns // max(once.num - 1, 1) or round(1e9 / DEFAULT_FPS)
        first_index, first_ns = first_index + once.num, first_ns + last_ns + mean_ns


def _later(by_s: float, wanted: Wanted) -> Wanted:
    return lambda pts_s: wanted(by_s + pts_s)


def _opened(path: Path, rotate: int = 0) -> VideoReader:
    found = stat_of(path)
    if found and stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise MienError(f"{path}: the file is empty; check that it was copied whole")
    if found and stat.S_ISDIR(found.st_mode):
        raise MienError(f"{path}: is a folder; name a video file")
    return VideoReader(str(path), rotate=rotate)


def _images_of(path: Path) -> list[Path]:
    paths = list_images(path)
    if not paths:
        raise MienError(f"{path}: no images in this folder; name one with .jpg or .png files, or a video")
    return paths


def _connected(camera: CameraConfig) -> VideoReader:
    options = {"flags": "low_delay"}
    location, format = camera.source, None
    if source_kind(location) == "device":
        location = f"/dev/video{location}" if location.isdecimal() else location
        format = "v4l2"
    elif location.startswith("rtsp"):
        # Without these FFmpeg collects a second of frames before it gives the first. Not for files behind
        # HTTP: what nobuffer throws away there is not sent again.
        options |= {"rtsp_transport": camera.rtsp_transport, "fpsprobesize": "1", "fflags": "nobuffer"}
    return VideoReader(
        location,
        format=format,
        options=options,
        open_timeout_s=camera.open_timeout_s,
        read_timeout_s=camera.read_timeout_s,
        rotate=camera.rotate,
        low_delay=True,
        hardware=camera.hardware_decode,
    )
