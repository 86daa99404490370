from __future__ import annotations

import json
import time
from collections import Counter

import pytest
import structlog

from daemon.config import LogConfig
from daemon.telemetry import Pulse, configure_logging


@pytest.fixture(autouse=True)
def reset_structlog():
    yield
    structlog.reset_defaults()


def logged(capsys, config, write):
    configure_logging(config)
    write(structlog.get_logger())
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_json_logs_are_one_object_a_line_on_standard_error(capsys):
    text = logged(
        capsys, LogConfig(format="json"), lambda log: log.info("engine_loaded", model="detector", ms=3)
    )

    entry = json.loads(text)
    assert (
        entry["event"],
        entry["model"],
        entry["ms"],
        entry["level"],
    ) == ("engine_loaded", "detector", 3, "info")
    assert entry["timestamp"].endswith("Z")


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_log_tells_a_password(capsys, format):
    url = "rtsp://me:secret@host/1"

    def write(log):
        log.info(f"opening {url}", source=url, sources=[url], by_name={"door": url})
        try:
            raise OSError(f"cannot reach {url}")
        except OSError as error:
            log.warning("lost", reason=str(error))

    text = logged(capsys, LogConfig(format=format), write)

    assert "host/1" in text
    assert "secret" not in text


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_traceback_tells_no_password(capsys, format):
    def write(log):
        location = f"rtsp://me:{'secret' * 20}@host/1"  # a traceback with variables would cut it short
        try:
            raise OSError(f"cannot reach {location}")
        except OSError:
            log.exception("lost")

    text = logged(capsys, LogConfig(format=format), write)

    assert "OSError" in text
    assert "secret" not in text


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("text", ["a\nready", "\x1b[2J\x1b[31m", "../../etc", "😀 \"'", "a\rb"])
def test_no_text_of_others_makes_a_line_or_moves_the_cursor(capsys, format, text):
    told = logged(
        capsys, LogConfig(format=format), lambda log: log.info("enrolled", person=text, reason=text)
    )

    assert told.count("\n") == 1
    assert told.rstrip("\n").isprintable()
    if format == "json":
        assert text == json.loads(told)["person"]


def test_auto_is_json_where_nobody_looks_on(capsys):
    assert json.loads(logged(capsys, LogConfig(), lambda log: log.info("ready")))["event"] == "ready"


def test_what_is_below_the_level_is_not_written(capsys):
    assert logged(capsys, LogConfig(level="warning"), lambda log: log.info("ready")) == ""


def heartbeat(pulse):
    return pulse.heartbeat(frames_in=3, dropped=Counter(superseded=1), queue_depth={}, engines={})


def test_heartbeat_tells_the_latencies_since_the_one_before():
    pulse = Pulse()
    for age_ms in (10, 20, 1000):
        pulse.frame_done(time.monotonic_ns() - age_ms * 1_000_000)

    first, second = heartbeat(pulse), heartbeat(pulse)

    assert 20 <= first.latency_ms.p50 < 30
    assert 900 < first.latency_ms.p99 < 1100
    assert second.latency_ms is None
    assert second.frames_processed == 3


def test_frames_without_an_arrival_have_no_latency():
    pulse = Pulse()
    pulse.frame_done(None)

    assert heartbeat(pulse).latency_ms is None
