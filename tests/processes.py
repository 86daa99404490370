"""Daemons and code as processes of their own: a configuration file, a subscriber, a control and a notify socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
import zmq

from daemon.control_client import Control
from daemon.secrecy import redact_url

ROOT = Path(__file__).parents[1]
MIEN = Path(sys.executable).with_name("mien")
DEADLINE_S = 60.0


def child(code: str, **changes: object) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter from the project's root."""
    environment = {**os.environ, **{key: str(value) for key, value in changes.items()}}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


class DaemonProcess:
    """One daemon; use it as a context manager. What it publishes is collected from the start."""

    def __init__(
        self,
        folder: Path,
        cameras: list[dict[str, Any]],
        *options: str,
        real: bool = False,
        environment: dict[str, str] | None = None,
        log_to: str | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.log_path = folder / "log.txt"
        self._log_to = log_to or self.log_path
        self.control_path = folder / "c.sock"
        self.endpoint = f"ipc://{folder}/events"
        self._settings = {
            "publish": {"endpoint": self.endpoint, "heartbeat_s": 0.5},
            "control": {"path": str(self.control_path)},
            "gallery": {"path": str(folder / "gallery.sqlite")},
            "metrics": {"port": 0},
            "log": {"format": "json"},
        } | settings
        self.configure(cameras)
        self._command = (
            [str(MIEN), "run", "--config", str(self.config)]
            if real
            else [sys.executable, "-m", "tests.fake_daemon", str(self.config), *options]
        )
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.events: list[tuple[str, dict[str, Any]]] = []

    def configure(self, cameras: list[dict[str, Any]], **more: Any) -> None:
        """Writes the configuration file."""
        self.config.write_text(yaml.safe_dump(self._settings | more | {"cameras": cameras}))

    def __enter__(self) -> DaemonProcess:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._subscriber = self._context.socket(zmq.SUB)
        self._subscriber.linger = 0
        self._subscriber.rcvhwm = 0
        self._subscriber.setsockopt(zmq.RECONNECT_IVL, 20)
        self._subscriber.subscribe("mien/1/")
        self._subscriber.connect(self.endpoint)
        self._log = Path(self._log_to).open("w")
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdout=self._log, stderr=self._log
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        self._subscriber.close()
        self._context.term()

    def collect(self, wait_ms: int = 0) -> None:
        """Takes in what has been published."""
        while self._subscriber.poll(wait_ms):
            topic, payload = self._subscriber.recv_multipart()
            self.events.append((topic.decode(), json.loads(payload)))
            wait_ms = 0

    def wait(self, seconds: float) -> None:
        """Goes on collecting for so long."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.collect(50)

    def until(self, holds: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """What `holds` gives once it gives something true; fails at the deadline."""
        ends = time.monotonic() + deadline_s
        while not (result := holds()):
            assert time.monotonic() < ends, self.log()[-3000:]
            ended = self.process.poll() is not None
            self.collect(500 if ended else 20)
            assert not ended or holds(), self.log()[-3000:]
        return result

    def of(self, topic: str, *, since: int = 0) -> list[dict[str, Any]]:
        """The events of one topic, those sent again left out."""
        return [
            event
            for name, event in self.events[since:]
            if name == f"mien/1/{topic}" and not event.get("resent")
        ]

    def states(self, camera: str, *, since: int = 0) -> list[str]:
        """The states a camera went through."""
        return [event["state"] for event in self.of(f"{camera}/status", since=since)]

    def ask(self, request: Any) -> Any:
        """The daemon's answer through its control socket."""
        with Control(self.control_path) as control:
            return control.ask(request)

    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def end(self, number: int, deadline_s: float = 20) -> int:
        """Sends a signal and gives the exit status."""
        self.process.send_signal(number)
        return self.process.wait(deadline_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def holds_no_secret(text: str) -> bool:
    return redact_url(text) == text
