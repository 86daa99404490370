"""Start, stop, hang and failure of a daemon that runs as a process of its own."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from daemon import loading
from daemon.config import Config
from daemon.control_requests import Status
from daemon.loading import wait_for_gpu
from daemon.orders import Orders
from daemon.overseer import EXIT_HUNG, stage_of
from engines.errors import MienError
from tests.clips import grey_levels, write_clip
from tests.processes import ROOT, DaemonProcess


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", grey_levels(30), fps=25)


def camera(clip, name="door", **more):
    return {"name": name, "source": str(clip), "loop": True, **more}


class Supervisor:
    """The other end of NOTIFY_SOCKET, as systemd has it; every word is kept with its time."""

    def __init__(self, path):
        self.words = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        while not self._done.is_set():
            try:
                self.words.append((time.monotonic(), self._socket.recv(4096).decode()))
            except TimeoutError:
                continue

    def times(self, word):
        return [at for at, each in self.words if each.startswith(word)]

    def close(self):
        self._done.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path):
    it = Supervisor(tmp_path / "notify")
    yield it
    it.close()


def supervised(tmp_path, watchdog_s=0.4):
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}


def test_ready_is_told_once_events_come_and_alive_as_long_as_they_do(tmp_path, clip, supervisor):
    with DaemonProcess(tmp_path, [camera(clip)], environment=supervised(tmp_path)) as daemon:
        daemon.until(lambda: len(supervisor.times("WATCHDOG=1")) >= 5)
        assert 0 == daemon.end(signal.SIGTERM)
        daemon.until(lambda: "stopping" in daemon.states("_daemon"))

    words = [word for _, word in supervisor.words]
    assert ("READY=1", "STOPPING=1") == (words[0], words[-1])
    assert "stopping" == daemon.states("_daemon")[-1]


def test_ready_is_not_told_before_the_engines_are_warm(tmp_path, supervisor):
    cameras = [{"name": "clip", "source": str(ROOT / "samples/two_people.mp4"), "loop": True}]
    with DaemonProcess(tmp_path, cameras, real=True, environment=supervised(tmp_path, 60)) as daemon:
        daemon.until(lambda: supervisor.times("READY=1"), 240)  # the first start builds the engines
        ready = supervisor.times("READY=1")[0]
        asked = time.monotonic()
        daemon.until(lambda: daemon.of("clip/faces"))

    assert asked - ready < 5
    # The first frame after READY waits for no engine to be compiled or warmed.
    assert daemon.of("clip/faces")[0]["latency_ms"]["total"] < 2000


def test_a_stage_that_hangs_is_named_and_ends_the_process_for_its_supervisor(tmp_path, clip, supervisor):
    with DaemonProcess(
        tmp_path,
        [camera(clip)],
        "--hang-after",
        "25",
        environment=supervised(tmp_path),
        service={"stage_timeout_s": 1.0},
    ) as daemon:
        assert EXIT_HUNG == daemon.process.wait(30)

    assert '"event": "stage_hangs"' in daemon.log()
    assert "in process" in daemon.log()  # the stack of the thread that hangs
    ended = supervisor.times("STATUS=hangs in")[0]
    assert ended - supervisor.times("WATCHDOG=1")[-1] >= 0.8  # nobody said "alive" meanwhile


def test_a_stage_that_fails_again_and_again_is_reported_and_ends_the_process(tmp_path, clip, supervisor):
    with DaemonProcess(
        tmp_path, [camera(clip)], "--fail-after", "5", environment=supervised(tmp_path)
    ) as daemon:
        assert 1 == daemon.process.wait(30)
        daemon.until(lambda: "stopping" in daemon.states("_daemon"))

    assert 3 == daemon.log().count('"event": "batch_failed"')
    assert supervisor.times("STATUS=3 batches in a row failed")
    assert 3 == daemon.of("_daemon/heartbeat")[-1]["dropped"]["failed"]


def test_sigterm_under_load_drains_and_exits_0_within_2_s(tmp_path, clip):
    cameras = [camera(clip, f"camera{number}") for number in range(8)]
    cameras.append({"name": "dead", "source": "rtsp://me:secret@192.0.2.1/1", "open_timeout_s": 60})
    with DaemonProcess(tmp_path, cameras, "--delay", "0.3") as daemon:
        daemon.until(lambda: all(daemon.of(f"camera{number}/faces") for number in range(8)))
        started = time.monotonic()
        status = daemon.end(signal.SIGTERM)
        took = time.monotonic() - started
        daemon.until(lambda: "stopping" in daemon.states("_daemon") and daemon.of("_daemon/heartbeat"))
        daemon.collect(200)

    assert (0, True) == (status, took < 2), took
    for number in range(8):
        assert ["left"] == [event["phase"] for event in daemon.of(f"camera{number}/track")]
        assert "offline" == daemon.states(f"camera{number}")[-1]
    last = daemon.of("_daemon/heartbeat")[-1]
    processed = sum(len(daemon.of(f"camera{number}/faces")) for number in range(8))
    assert last["frames_processed"] >= processed
    assert last["frames_in"] == (
        last["frames_processed"] + sum(last["dropped"].values()) + sum(last["queue_depth"].values())
    )


def test_a_second_signal_ends_it_at_once(tmp_path, clip):
    with DaemonProcess(tmp_path, [camera(clip)], "--delay", "5") as daemon:
        daemon.until(lambda: '"event": "ready"' in daemon.log())
        daemon.until(lambda: daemon.ask(Status())["cameras"][0]["taken"])  # a batch has begun
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        started = time.monotonic()
        status = daemon.end(signal.SIGTERM)

    assert -signal.SIGTERM == status
    assert time.monotonic() - started < 1


def test_every_heartbeat_accounts_for_every_frame(tmp_path, clip):
    cameras = [camera(clip, f"camera{number}", max_fps=fps) for number, fps in enumerate((None, 5, 2))]
    with DaemonProcess(tmp_path, cameras, "--delay", "0.05") as daemon:
        daemon.until(lambda: len(daemon.of("_daemon/heartbeat")) >= 4)

    for beat in daemon.of("_daemon/heartbeat"):
        waiting = sum(beat["queue_depth"].values())
        assert beat["frames_in"] == beat["frames_processed"] + sum(beat["dropped"].values()) + waiting
    assert daemon.of("_daemon/heartbeat")[-1]["dropped"]["max_fps"] > 0


GPU = Config.model_validate({"service": {"gpu_wait_s": 0.6}, "engines": {"backend": "tensorrt"}})


def test_a_gpu_that_does_not_come_is_an_error_and_never_a_cpu_run(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "GPU_DEVICES", (str(tmp_path / "nvidiactl"),))
    started = time.monotonic()

    with pytest.raises(MienError, match=r"after 0\.6 s there is no NVIDIA GPU; check the driver"):
        wait_for_gpu(GPU, threading.Event())
    assert 0.5 < time.monotonic() - started < 3


def test_a_gpu_that_comes_late_is_waited_for(monkeypatch, tmp_path):
    device = tmp_path / "nvidiactl"
    monkeypatch.setattr(loading, "GPU_DEVICES", (str(device),))
    monkeypatch.setattr(loading, "GPU_LOOK_S", 0.05)
    threading.Timer(0.2, device.touch).start()

    wait_for_gpu(GPU, threading.Event())
    assert device.exists()


def test_without_a_gpu_backend_nothing_is_waited_for(monkeypatch):
    monkeypatch.setattr(loading, "GPU_DEVICES", ())

    wait_for_gpu(Config(), threading.Event())


def test_the_stage_a_thread_is_in_is_known_by_its_stack():
    import sys

    namespace = {}
    source = "import sys\ndef _embed():\n    return sys._getframe()\ndef process():\n    return _embed()\n"
    exec(compile(source, "/x/daemon/pipeline.py", "exec"), namespace)

    assert "embed" == stage_of(namespace["process"]())
    assert "test_the_stage_a_thread_is_in_is_known_by_its_stack" == stage_of(sys._getframe())


def test_an_order_that_fails_fails_for_who_gave_it():
    orders, woken = Orders(), threading.Event()
    results = []

    def give():
        try:
            orders.call(lambda: 1 / 0, woken.set)
        except ZeroDivisionError as error:
            results.append(error)

    giver = threading.Thread(target=give)
    giver.start()
    assert woken.wait(5)
    orders.run()
    giver.join(5)

    assert 1 == len(results)


def test_an_endpoint_that_is_taken_is_refused_in_words(tmp_path, clip):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with DaemonProcess(tmp_path / "first", [camera(clip)]) as first:
        first.until(lambda: first.of("door/faces"))
        publish = {"endpoint": first.endpoint}
        with DaemonProcess(tmp_path / "second", [camera(clip)], publish=publish) as second:
            assert 0 != second.process.wait(30)
            assert "already in use" in second.log()
        since = len(first.events)
        first.until(lambda: first.of("door/faces", since=since))
