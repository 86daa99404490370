"""Streams that go wrong: new sizes, leaping times, refused hardware, hanging devices, busy neighbours."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from structlog.testing import capture_logs

from daemon import cameras as cameras_module
from daemon import capture as capture_module
from daemon.cameras import Cameras
from daemon.capture import Capture
from daemon.config import CameraConfig
from daemon.decoding import HardwareRefusedError, VideoReader
from daemon.records import Frame
from daemon.sender_clock import WINDOW, SenderClock
from daemon.sources import LONGEST_WAIT_S, paced, read_video
from engines.errors import MienError
from tests.clips import grey_levels, noise, write_clip


def frame(name, index=0):
    return Frame(
        name, index, datetime.now(UTC), "arrival", 0.0, 0, time.monotonic_ns(), np.zeros((4, 4, 3), np.uint8)
    )


def test_a_stream_that_changes_its_size_goes_on(tmp_path):
    both = b"".join(
        write_clip(tmp_path / f"{side}.h264", noise(10, (side, side)), fps=10).read_bytes()
        for side in (64, 96)
    )
    (tmp_path / "both.h264").write_bytes(both)

    shapes = [each.image.shape[:2] for each in read_video(tmp_path / "both.h264", camera="door")]

    assert [(64, 64)] * 10 + [(96, 96)] * 10 == shapes


def test_pictures_are_converted_without_starting_threads(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", noise(20, (320, 240)), fps=10)

    with VideoReader(str(clip), low_delay=True) as reader:
        pictures = reader.pictures()
        seen = [set(Path("/proc/self/task").iterdir()) for _ in islice(pictures, 15)]

    assert seen[-1] <= seen[3]


def leaping_clip(path, times_s):
    """A clip whose pictures stand at the given seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        stream.codec_context.gop_size = 1
        for image, time_s in zip(grey_levels(len(times_s)), times_s, strict=True):
            picture = av.VideoFrame.from_ndarray(image, format="bgr24")
            picture.pts, picture.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def pts_of(path, **how):
    with VideoReader(str(path), **how) as reader:
        return [round(picture.pts_s, 3) for picture in reader.pictures()]


def test_live_times_that_leap_ahead_go_on_as_if_they_had_not(tmp_path):
    clip = leaping_clip(tmp_path / "c.mkv", [0, 0.1, 0.2, 5000, 5000.1, 5000.2])
    step = np.diff(pts_of(clip, low_delay=True))

    assert 6 == len(step) + 1
    assert (step > 0).all() and step.max() < 1
    assert 5000.2 == pts_of(clip)[-1]  # a file's gap is true


class Wrapping(VideoReader):
    """A stream whose counter wraps after the third picture."""

    def _frames(self):
        for number, each in enumerate(super()._frames()):
            each.time_base = Fraction(1, 10)
            each.pts = 95000 + number if number < 3 else number - 3
            yield each


def test_times_that_wrap_go_on_where_they_were(tmp_path):
    clip = write_clip(tmp_path / "c.mp4", grey_levels(8), fps=10)
    with Wrapping(str(clip), low_delay=True) as reader:
        times = [round(picture.pts_s, 3) for picture in reader.pictures()]

    np.testing.assert_allclose(np.arange(8) / 10, times, atol=1e-6)


def test_a_leap_in_a_file_is_not_waited_for(tmp_path):
    waits = []
    moved = [replace(frame("door"), time_ns=round(at_s * 1e9)) for at_s in (0, 7200, 7200.04)]

    list(paced(moved, waits.append))

    assert all(wait <= LONGEST_WAIT_S + 1 for wait in waits)


def test_hardware_that_is_not_there_is_refused_and_software_goes_on(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(20), fps=20)
    monkeypatch.setattr(capture_module, "is_live", lambda source: True)
    monkeypatch.setattr("daemon.sources.source_kind", lambda source: "url")
    camera = CameraConfig(name="door", source=str(clip), hardware_decode="vaapi", reconnect_max_s=0.1)
    stop, ready = threading.Event(), threading.Event()

    with capture_logs() as logs:
        capture = Capture(camera, ready, stop, lambda change: None)
        capture.start()
        until = time.monotonic() + 10
        while capture.num_connections < 4 and time.monotonic() < until:
            time.sleep(0.02)
        stop.set()
        assert capture.join(5)

    assert capture.slot.counts().num_in > 0
    assert ["hardware_decode_refused"] == [each["event"] for each in logs]


def test_hardware_refusal_is_told_apart_from_a_lost_stream(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(3))

    with pytest.raises(HardwareRefusedError):
        VideoReader(str(clip), hardware="vaapi")
    with pytest.raises(MienError, match="connection refused") as raised:
        VideoReader("rtsp://127.0.0.1:9/1", hardware="vaapi")
    assert not isinstance(raised.value, HardwareRefusedError)


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_senders_clock_tells_when_a_frame_was_taken():
    sent = NOW - timedelta(seconds=0.2)

    assert sent == SenderClock().captured_at(sent.timestamp(), NOW)


@pytest.mark.parametrize("sent_at_s", [None, 0.0, 946684800.0, NOW.timestamp() + 90000])
def test_a_senders_clock_that_was_never_set_says_nothing(sent_at_s):
    assert SenderClock().captured_at(sent_at_s, NOW) is None


def test_a_senders_clock_that_drifts_is_followed():
    clock, told = SenderClock(), None
    for number in range(40 * WINDOW):
        now = NOW + timedelta(seconds=number / 10)
        # 500 parts in a million, far more than real ones: 10 s in the time of the test.
        sent_s = NOW.timestamp() + number / 10 * (1 - 500e-6) - 0.1
        told = clock.captured_at(sent_s, now)

    assert abs((now - told).total_seconds()) < 0.6


@pytest.mark.parametrize("behind_s", [600, -600, 7200])
def test_our_own_clock_that_is_set_is_not_taken_for_the_senders_drift(behind_s):
    frame_ns, errors_s = 0, []
    clock = SenderClock(lambda: frame_ns)
    for number in range(6 * WINDOW):
        frame_ns = number * 10**8
        taken = NOW + timedelta(seconds=number / 10)
        was_set = number >= 2.5 * WINDOW
        now = taken + timedelta(seconds=0.05 - (0 if was_set else behind_s))
        told = clock.captured_at(taken.timestamp(), now)
        if told is not None:
            errors_s.append(abs((told - taken).total_seconds()))

    assert len(errors_s) >= 3.5 * WINDOW
    assert max(errors_s) < 0.001


def test_a_drift_that_was_followed_stays_when_our_own_clock_is_set():
    frame_ns = 0
    clock = SenderClock(lambda: frame_ns)
    for number in range(40 * WINDOW):
        frame_ns = number * 10**8
        taken = NOW + timedelta(seconds=number / 10)
        now = taken + timedelta(seconds=0.1 - (600 if number < 30.5 * WINDOW else 0))
        told = clock.captured_at(NOW.timestamp() + number / 10 * (1 - 500e-6), now)

    assert abs((taken - told).total_seconds()) < 0.6


class Hanging(Capture):
    """A capture whose thread hangs in a call that no time-out frees, the first time."""

    num_made = 0

    def __init__(self, *args):
        super().__init__(*args)
        Hanging.num_made += 1
        self.hangs = Hanging.num_made == 1
        self.let_go = threading.Event()

    def _run(self):
        self._report("connecting")
        self._report("online")
        if self.hangs:
            self.let_go.wait(20)
        while not self.stop.is_set():
            self.last_frame_ns = time.monotonic_ns()
            self.slot.put(frame(self.camera.name), self.stop)
            self.stop.wait(0.01)


def test_a_capture_that_hangs_in_a_call_is_replaced_once(monkeypatch):
    monkeypatch.setattr(cameras_module, "Capture", Hanging)
    monkeypatch.setattr(cameras_module, "HUNG_GRACE_S", 0.1)
    camera = CameraConfig(name="door", source="0", stalled_after_s=0.1, read_timeout_s=0.1)
    states = []
    with Cameras([camera]) as cameras:
        first = cameras.states()["door"].capture
        until = time.monotonic() + 10
        while states[-3:] != ["reconnecting", "connecting", "online"] and time.monotonic() < until:
            states += [change.state for change in cameras.take_changes()]
            time.sleep(0.01)
        assert 1 == sum(
            each.name == "capture-door" and each is first._thread for each in threading.enumerate()
        )
        assert [each.camera for each in cameras.take_frames()] == ["door"]
        first.let_go.set()

    assert ["connecting", "online", "stalled", "reconnecting", "connecting", "online"] == states


class Flood(Capture):
    """Gives a frame as often as its `max_fps` says, without reading anything."""

    def _run(self):
        self._report("online")
        for index in range(10**6):
            if self.stop.wait(1 / self.camera.max_fps):
                return
            self.last_frame_ns = time.monotonic_ns()
            self.next_index = index + 1
            self.slot.put(frame(self.camera.name, index), self.stop)


def test_a_busy_camera_takes_nothing_from_the_others(monkeypatch):
    monkeypatch.setattr(cameras_module, "Capture", Flood)
    configs = [CameraConfig(name=f"c{n}", source="0", max_fps=500 if n == 0 else 20) for n in range(6)]
    taken = dict.fromkeys((camera.name for camera in configs), 0)
    with Cameras(configs, max_batch=2) as cameras:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            batch = cameras.take_frames()
            assert len(batch) <= 2
            for each in batch:
                taken[each.camera] += 1
            time.sleep(0.02)  # 2 frames in 20 ms: 17 a second for each of six
        counts = {name: cameras.counts(name) for name in taken}

    assert min(taken.values()) / max(taken.values()) >= 0.8, taken
    for name, count in counts.items():
        assert count.num_taken == taken[name]
        assert count.num_in == count.num_taken + count.dropped.total() + count.waiting
    assert counts["c0"].dropped["superseded"] > counts["c1"].dropped["superseded"]


def test_counts_hold_at_every_moment_while_frames_come_and_go():
    from daemon.slots import NewestFrame

    slot, stop = NewestFrame(threading.Event()), threading.Event()
    putter = threading.Thread(target=lambda: [slot.put(frame("x"), stop) for _ in range(5000)])
    putter.start()
    taken = 0
    while putter.is_alive():
        taken += slot.take() is not None
        counts = slot.counts()
        assert counts.num_in == counts.num_taken + counts.num_dropped + counts.waiting
        assert counts.num_taken == taken
    putter.join()


def test_a_changed_camera_goes_on_where_it_was(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(20), fps=50)
    camera = CameraConfig(name="door", source=str(clip), loop=True, speed="max")
    with Cameras([camera]) as cameras:
        first = _take(cameras, 10)
        cameras.add(camera.model_copy(update={"rotate": 90}))
        second = _take(cameras, 10)
        counts = cameras.counts("door")

    assert second[0].index > first[-1].index
    assert counts.num_in == counts.num_taken + counts.dropped.total() + counts.waiting
    assert counts.num_taken == 20


def _take(cameras, num):
    frames, until = [], time.monotonic() + 10
    while len(frames) < num and time.monotonic() < until:
        frames += cameras.take_frames()
        cameras.take_changes()
    return frames
