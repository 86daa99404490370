"""Compressed video to BGR pictures with times, through PyAV."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from daemon.secrecy import redact_source, redact_url
from engines.errors import MienError

DEFAULT_FPS = 25.0
"""What a stream that names no frame rate and no times is taken to run at."""

JUMP_S = 10.0
"""Times that leap by more, or fall back by more than a second, begin anew: a counter wrapped or was reset."""

sign_of_life: ContextVar[Callable[[], None]] = ContextVar("sign_of_life", default=lambda: None)
"""Called in the thread that set it for every picture that is decoded, wanted or not, and while one is waited for."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture: `index` counts every picture of the stream, also those that were not wanted.

    pts_s: seconds since the stream's first picture, strictly rising. image: (H, W, 3) uint8 BGR. sent_at_s:
    when the sender's RTCP reports say it was taken, in seconds since 1970; None where there are none.
    """

    index: int
    pts_s: float
    image: NDArray[np.uint8]
    sent_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class VideoProperties:
    """What a stream says of itself; width and height are as shown, num_frames 0 where it does not say."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float | None


class HardwareRefusedError(MienError):
    """The machine cannot decode this stream in hardware; software can."""


class SourceLostError(MienError):
    """The source could not be opened, or broke off; a live one is worth trying again."""


def always(pts_s: float) -> bool:
    """Wants every picture."""
    return True


class VideoReader:
    """An open video; use it as a context manager.

    Raises SourceLostError, in words and without credentials, where it cannot be opened or breaks off.
    """

    def __init__(
        self,
        location: str,
        *,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        open_timeout_s: float = 10.0,
        read_timeout_s: float = 10.0,
        rotate: int = 0,
        low_delay: bool = False,
        hardware: str | None = None,
    ) -> None:
        self._hardware = hardware
        self._low_delay = low_delay
        self._shown = redact_source(location)
        self._remote = "://" in location
        self._rotate = rotate
        self._read_timeout_s = read_timeout_s
        self._container = self._open(location, format, dict(options or {}), (open_timeout_s, read_timeout_s))
        self._stream = self._container.streams.video[0]
        # Frame threads hold back as many pictures as there are threads, which a live source cannot afford.
        self._stream.thread_type = "SLICE" if low_delay else "AUTO"
        self._converter = VideoReformatter()
        self.num_decoded = 0
        self.last_pts_s = -1.0
        self.num_damaged = 0
        self.cut_short = False

    def _open(
        self, location: str, format: str | None, options: dict[str, str], timeout: tuple[float, float]
    ) -> InputContainer:
        started_s = time.monotonic()
        try:
            # Cameras name themselves in whatever encoding they like.
            container = av.open(
                location,
                format=format,
                options=options,
                timeout=timeout,
                hwaccel=self._acceleration(),
                metadata_errors="replace",
            )
        except HardwareRefusedError:
            raise
        except (av.FFmpegError, OSError) as error:
            if self._hardware and _is_of_device(error):
                raise HardwareRefusedError(f"{self._shown}: {self._hardware}: {error.strerror}") from None
            raise self._lost(error, started_s, timeout[0]) from None
        except (NotImplementedError, RuntimeError, ValueError) as error:
            if self._hardware:
                raise HardwareRefusedError(f"{self._shown}: {self._hardware}: {error}") from None
            detail = redact_url(str(error))
            raise SourceLostError(f"{self._shown}: cannot be read ({detail}); check the source") from None
        if fault := _fault_of(container):
            container.close()
            raise SourceLostError(f"{self._shown}: {fault}")
        return container

    def _acceleration(self) -> HWAccel | None:
        if self._hardware is None:
            return None
        try:
            return HWAccel(self._hardware, allow_software_fallback=False)
        except (av.FFmpegError, RuntimeError, ValueError, NotImplementedError) as error:
            raise HardwareRefusedError(f"{self._shown}: {self._hardware}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def properties(self) -> VideoProperties:
        """Size, rate and length as the container declares them."""
        stream, container = self._stream, self._container
        width, height = stream.codec_context.width, stream.codec_context.height
        if self._rotate % 180:
            width, height = height, width
        duration_s = container.duration / av.time_base if container.duration else None
        return VideoProperties(width, height, self.fps, stream.frames, duration_s)

    @property
    def fps(self) -> float:
        """The declared frame rate, or DEFAULT_FPS."""
        return float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_FPS)

    @property
    def shortfall(self) -> str | None:
        """What is missing of a video that was read to its end, in words; None where it is whole."""
        expected = self._stream.frames
        # Edit lists hide a few pictures of sound files, so a small difference alone is no damage.
        missing = expected - self.num_decoded > max(5, expected // 50)
        if not expected and (duration_s := self.properties.duration_s):
            missing = duration_s - self.last_pts_s > max(2.0, duration_s / 10)
        if not (missing or self.cut_short or self.num_damaged):
            return None
        total = f" of {expected}" if expected else ""
        return f"{self._shown}: truncated or damaged; {self.num_decoded}{total} frames could be read"

    def pictures(self, wanted: Callable[[float], bool] = always) -> Iterator[Picture]:
        """The pictures for whose pts_s `wanted` holds; the rest are decoded, but not converted to BGR."""
        offset_s: float | None = None
        for index, frame in enumerate(self._frames()):
            time_s = frame.time
            if time_s is not None and (offset_s is None or self._has_jumped(time_s - offset_s)):
                offset_s = time_s - (0.0 if offset_s is None else self.last_pts_s + 1 / self.fps)
            pts_s = -1.0 if time_s is None or offset_s is None else time_s - offset_s
            # Broken streams repeat times or run back; tracks need a clock that only goes forward.
            if pts_s <= self.last_pts_s:
                pts_s = max(self.last_pts_s + 1 / self.fps, 0.0)
            self.last_pts_s = pts_s
            image = self._upright(frame) if wanted(pts_s) else None
            if image is not None:
                yield Picture(index, pts_s, image, self._sent_at_s(frame))

    def _has_jumped(self, pts_s: float) -> bool:
        """A file's gaps are true, a live stream's are not: there time went on as the clock on the wall did."""
        step_s = pts_s - self.last_pts_s
        return step_s < -1 or (self._low_delay and step_s > JUMP_S)

    def _sent_at_s(self, frame: VideoFrame) -> float | None:
        # FFmpeg names the sender's time of pts 0 once the first RTCP sender report has come.
        started_us = self._container.start_time_realtime
        if not self._low_delay or frame.time is None or not started_us or started_us < 0:
            return None
        return started_us / 1e6 + frame.time

    def _frames(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            started_s = time.monotonic()
            try:
                packet = next(packets, None)
            except IndexError:
                # Damage can look like a stream that was not there at the start, which PyAV does not know.
                self.num_damaged += 1
                packets = self._container.demux(self._stream)
                continue
            except (av.FFmpegError, OSError) as error:
                if isinstance(error, av.InvalidDataError) and not self._remote:
                    self.cut_short = True
                    return
                raise self._lost(error, started_s, self._read_timeout_s) from None
            if packet is None:
                return
            # When its time is up, FFmpeg gives what is left of the last picture, and would wait once more.
            if self._remote and time.monotonic() - started_s >= self._read_timeout_s:
                raise self._lost(TimeoutError(), started_s, self._read_timeout_s)
            self.cut_short |= packet.is_corrupt
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if self._hardware and not self.num_decoded:
                    raise HardwareRefusedError(f"{self._shown}: {self._hardware}: {error.strerror}") from None
                self.num_damaged += 1
                continue
            for frame in frames:
                self.num_decoded += 1
                sign_of_life.get()()
                yield frame

    def _lost(self, error: Exception, started_s: float, timeout_s: float) -> SourceLostError:
        # FFmpeg reports an interrupted connection by whatever it happened to be doing.
        if time.monotonic() - started_s >= timeout_s:
            error = TimeoutError()
        return SourceLostError(f"{self._shown}: {in_words(error, self._remote)}")

    def _upright(self, frame: VideoFrame) -> NDArray[np.uint8] | None:
        """The picture in BGR; None where damage gave it a format or size that nothing can convert."""
        try:
            # Left to itself, PyAV starts and ends threads for every picture.
            bgr = self._converter.reformat(frame, format="bgr24", threads=1)
            image = bgr.to_ndarray().astype(np.uint8, copy=False)
        except (av.FFmpegError, OSError, ValueError, MemoryError):
            self.num_damaged += 1
            return None
        quarter_turns = (round(frame.rotation / 90) - self._rotate // 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _fault_of(container: InputContainer) -> str | None:
    """Why what was opened gives no pictures, in words; None where it may."""
    if not container.streams.video:
        return "holds no pictures; name a video file or stream"
    if not container.streams.video[0].codec_context:
        return "its codec cannot be decoded; convert the video, or set the camera to H.264 or H.265"
    return None


def _is_of_device(error: Exception) -> bool:
    """Whether a decoding device failed to open, rather than the stream."""
    numbers = (errno.EPERM, errno.ENODEV, errno.ENOSYS, errno.EINVAL, errno.ENOMEM)
    return isinstance(error, av.ExternalError | av.UnknownError) or getattr(error, "errno", None) in numbers


def in_words(error: Exception, remote: bool) -> str:
    """What went wrong and what to do about it; never the location, which may hold a password."""
    match error:
        case av.FileNotFoundError() | FileNotFoundError():
            return "no such file or device; check the path"
        case av.PermissionError() | PermissionError():
            return "may not be read; check its permissions"
        case av.HTTPUnauthorizedError() | av.HTTPForbiddenError():
            return "refused the credentials; check user name and password"
        case av.HTTPNotFoundError():
            return "the server has no such stream; check the path of the URL"
        case av.ConnectionRefusedError() | ConnectionRefusedError():
            return "connection refused; check that the server runs and the port is right"
        case av.ExitError() | av.TimeoutError() | TimeoutError():
            return "no answer in time; check the address and the network, or raise the time-outs"
        case av.InvalidDataError() if not remote:
            return "not a video, or cut off before its index was written; check that it plays"
        case av.EOFError():
            return "the stream ended before its first picture; check the source"
    strerror = redact_url(getattr(error, "strerror", None) or type(error).__name__)
    return f"{strerror[:1].lower()}{strerror[1:]}; check the source"
