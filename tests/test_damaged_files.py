"""Videos as discs, networks and bad cameras leave them."""

from __future__ import annotations

import random
from itertools import islice

import av
from av.video.reformatter import VideoReformatter
from structlog.testing import capture_logs

from daemon.sources import read_video
from engines.errors import MienError
from tests.clips import grey_levels, noise, write_clip
from tests.wire import FakePipeline, config_of, is_state, messages_until, of_topic, running


def corrupted(content, random_):
    """A file as discs and networks leave it: bytes turned over, a piece missing or doubled, cut off."""
    content = bytearray(content)
    kind = random_.randrange(4)
    at = random_.randrange(len(content))
    if kind == 0:
        for _ in range(random_.randrange(1, 200)):
            content[random_.randrange(len(content))] = random_.randrange(256)
    elif kind == 1:
        del content[at : at + random_.randrange(1, 4000)]
    elif kind == 2:
        content[at:at] = content[: random_.randrange(1, 4000)]
    else:
        del content[at:]
    return bytes(content)


def with_damaged_packets(whole, path, random_):
    """Writes a video whose container is whole and some of whose packets are not, as a bad camera sends them."""
    with av.open(str(whole)) as source, av.open(str(path), "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            content = bytearray(bytes(packet))
            for _ in range(random_.randrange(8) if content else 0):
                content[random_.randrange(len(content))] = random_.randrange(256)
            if random_.random() < 0.1:
                del content[random_.randrange(1, len(content) + 1) :]
            damaged = av.Packet(bytes(content))
            damaged.stream, damaged.time_base = stream, packet.time_base
            damaged.pts, damaged.dts, damaged.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
            target.mux(damaged)


def read_corrupted(folder, rounds, seed=0):
    """Reads damaged videos of several kinds; returns how many could be read, and could not.

    Every fifth is whole but for its packets.
    """
    random_ = random.Random(seed)
    wholes = [
        write_clip(folder / f"whole.{kind}", noise(12), codec=codec).read_bytes()
        for kind, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("ts", "libx264"))
    ]
    path, num_read, num_refused = folder / "bad.bin", 0, 0
    for number in range(rounds):
        if number % 5 == 4:
            with_damaged_packets(folder / "whole.mp4", path, random_)
        else:
            path.write_bytes(corrupted(wholes[number % len(wholes)], random_))
        try:
            with capture_logs():
                for each in islice(read_video(path, camera="door"), 200):
                    assert each.image.ndim == 3
            num_read += 1
        except MienError as error:
            assert 1 == len(str(error).splitlines())
            num_refused += 1
    return num_read, num_refused


def test_a_picture_that_damage_made_unconvertible_is_passed_over(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(6))
    calls = []

    class Converter:
        """PyAV's, given a third picture whose format FFmpeg does not convert (found by fuzzing)."""

        def __init__(self):
            self._converter = VideoReformatter()

        def reformat(self, *picture, **options):
            calls.append(1)
            if len(calls) == 3:
                raise av.error.OSError(95, "Operation not supported")
            return self._converter.reformat(*picture, **options)

    monkeypatch.setattr("daemon.decoding.VideoReformatter", Converter)

    with capture_logs() as logs:
        assert [0, 1, 3, 4, 5] == [frame.index for frame in read_video(clip, camera="door")]
    assert ["video_incomplete"] == [each["event"] for each in logs]


def test_damaged_files_are_read_as_far_as_they_go_or_refused_in_words(tmp_path):
    num_read, num_refused = read_corrupted(tmp_path, 200)

    assert num_read > 20 and num_refused > 5


def test_a_file_that_is_damaged_does_not_disturb_the_camera_beside_it(tmp_path):
    good = write_clip(tmp_path / "good.mp4", grey_levels(40), fps=40)
    bad = tmp_path / "bad.ts"
    write_clip(bad, noise(60), fps=40)
    content = bytearray(bad.read_bytes())
    random_ = random.Random(1)
    for _ in range(2000):
        content[random_.randrange(5000, len(content))] = random_.randrange(256)
    bad.write_bytes(content)
    cameras = [{"name": "good", "source": str(good)}, {"name": "bad", "source": str(bad)}]

    with running(config_of(*cameras), FakePipeline()) as (_, socket):
        messages = messages_until(socket, is_state("_daemon", "stopping"))

    assert list(range(40)) == [event["frame"]["index"] for event in of_topic(messages, "mien/1/good/faces")]
