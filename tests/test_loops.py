"""Files in a loop, thinned by max_fps: the next round begins where the clip ends, whatever of it was wanted."""

from __future__ import annotations

import threading
import time
from itertools import islice

import cv2
import pytest
import structlog

from daemon.capture import Capture
from daemon.config import CameraConfig
from daemon.sources import read_source
from tests.clips import grey_levels, write_clip


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", grey_levels(30), fps=10)


@pytest.fixture
def images(tmp_path):
    for number, image in enumerate(grey_levels(3)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    return tmp_path


def test_a_loop_goes_on_after_the_clips_end_not_after_the_last_wanted_frame(clip):
    camera = CameraConfig(name="door", source=str(clip), loop=True, max_fps=0.25)  # the clip: 3 s

    frames = list(islice(read_source(camera), 5))

    assert [0, 40, 80, 120, 160] == [each.index for each in frames]
    assert [0, 4, 8, 12, 16] == [each.pts_s for each in frames]


def test_a_thinned_folder_in_a_loop_comes_to_all_its_images(images):
    (images / "3.png").write_bytes(b"no picture")
    camera = CameraConfig(name="door", source=str(images), loop=True, max_fps=5)  # every fifth of four images

    with structlog.testing.capture_logs():
        frames = list(islice(read_source(camera), 6))

    assert [0, 5, 10, 16, 20, 25] == [each.index for each in frames]  # the 15th cannot be read
    assert 3 == len({each.image.tobytes() for each in frames})


def test_what_a_loop_leaves_out_is_counted_over_the_rounds(clip):
    camera = CameraConfig(name="door", source=str(clip), loop=True, max_fps=0.25, speed="max")
    stop, taken = threading.Event(), []
    capture = Capture(camera, threading.Event(), stop, lambda _: None)
    capture.start()
    until = time.monotonic() + 5
    while len(taken) < 4 and time.monotonic() < until:
        if (each := capture.slot.take()) is not None:
            taken.append(each.index)
    stop.set()
    capture.join(2)

    assert [0, 40, 80, 120] == taken
    num_delivered = capture.next_index // 40 + 1
    assert num_delivered + capture.num_skipped == capture.next_index
