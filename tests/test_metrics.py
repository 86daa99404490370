"""What Prometheus sees of a daemon at work, and the dashboard that shows it."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from daemon.config import MetricsConfig
from daemon.metrics import Metrics, Watched, gallery_size, served
from daemon.records import FacesEvent
from daemon.service import Service
from engines.errors import MienError
from tests.clips import grey_levels, write_clip
from tests.test_records import EVENTS
from tests.wire import FakePipeline, config_of, is_state, messages_until, running

DASHBOARD = Path(__file__).parents[1] / "systemd" / "grafana" / "mien.json"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scraped(port):
    """{(sample name, labels as a sorted tuple): value}"""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


def of_camera(samples, name, camera="door"):
    """The sum over all other labels."""
    return sum(
        value
        for (sample, labels), value in samples.items()
        if sample == name and ("camera", camera) in labels
    )


def assert_balanced(samples, camera):
    arrived = of_camera(samples, "mien_frames_in_total", camera)
    processed = of_camera(samples, "mien_frames_processed_total", camera)
    dropped = of_camera(samples, "mien_frames_dropped_total", camera)
    in_flight = of_camera(samples, "mien_frames_in_flight", camera)
    depth = of_camera(samples, "mien_queue_depth", camera)

    assert arrived == processed + dropped + in_flight
    assert depth <= in_flight <= depth + 1


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", grey_levels(30), fps=50)


@contextmanager
def measured(clip, pipeline=None, **more):
    port = free_port()
    cameras = [{"name": name, "source": str(clip), **more} for name in ("door", "yard")]
    config = config_of(*cameras, heartbeat_s=0.1).model_copy(update={"metrics": MetricsConfig(port=port)})
    with running(config, pipeline) as (daemon, socket):
        yield daemon, socket, port


@pytest.mark.parametrize("max_fps", [None, 20])
def test_frames_in_are_those_processed_dropped_and_in_flight_at_every_scrape(clip, max_fps):
    with measured(clip, FakePipeline(delay_s=0.005), loop=True, max_fps=max_fps) as (_, subscriber, port):
        messages_until(subscriber, lambda message: message[0] == "mien/1/yard/faces")
        for _ in range(20):
            samples = scraped(port)
            assert_balanced(samples, "door")
            assert_balanced(samples, "yard")
        first, last = scraped(port), None
        until = time.monotonic() + 5
        while last is None or of_camera(last, "mien_frames_processed_total") < 30:
            assert time.monotonic() < until
            last = scraped(port)

    assert (
        of_camera(last, "mien_frames_processed_total") > of_camera(first, "mien_frames_processed_total") > 0
    )
    assert (of_camera(last, "mien_frames_dropped_total") > 20) == (max_fps is not None)


def test_a_daemon_is_seen_from_outside(clip):
    with measured(clip, loop=True) as (_, subscriber, port):
        messages_until(subscriber, lambda message: message[0] == "mien/1/door/faces")
        messages_until(subscriber, lambda message: message[0] == "mien/1/_daemon/heartbeat")
        samples = scraped(port)

    assert samples["mien_info", (("name", "north"), ("version", "0.1.0"))] == 1
    assert samples["mien_engine", (("backend", "fake"), ("model", "detector"))] == 1
    assert samples["mien_subscribers", ()] == 1
    assert samples["mien_camera_state", (("camera", "door"), ("state", "online"))] == 1
    assert samples["mien_reconnects_total", (("camera", "door"),)] == 0
    assert samples["mien_events_total", (("kind", "heartbeat"),)] >= 1
    faces = of_camera(samples, "mien_faces_total")
    assert 0 < faces <= of_camera(samples, "mien_frames_processed_total") + 1
    assert of_camera(samples, "mien_latency_seconds_count") > 0
    assert samples["process_resident_memory_bytes", ()] > 1e6


def test_metrics_end_with_the_daemon(clip):
    with measured(clip) as (daemon, subscriber, port):
        messages_until(subscriber, is_state("_daemon", "stopping"))
        daemon.thread.join(5)

        with pytest.raises(OSError, match="refused"):
            scraped(port)


def test_stages_are_told_in_seconds():
    metrics = Metrics()
    event = next(event for event in EVENTS if isinstance(event, FacesEvent))
    metrics.saw(event)

    name = "mien_stage_seconds_sum"
    assert metrics.registry.get_sample_value(name, {"stage": "total"}) == pytest.approx(
        event.latency_ms["total"] / 1000
    )


def test_a_port_in_use_is_told_with_what_to_set():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with (
            pytest.raises(MienError, match=rf"127.0.0.1:{port}: already in use; .*metrics.port"),
            served(Metrics(), MetricsConfig(port=port)),
        ):
            pass


def test_a_daemon_whose_metrics_port_is_taken_does_not_start(clip):
    with socket.create_server(("127.0.0.1", 0)) as other:
        metrics = MetricsConfig(port=other.getsockname()[1])
        config = config_of({"name": "door", "source": str(clip)}).model_copy(update={"metrics": metrics})

        with capture_logs(), pytest.raises(MienError, match="already in use"):
            Service(config, lambda _: pytest.fail("loaded")).run()


def test_an_address_of_another_machine_is_told():
    with (
        pytest.raises(MienError, match=r"192.0.2.1:9999: cannot be bound .*metrics.host"),
        served(Metrics(), MetricsConfig(host="192.0.2.1", port=9999)),
    ):
        pass


def test_port_0_is_off():
    with served(Metrics(), MetricsConfig(port=0)) as address:
        assert address is None


def test_by_default_only_this_machine_can_ask():
    assert MetricsConfig().host == "127.0.0.1"


def test_the_gallery_is_counted_also_where_there_is_none(tmp_path):
    broken = tmp_path / "broken.sqlite"
    broken.write_text("no database" * 100)

    assert gallery_size(tmp_path / "none.sqlite") == (0, 0)
    assert not (tmp_path / "none.sqlite").exists()
    assert gallery_size(broken) is None


def expressions(node):
    """Every query of the dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str) and value != "prometheus":
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for each in node:
            yield from expressions(each)


def test_every_metric_of_the_dashboard_exists_with_its_labels():
    metrics = Metrics()
    metrics.watch(Watched(_OneCamera(), lambda: 0, {"detector": "fake"}, lambda: (0, 0)))
    for event in EVENTS:
        metrics.saw(event)
    metrics.frame_done("door", time.monotonic_ns())
    labels = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)

    queries = list(expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))))

    assert len(queries) > 20
    for query in queries:
        for name, asked in re.findall(r"\b((?:mien|process)_[a-z_]+)(?:\{(.*?)\})?", query):
            assert name in labels, f"{query}: no metric is named {name}"
            # Prometheus itself adds `job` and `instance`.
            unknown = set(re.findall(r"(\w+)=", asked)) - labels[name] - {"job", "instance"}
            assert unknown == set(), query
        for grouped in re.findall(r"by \((.*?)\)", query):
            name = re.search(r"(?:mien|process)_[a-z_]+", query).group()
            assert {label.strip() for label in grouped.split(",")} <= labels[name], query


class _OneCamera:
    class State:
        state = "online"

    class Counts:
        num_in, waiting, num_connections = 3, 1, 2
        dropped = {"superseded": 1}  # noqa: RUF012

    def states(self):
        return {"door": self.State()}

    def counts(self, name):
        return self.Counts()


def test_frames_that_fail_are_dropped_and_a_removed_camera_is_forgotten():
    metrics = Metrics()
    metrics.watch(Watched(_OneCamera(), lambda: 0, {}, lambda: None))
    metrics.frame_failed("door")

    def value(name, **labels):
        return metrics.registry.get_sample_value(name, {"camera": "door", **labels})

    assert value("mien_frames_dropped_total", reason="failed") == 1
    assert value("mien_frames_in_flight") == 1
    metrics.keep_only(["yard"])
    assert value("mien_frames_dropped_total", reason="failed") is None
    assert value("mien_frames_in_flight") == 2
    assert value("mien_reconnects_total") == 1
