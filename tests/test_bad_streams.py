"""Sources that name themselves oddly, speak an unknown codec, send slowly or are dead for long."""

from __future__ import annotations

import io
import json
import socketserver
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import av
import pytest
import zmq
from structlog.testing import capture_logs

from daemon import capture as capture_module
from daemon.cameras import Cameras
from daemon.config import CameraConfig
from daemon.control_requests import CameraAdd, Status
from daemon.decoding import HardwareRefusedError, SourceLostError, VideoReader
from daemon.sources import check_source, read_video
from engines.errors import MienError, UsageError
from tests.clips import grey_levels, write_clip
from tests.processes import MIEN, DaemonProcess
from tests.wire import config_of, is_state, messages_until, running

DEAD = "rtsp://me:secret@127.0.0.1:9/1"
FPS = 25


def h264_units():
    """One second of small H.264 pictures, as the units that one RTP packet each can carry (RFC 6184)."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="h264") as container:
        options = {"tune": "zerolatency", "x264-params": "keyint=5:repeat-headers=1"}
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for image in grey_levels(FPS):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(video.encode())
    return [unit for unit in stream.getvalue().replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]


class Connection(socketserver.StreamRequestHandler):
    """One client's RTSP over TCP (RFC 2326), answered just as far as FFmpeg asks."""

    def handle(self):
        try:
            while request := self._request():
                method, number = request[0].split()[0], next(x for x in request if x.startswith(b"CSeq"))
                headers, body = self._answer(method)
                self.wfile.write(b"\r\n".join([b"RTSP/1.0 200 OK", number.strip(), *headers, b"", body]))
                if method == b"PLAY":
                    self._play()
        except OSError:
            return  # the client has gone

    def _request(self):
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        return lines

    def _answer(self, method):
        if method == b"DESCRIBE":
            name, codec = self.server.name, self.server.codec
            lines = [b"v=0", b"o=- 0 0 IN IP4 127.0.0.1", b"s=" + name, b"t=0 0"]
            lines += [b"m=video 0 RTP/AVP 96", b"a=rtpmap:96 " + codec + b"/90000", b"a=control:t", b""]
            body = b"\r\n".join(lines)
            return [b"Content-Type: application/sdp", b"Content-Length: %d" % len(body)], body
        if method == b"SETUP":
            return [b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1", b"Session: 1"], b""
        return [b"Public: DESCRIBE, SETUP, PLAY, TEARDOWN"], b""

    def _play(self):
        number, ticks = 0, 0
        while True:
            for unit in self.server.units:
                while self.server.held.is_set():
                    time.sleep(0.01)
                is_picture = unit[0] & 31 in (1, 5)
                packet = struct.pack(">BBHII", 0x80, 96 | is_picture << 7, number & 0xFFFF, ticks, 7) + unit
                self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
                number += 1
                if is_picture:
                    ticks += 90000 // FPS
                    time.sleep(1 / FPS)


class RtspCamera(socketserver.ThreadingTCPServer):
    """A camera with this session name and codec; it sends nothing while `held` is set."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, name=b"IPC", codec=b"H264"):
        super().__init__(("127.0.0.1", 0), Connection)
        self.name, self.codec, self.units, self.held = name, codec, h264_units(), threading.Event()
        self.source = f"rtsp://127.0.0.1:{self.server_address[1]}/1"


@contextmanager
def serving(server):
    thread = threading.Thread(target=partial(server.serve_forever, 0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Changes:
    """What cameras tell and give, with times."""

    def __init__(self, cameras):
        self.cameras, self.told, self.frames = cameras, [], []

    def wait(self, seconds, holds=lambda self: False):
        """Until `holds`, or so long; returns whether it did."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not holds(self):
            self.frames += self.cameras.take_frames()
            self.told += self.cameras.take_changes()
            time.sleep(0.01)
        return holds(self)

    @property
    def states(self):
        return [change.state for change in self.told]


def clip_of_unknown_codec(path):
    write_clip(path, grey_levels(5), codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    return path


def test_a_codec_that_cannot_be_decoded_is_told_in_one_line(tmp_path):
    path = clip_of_unknown_codec(tmp_path / "clip.avi")

    for attempt in (lambda: check_source(str(path)), lambda: next(read_video(path, camera="door"))):
        with pytest.raises(MienError, match=r"^\S+clip\.avi: its codec cannot be decoded; .+$"):
            attempt()


@pytest.mark.parametrize("command", ["replay", "bench"])
def test_commands_refuse_a_codec_that_cannot_be_decoded_in_words(tmp_path, command):
    path = clip_of_unknown_codec(tmp_path / "clip.avi")

    done = subprocess.run([MIEN, command, path], capture_output=True, text=True, cwd=tmp_path, check=False)

    told = done.stdout + done.stderr
    assert (1, 1) == (done.returncode, told.count("its codec cannot be decoded"))
    assert "Traceback" not in told


def test_a_camera_whose_codec_cannot_be_decoded_disturbs_no_other(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(30), fps=25)
    with serving(RtspCamera(codec=b"FOO")) as server:
        cameras = [
            {"name": "calm", "source": str(clip), "loop": True},
            {"name": "odd", "source": server.source, "open_timeout_s": 3},
        ]
        with running(config_of(*cameras)) as (_, socket):
            messages = messages_until(socket, is_state("odd", "reconnecting"))
            messages_until(socket, lambda m: m[0] == "mien/1/calm/faces")

    assert "its codec cannot be decoded" in messages[-1][1]["reason"]


@pytest.mark.parametrize("name", ["Küche".encode("latin-1"), "摄像机".encode("gbk")])
def test_a_session_name_that_is_not_utf_8_does_not_matter(name):
    with (
        serving(RtspCamera(name)) as server,
        Cameras([CameraConfig(name="door", source=server.source)]) as it,
    ):
        assert Changes(it).wait(5, lambda changes: len(changes.frames) >= 3)

        assert 1 == it.counts("door").num_connections


def test_a_title_that_is_not_utf_8_does_not_matter(tmp_path):
    path = write_clip(tmp_path / "clip.avi", grey_levels(5), codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lavf", b"L\xfcvf"))

    assert path.read_bytes() != content
    assert 5 == len(list(read_video(path, camera="door")))


def test_what_hardware_cannot_be_blamed_for_is_a_lost_source(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(3))

    with pytest.raises(SourceLostError, match=r"clip\.mp4: cannot be read"):
        VideoReader(str(clip), format="no such format")


def test_hardware_that_is_refused_in_software_too_is_waited_for(monkeypatch):
    """The pause of a lost connection is left out once, for the step to software."""

    def refused(camera):
        raise HardwareRefusedError("no")

    monkeypatch.setattr(capture_module, "read_source", refused)
    camera = CameraConfig(name="door", source=DEAD, hardware_decode="vaapi")
    with capture_logs() as logs, Cameras([camera]) as cameras:
        changes = Changes(cameras)
        changes.wait(1)

        assert 2 <= cameras.counts("door").num_connections <= 6
    assert ["connecting", "reconnecting"] == changes.states
    assert 1 == len(logs)


def test_a_camera_whose_frames_are_thinned_is_not_taken_to_be_stalled():
    with serving(RtspCamera()) as server:
        camera = CameraConfig(name="door", source=server.source, max_fps=0.5, stalled_after_s=1.0)
        with Cameras([camera]) as cameras:
            changes = Changes(cameras)
            changes.wait(10, lambda changes: len(changes.frames) >= 3)
            counts = cameras.counts("door")

    assert ["connecting", "online"] == changes.states
    assert (3, 1) == (counts.num_taken, counts.num_connections)
    # What `max_fps` leaves out goes on being counted with the frame after it.
    assert counts.dropped["max_fps"] == changes.frames[-1].index - 2


def test_a_thinned_camera_that_falls_silent_is_stalled_all_the_same():
    with serving(RtspCamera()) as server:
        camera = CameraConfig(name="door", source=server.source, max_fps=0.1, stalled_after_s=1.0)
        with Cameras([camera]) as cameras:
            changes = Changes(cameras)
            assert changes.wait(5, lambda changes: "online" in changes.states)
            server.held.set()
            assert changes.wait(5, lambda changes: "stalled" in changes.states)
            server.held.clear()
            assert changes.wait(5, lambda changes: "online" == changes.states[-1])

    assert ["connecting", "online", "stalled", "online"] == changes.states


class Empty(SimpleHTTPRequestHandler):
    """Has no file at all, and says so to nobody else."""

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *message):
        pass


def test_a_dead_camera_is_told_once_and_for_another_reason_once_more():
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Empty)) as server:
        source = f"http://127.0.0.1:{server.server_port}/1"
        camera = CameraConfig(name="door", source=source, reconnect_max_s=0.02)
        with Cameras([camera]) as cameras:
            changes = Changes(cameras)
            assert changes.wait(10, lambda changes: "offline" in changes.states)
            first = cameras.counts("door").num_connections
            assert changes.wait(5, lambda _: cameras.counts("door").num_connections > first + 10)

            assert ["connecting", "reconnecting", "offline"] == changes.states
            assert changes.told[-1].since == cameras.states()["door"].since

            server.shutdown()
            server.server_close()
            assert changes.wait(10, lambda changes: len(changes.told) > 3)
            changes.wait(0.5)

    offline = changes.told[2:]
    assert "no such stream" in offline[0].reason and "connection refused" in offline[-1].reason
    assert {("offline", offline[0].since)} == {(each.state, each.since) for each in offline}
    assert all(one.reason != next_.reason for one, next_ in pairwise(offline))
    assert len(offline) <= 4  # while the server ends, one or two connections may break off halfway


@pytest.fixture
def daemon(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", grey_levels(30), fps=25)
    with DaemonProcess(tmp_path, [{"name": "door", "source": str(clip), "loop": True}]) as running:
        running.until(lambda: running.of("door/faces"))
        yield running


def test_a_dead_camera_fills_neither_the_log_nor_the_wire_and_late_subscribers_hear_of_it(daemon):
    daemon.ask(CameraAdd({"name": "gate", "source": DEAD, "reconnect_max_s": 0.02}))
    status = daemon.until(
        lambda: next((it for it in daemon.ask(Status())["cameras"] if it["connections"] > 30), None)
    )
    with zmq.Context() as context, context.socket(zmq.SUB) as late:
        late.rcvtimeo = 5000
        late.subscribe("mien/1/gate/")
        late.connect(daemon.endpoint)
        resent = json.loads(late.recv_multipart()[1])
    daemon.collect()

    assert ["connecting", "reconnecting", "offline"] == daemon.states("gate")
    assert 1 == daemon.log().count('"event": "camera_offline"')
    assert (True, "offline") == (resent["resent"], resent["state"])
    sinces = [each["since"] for each in (resent, status, daemon.of("gate/status")[-1])]
    assert 1 == len({datetime.fromisoformat(since) for since in sinces})


def test_a_camera_that_is_added_switched_off_is_left_alone(daemon):
    with pytest.raises(UsageError, match="enabled is false"):
        daemon.ask(CameraAdd({"name": "gate", "source": DEAD, "enabled": "false"}))
    daemon.wait(0.5)

    assert ["door"] == [each["name"] for each in daemon.ask(Status())["cameras"]]
    assert not daemon.of("gate/status")
