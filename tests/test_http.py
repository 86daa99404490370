"""Cameras and files behind HTTP, served by a real server in a thread."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise

import cv2
import pytest

from daemon.config import CameraConfig
from daemon.decoding import sign_of_life
from daemon.sources import read_live
from engines.errors import MienError
from tests.clips import grey_levels, write_clip

PASSWORD = base64.b64encode(b"me:secret").decode()


class CameraServer(BaseHTTPRequestHandler):
    """/mjpeg: ten pictures a second without end, for who knows the password. /clip.mp4: a file."""

    clip = b""

    def do_GET(self) -> None:
        if self.path == "/clip.mp4":
            self._answer("video/mp4", self.clip)
        elif self.headers.get("Authorization") != f"Basic {PASSWORD}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        else:
            self._stream()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for image in grey_levels(40):
            jpeg = cv2.imencode(".jpg", image)[1].tobytes()
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def address(tmp_path):
    CameraServer.clip = write_clip(
        tmp_path / "clip.mp4", grey_levels(20), fps=20, movflags="faststart"
    ).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), CameraServer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_mjpeg_camera_gives_its_frames_as_they_come(address):
    camera = CameraConfig(name="door", source=f"http://me:secret@{address}/mjpeg")

    frames = list(islice(read_live(camera), 12))

    assert list(range(12)) == [frame.index for frame in frames]
    assert frames[0].image.mean() < frames[-1].image.mean()
    assert 0.6 < (frames[-1].monotonic_ns - frames[2].monotonic_ns) / 1e9 < 1.5


def test_a_refused_password_is_told_and_not_repeated(address):
    camera = CameraConfig(name="door", source=f"http://me:wrong-one@{address}/mjpeg")

    with pytest.raises(MienError, match="refused the credentials") as raised:
        next(read_live(camera))
    assert "wrong-one" not in str(raised.value)


def test_a_video_file_behind_a_url_plays_at_its_own_speed(address):
    started = time.monotonic()

    frames = list(read_live(CameraConfig(name="door", source=f"http://{address}/clip.mp4")))

    assert len(frames) == 20
    assert 0.8 < time.monotonic() - started < 2.5


def test_a_file_whose_next_picture_is_far_away_is_alive_while_it_is_waited_for(address, tmp_path):
    clip = write_clip(tmp_path / "slow.mp4", grey_levels(4), fps=1, movflags="faststart")
    CameraServer.clip = clip.read_bytes()
    signs = [time.monotonic()]
    before = sign_of_life.set(lambda: signs.append(time.monotonic()))

    frames = list(read_live(CameraConfig(name="door", source=f"http://{address}/clip.mp4", max_fps=0.4)))

    signs.append(time.monotonic())
    sign_of_life.reset(before)
    assert 2 == len(frames) and 2.9 < (frames[1].monotonic_ns - frames[0].monotonic_ns) / 1e9
    assert max(after - sign for sign, after in pairwise(signs)) < 2
