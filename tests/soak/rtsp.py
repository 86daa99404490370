"""An RTSP server as a process, to be killed, frozen and started anew."""

from __future__ import annotations

import os
import signal
import subprocess
from itertools import islice
from pathlib import Path

import cv2

from daemon.sources import read_video

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = ROOT / "tests/rtsp_server.py"
CLIP = ROOT / "samples/two_people.mp4"


def write_pictures(folder: Path, size: tuple[int, int], num: int = 60) -> Path:
    """Pictures of the shipped clip, in one size (width, height), for the server to show."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(islice(read_video(CLIP, camera="x"), num)):
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), cv2.resize(frame.image, size))
    return folder


class RtspServer:
    """Shows a folder of pictures at rtsp://127.0.0.1:PORT/cam; use it as a context manager."""

    def __init__(self, pictures: Path, fps: int = 15, port: int = 0) -> None:
        command = [SYSTEM_PYTHON, str(SERVER), str(pictures), str(fps), "h264", str(port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        word, bound = self.process.stdout.readline().split()
        assert word == "ready"
        self.port = int(bound)

    @property
    def url(self) -> str:
        return f"rtsp://me:secret@127.0.0.1:{self.port}/cam"

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
