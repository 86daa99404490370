from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog

from daemon.capture import Capture
from daemon.config import CameraConfig
from daemon.decoding import VideoReader
from daemon.records import Frame
from daemon.slots import FrameQueue, NewestFrame
from daemon.sources import (
    EPOCH,
    Thinning,
    check_source,
    is_live,
    paced,
    probe_video,
    read_folder,
    read_live,
    read_source,
    read_video,
    source_kind,
)
from engines.errors import MienError
from tests.clips import grey_levels, noise, write_clip


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", grey_levels(30), fps=10, movflags="faststart")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "stills"
    folder.mkdir()
    for number, image in enumerate(grey_levels(3)):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def frame(index=0, time_s=0.0):
    image = np.zeros((4, 4, 3), np.uint8)
    return Frame("door", index, EPOCH, "pts", time_s, round(time_s * 1e9), None, image)


def test_video_gives_every_frame_on_the_clock_of_its_times(clip):
    frames = list(read_video(clip, camera="door"))

    assert list(range(30)) == [each.index for each in frames]
    assert [i * 100_000_000 for i in range(30)] == [each.time_ns for each in frames]
    assert EPOCH + timedelta(seconds=1) == frames[10].captured_at
    assert {("door", "pts", None, 0)} == {(f.camera, f.clock, f.monotonic_ns, f.dropped) for f in frames}


def test_video_gives_bgr_pictures(tmp_path):
    blue = np.zeros((48, 64, 3), np.uint8)
    blue[..., 0] = 200
    clip = write_clip(tmp_path / "blue.mp4", [blue] * 3)

    mean = next(read_video(clip, camera="door")).image.mean(axis=(0, 1))

    assert mean[0] > 150 > 60 > mean[2]


def test_reading_twice_gives_the_same(clip):
    first, second = (list(read_video(clip, camera="door")) for _ in range(2))

    assert all(
        np.array_equal(a.image, b.image) and a.time_ns == b.time_ns
        for a, b in zip(first, second, strict=True)
    )


def test_start_sets_the_time_of_the_first_frame(clip):
    start = datetime(2024, 5, 1, 9, tzinfo=UTC)

    assert start == next(read_video(clip, camera="door", start=start)).captured_at


def test_loop_goes_on_counting(clip):
    frames = list(islice(read_video(clip, camera="door", loop=True), 65))

    assert list(range(65)) == [each.index for each in frames]
    assert {100_000_000} == set(np.diff([each.time_ns for each in frames]))


def test_rotation_is_clockwise(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 255  # the left half is white
    clip = write_clip(tmp_path / "half.mp4", [image] * 3)

    turned = next(read_video(clip, camera="door", rotate=90)).image

    assert turned.shape == (64, 48, 3)
    assert turned[:28].mean() > 200 > 50 > turned[36:].mean()


def test_max_fps_thins_evenly(clip):
    camera = CameraConfig(name="door", source=str(clip), max_fps=5)

    assert list(range(0, 30, 2)) == [each.index for each in read_source(camera)]


def test_thinning_follows_a_clock_that_starts_anew():
    wanted = Thinning(max_fps=1)

    assert [wanted(t) for t in (0, 0.5, 1, 0, 0.5, 1)] == [True, False, True, True, False, True]


def test_properties_are_those_of_the_file(clip):
    properties = probe_video(clip)

    assert (
        properties.width,
        properties.height,
        properties.fps,
        properties.num_frames,
    ) == (64, 48, 10.0, 30)


def test_truncated_video_gives_what_can_be_read_and_a_warning(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", noise(30), movflags="faststart")
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 2 // 3])

    with structlog.testing.capture_logs() as logs:
        frames = list(read_video(clip, camera="door"))

    assert 0 < len(frames) < 30
    assert [entry["event"] for entry in logs] == ["video_incomplete"]
    assert f"{len(frames)} of 30 frames" in logs[0]["detail"]


def test_whole_video_gives_no_warning(clip):
    with structlog.testing.capture_logs() as logs:
        list(read_video(clip, camera="door"))

    assert logs == []


def write_empty(path: Path) -> None:
    path.touch()


def write_text(path: Path) -> None:
    path.write_text("not a video " * 100)


def write_half(path: Path) -> None:
    """A video cut off before the index at its end."""
    write_clip(path, grey_levels(30))
    path.write_bytes(path.read_bytes()[:-1200])


def write_nothing(path: Path) -> None:
    pass


def write_sound(path: Path) -> None:
    import wave

    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0" * 8000)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_nothing, "no such file"),
        (write_empty, "is empty"),
        (write_text, "not a video"),
        (write_half, "not a video, or cut off"),
        (write_sound, "holds no pictures"),
    ],
)
def test_unreadable_video_is_named_in_one_line(tmp_path, write, words):
    path = tmp_path / "clip.mp4"
    write(path)

    for attempt in (lambda: check_source(str(path)), lambda: next(read_video(path, camera="door"))):
        with pytest.raises(MienError, match=words) as raised:
            attempt()
        assert str(raised.value).startswith(f"{path}: ")
        assert len(str(raised.value).splitlines()) == 1


def test_folder_gives_its_images_in_order(images):
    frames = list(read_folder(images, camera="door", fps=10))

    assert [each.index for each in frames] == [0, 1, 2]
    assert [each.time_ns for each in frames] == [0, 100_000_000, 200_000_000]
    assert frames[0].image.mean() < frames[1].image.mean() < frames[2].image.mean()


def test_a_bad_image_in_a_folder_is_left_out_with_a_warning(images):
    (images / "1.png").write_bytes(b"no picture")

    with structlog.testing.capture_logs() as logs:
        frames = list(read_folder(images, camera="door"))

    assert [each.index for each in frames] == [0, 2]
    assert [entry["event"] for entry in logs] == ["image_skipped"]


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(MienError, match=str(tmp_path)):
        check_source(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "kind", "live"),
    [
        ("0", "device", True),
        ("/dev/video2", "device", True),
        ("rtsp://host/1", "url", True),
        ("http://host/clip.mp4", "url", True),
        ("clip.mp4", "video", False),
        (".", "folder", False),
    ],
)
def test_a_source_is_known_by_its_form(source, kind, live):
    assert (kind, live) == (source_kind(source), is_live(source))


@pytest.mark.parametrize("source", ["rtsp://me:secret@127.0.0.1:9/1", "http://me:secret@127.0.0.1:9/1"])
def test_a_dead_stream_is_told_without_its_password(source):
    camera = CameraConfig(name="door", source=source, open_timeout_s=2)

    with pytest.raises(MienError, match="connection refused") as raised:
        next(read_live(camera))
    assert "secret" not in str(raised.value)


def test_a_silent_server_is_given_up_in_time():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/1"
        started = time.monotonic()

        with pytest.raises(MienError, match="no answer in time"):
            next(read_live(CameraConfig(name="door", source=source, open_timeout_s=0.5)))

    assert time.monotonic() - started < 3


def test_a_missing_device_is_named():
    with pytest.raises(MienError, match="/dev/video987: no such file or device"):
        next(read_live(CameraConfig(name="door", source="987")))


def test_pacing_follows_the_frames_clock():
    waits = []

    list(paced([frame(0, 0.0), frame(1, 0.5), frame(2, 1.0)], waits.append))

    assert [round(wait, 1) for wait in waits] == [0.5, 1.0]


def test_live_slot_keeps_the_newest_and_counts_the_rest():
    ready, slot = threading.Event(), None
    slot = NewestFrame(ready)
    for index in range(4):
        slot.put(frame(index), threading.Event())

    taken = slot.take()

    assert (taken.index, taken.dropped) == (3, 3)
    assert slot.take() is None
    assert ready.is_set()
    assert slot.num_dropped == 3


def test_live_slot_counts_anew_after_each_frame():
    slot = NewestFrame(threading.Event())
    for index in range(3):
        slot.put(frame(index), threading.Event())
    slot.take()
    slot.put(frame(3), threading.Event())

    assert slot.take().dropped == 0


def test_replay_queue_loses_nothing_and_makes_the_reader_wait():
    slot, stop = FrameQueue(threading.Event(), size=2), threading.Event()
    reader = threading.Thread(target=lambda: [slot.put(frame(i), stop) for i in range(20)])
    reader.start()
    time.sleep(0.05)

    assert slot.depth() == 2
    taken = []
    while len(taken) < 20:
        if (each := slot.take()) is not None:
            taken.append(each.index)
    reader.join()
    assert list(range(20)) == taken


def test_replay_queue_lets_go_when_stopped():
    slot, stop = FrameQueue(threading.Event(), size=1), threading.Event()
    reader = threading.Thread(target=lambda: [slot.put(frame(i), stop) for i in range(5)])
    reader.start()
    stop.set()
    reader.join(2)

    assert not reader.is_alive()


def captured(camera: CameraConfig, *, until_state: str) -> list[tuple[str, str | None]]:
    """The states a capture reports, up to the named one."""
    changes, stop, ready = [], threading.Event(), threading.Event()
    capture = Capture(camera, ready, stop, changes.append)
    capture.start()
    until = time.monotonic() + 5
    while until_state not in [change.state for change in changes]:
        assert time.monotonic() < until, changes
        capture.slot.take()
        time.sleep(0.005)
    stop.set()
    capture.join(2)
    return [(change.state, change.reason) for change in changes]


def test_capture_of_a_file_comes_online_and_ends(clip):
    states = captured(CameraConfig(name="door", source=str(clip), speed="max"), until_state="ended")

    assert [state for state, _ in states] == ["connecting", "online", "ended"]


def test_capture_tries_a_dead_stream_again_and_again_until_it_calls_it_offline():
    camera = CameraConfig(name="door", source="rtsp://me:secret@127.0.0.1:9/1", reconnect_max_s=0.01)

    states = captured(camera, until_state="offline")

    assert [state for state, _ in states] == ["connecting"] + ["reconnecting"] * 4 + ["offline"]
    assert "connection refused" in states[1][1]
    assert "secret" not in str(states)


def test_frames_of_a_file_in_the_daemon_know_when_they_arrived(clip):
    stop, ready = threading.Event(), threading.Event()
    capture = Capture(CameraConfig(name="door", source=str(clip), speed="max"), ready, stop, lambda _: None)
    capture.start()
    assert ready.wait(5)
    until, first = time.monotonic() + 5, None
    while first is None and time.monotonic() < until:
        first = capture.slot.take()
    stop.set()
    capture.join(2)

    assert abs(time.monotonic_ns() - first.monotonic_ns) < 5e9
    assert abs(datetime.now(UTC) - first.captured_at) < timedelta(seconds=5)
    assert first.clock == "pts"


def test_reader_counts_what_it_decoded(clip):
    with VideoReader(str(clip)) as reader:
        images = [picture.image for picture in reader.pictures(lambda pts_s: pts_s >= 2.5)]

        assert (len(images), reader.num_decoded, reader.shortfall) == (5, 30, None)


def test_dropped_frames_add_up():
    slot = NewestFrame(threading.Event())
    slot.put(frame(0), threading.Event())
    slot.put(replace(frame(1), dropped=2), threading.Event())

    assert slot.take().dropped == 3
