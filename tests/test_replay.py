import json
from functools import partial

import av
import cv2
import jsonschema
import numpy as np
import pytest
import zmq
from rich.console import Console
from typer.testing import CliRunner

from daemon import loading
from daemon.cli import app
from daemon.config import Config
from daemon.gallery import Gallery
from daemon.pipeline import FacePipeline
from daemon.pipelines import LoadedPipeline
from daemon.records import event_schemas
from daemon.replay import ReplayResult, replay_cameras
from daemon.replay_job import ReplayJob, parsed_start
from daemon.replay_summary import speed_line, summary_table
from daemon.settings import camera_template, effective
from daemon.sources import read_source
from engines.errors import MienError, UsageError
from tests.clips import write_clip
from tests.fakes import ANN, BOB, fake_engines, scene, walk
from tests.test_pipeline import People

STAY = [(ANN, 20, 60), (ANN, 60, 60)]
OTHER = [(BOB, 200, 60), (BOB, 180, 60)]


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "two people.mp4", [frame.image for frame in walk(STAY, OTHER, num=30)])


def load(config, every_frame=False):
    return LoadedPipeline(FacePipeline(fake_engines(), config, People(Ann=ANN), every_frame=every_frame), {})


def quiet():
    return Console(quiet=True)


def job_of(*videos, **options):
    cameras = replay_cameras(videos, camera_template(speed="max"))
    return ReplayJob(Config(cameras=tuple(cameras)), **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_is_told_of_in_order_with_its_own_time(clip, tmp_path):
    (result,) = job_of(clip, out=tmp_path / "e.jsonl").run(load, quiet())

    faces = [event for event in lines(tmp_path / "e.jsonl") if event["schema"] == "mien.faces/1"]
    assert (result.frames, result.frames_with_faces) == (30, 29)
    assert list(range(1, 30)) == [event["frame"]["index"] for event in faces]
    assert faces[9]["frame"]["captured_at"] == "1970-01-01T00:00:00.400000Z"
    assert {"two-people"} == {event["camera"] for event in faces}
    assert [(track.track, track.identity.name) for track in result.tracks] == [(1, "Ann"), (2, None)]


def test_replaying_twice_gives_the_same_bytes(clip, tmp_path):
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for out in outs:
        job_of(clip, out=out).run(load, quiet())

    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_lines_fit_the_shipped_schemas_and_are_numbered_without_gaps(clip, tmp_path):
    job_of(clip, out=tmp_path / "e.jsonl").run(load, quiet())
    schemas, seqs = event_schemas(), {}

    for event in lines(tmp_path / "e.jsonl"):
        kind = event["schema"].removeprefix("mien.").removesuffix("/1")
        jsonschema.validate(event, schemas[kind])
        seqs.setdefault(kind, []).append(event["seq"])
        assert (event["instance"], event["epoch"]) == ("replay", 0)
        assert event.keys().isdisjoint({"published_at", "latency_ms"})
    assert {"faces", "track", "status"} == seqs.keys()
    assert all(list(range(len(numbers))) == numbers for numbers in seqs.values())


def test_the_file_tells_where_it_begins_and_ends(clip, tmp_path):
    job_of(clip, out=tmp_path / "e.jsonl", start=parsed_start("2026-05-01T10:00:00+02:00")).run(load, quiet())

    events = lines(tmp_path / "e.jsonl")
    assert [(event["state"], event["since"]) for event in (events[0], events[-1])] == [
        ("online", "2026-05-01T08:00:00Z"),
        ("ended", "2026-05-01T08:00:01.160000Z"),
    ]
    assert [event["phase"] for event in events[-3:-1]] == ["left", "left"]


def test_the_annotated_video_shows_every_frame_with_its_boxes(clip, tmp_path):
    job_of(clip, annotated=tmp_path / "a.mp4").run(load, quiet())

    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="bgr24") for frame in video.decode(stream)]
        codec, rate = stream.codec_context.name, stream.average_rate
    plain = scene((ANN, 60, 60), (BOB, 180, 60))
    changed = np.abs(frames[-1].astype(int) - plain).max(2) > 60
    assert (len(frames), codec, rate) == (30, "h264", 25)
    assert changed[60:124, 60:62].mean() > 0.5  # the left edge of Ann's box
    assert changed[150:].mean() < 0.01


def test_several_videos_are_cameras_of_their_own_names(clip, tmp_path):
    other = tmp_path / "in" / "two people.mp4"
    other.parent.mkdir()
    other.write_bytes(clip.read_bytes())

    results = job_of(clip, other, out=tmp_path / "e.jsonl", annotated=tmp_path / "seen").run(load, quiet())

    assert [result.camera for result in results] == ["two-people", "two-people-2"]
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "two-people-2.mp4",
        "two-people.mp4",
    ]


def test_a_folder_of_images_is_replayed_too(tmp_path):
    for index in range(4):
        (tmp_path / "stills").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "stills" / f"{index}.png"), scene((ANN, 40, 60)))

    (result,) = job_of(tmp_path / "stills").run(load, quiet())

    assert (result.frames, len(result.tracks)) == (4, 1)


def test_one_bad_video_is_told_of_and_the_others_go_on(clip, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 100)

    results = job_of(bad, clip, out=tmp_path / "e.jsonl").run(load, Console(stderr=True))

    assert [result.camera for result in results] == ["two-people"]
    assert "bad.mp4: not a video" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def without_pictures(tmp_path):
    """A video whose upload was cut off after its index."""
    path = write_clip(tmp_path / "cut.mp4", [scene((ANN, 20, 60))] * 5, movflags="faststart")
    path.write_bytes(path.read_bytes().partition(b"mdat")[0] + b"mdat")
    return path


def test_a_video_that_fails_on_the_way_is_told_of_and_the_others_go_on(
    clip, tmp_path, without_pictures, capsys
):
    other = tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes())
    job = job_of(clip, without_pictures, other, out=tmp_path / "e.jsonl", annotated=tmp_path / "seen")

    results = job.run(load, Console(stderr=True, width=500))

    assert [result.camera for result in results] == ["two-people", "other"]
    assert f"error: {without_pictures}: not one frame could be read" in capsys.readouterr().err
    assert {"two-people", "other"} == {event["camera"] for event in lines(tmp_path / "e.jsonl")}
    assert {"two-people.mp4", "other.mp4"} == {path.name for path in (tmp_path / "seen").iterdir()}


def test_where_no_video_gives_a_frame_the_replay_fails_and_writes_nothing(tmp_path, without_pictures):
    with pytest.raises(MienError, match=r"cut\.mp4: not one frame could be read"):
        job_of(without_pictures, out=tmp_path / "e.jsonl").run(load, quiet())

    assert [without_pictures] == list(tmp_path.iterdir())


def test_events_of_a_video_that_breaks_off_end_with_the_reason(clip, tmp_path, monkeypatch):
    def breaking_off(camera, **options):
        for number, each in enumerate(read_source(camera, **options)):
            if camera.name == "other" and number == 20:
                raise MienError("oth\udce9r.mp4: input/output error; check the source")
            yield each

    monkeypatch.setattr("daemon.replay.read_source", breaking_off)
    other = tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes())

    (result,) = job_of(other, clip, out=tmp_path / "e.jsonl").run(load, quiet())

    last = [event for event in lines(tmp_path / "e.jsonl") if event["camera"] == "other"][-3:]
    assert "two-people" == result.camera
    assert ["left", "left"] == [event["phase"] for event in last[:2]]
    assert ("ended", "oth\ufffdr.mp4: input/output error; check the source") == (
        last[2]["state"],
        last[2]["reason"],
    )


def test_events_that_cannot_be_written_end_the_replay_at_once(clip, tmp_path, monkeypatch):
    def refused(self, event):
        raise MienError("e.jsonl: cannot be written to its end (No space left on device)")

    monkeypatch.setattr("daemon.jsonl.JsonLines.publish", refused)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(MienError, match="No space left"):
        job_of(clip, clip, out=tmp_path / "e.jsonl").run(load, quiet())

    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"words" * 300])
def test_what_is_no_video_leaves_nothing_behind(tmp_path, content):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(MienError, match=r"bad\.mp4"):
        job_of(path, out=tmp_path / "e.jsonl", annotated=tmp_path / "a.mp4").run(load, quiet())

    assert before == sorted(tmp_path.iterdir())


def test_a_failure_on_the_way_leaves_nothing_half_written(clip, tmp_path):
    class Broken:
        def process(self, frames):
            raise ZeroDivisionError

        def close_camera(self, camera):
            return []

    before = sorted(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        job = job_of(clip, out=tmp_path / "e.jsonl", annotated=tmp_path / "a.mp4")
        job.run(lambda _: LoadedPipeline(Broken(), {}), quiet())

    assert before == sorted(tmp_path.iterdir())


def test_a_live_source_is_not_replayed():
    with pytest.raises(MienError, match=r"rtsp://\S*camera/stream: is live") as failure:
        job_of("rtsp://user:secret@camera/stream").run(load, quiet())
    assert "secret" not in str(failure.value)


def test_published_events_carry_live_fields(clip, tmp_path):
    job = job_of(clip, publish=True)
    job = ReplayJob(
        job.config.model_copy(
            update={"publish": job.config.publish.model_copy(update={"endpoint": f"ipc://{tmp_path}/events"})}
        ),
        publish=True,
    )
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger, socket.rcvtimeo = 0, 5000
        socket.subscribe("mien/1/two-people/faces")
        socket.connect(f"ipc://{tmp_path}/events")
        job.run(partial(slow_load, socket), quiet())
        event = json.loads(socket.recv_multipart()[1])

    jsonschema.validate(event, event_schemas()["faces"])
    assert {"published_at", "latency_ms"} < event.keys()
    assert event["epoch"] > 0 and event["latency_ms"]["total"] > 0


def slow_load(socket, config):
    """Gives the subscriber time to find the publisher before the first frame."""
    pipeline = load(config).pipeline
    first = [True]

    class Waiting:
        def process(self, frames):
            if first and not first.clear():
                socket.poll(300)
            return pipeline.process(frames)

        close_camera = staticmethod(pipeline.close_camera)

    return LoadedPipeline(Waiting(), {})


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z"])
def test_a_start_time_must_be_one(text):
    with pytest.raises(UsageError, match="not a time"):
        parsed_start(text)


def test_a_wrong_option_names_itself_and_the_remedy():
    with pytest.raises(UsageError, match=r"--detector-size 100: must be a multiple of 32, such as 96"):
        camera_template(detector_size=(100, 64))
    with pytest.raises(UsageError, match="--backend 'cuda'"):
        effective(None, {"engines": {"backend": "cuda"}})


def test_the_summary_says_who_was_seen_from_when_to_when(clip, capsys):
    (result,) = job_of(clip).run(load, quiet())

    Console(width=100).print(summary_table(result, parsed_start(None)))
    words = capsys.readouterr().out.splitlines()

    assert words[2].split() == ["1", "Ann", "0.96", "0:00.0", "0:01.2", "29", "31", "female", "happiness"]
    assert words[3].split()[:2] == ["2", "unknown"]
    assert speed_line(ReplayResult("x", 10, 4, 2.0)) == "x: 10 frames, 4 with a face, in 2.0 s (5.0 frames/s)"


@pytest.mark.parametrize("name", ["Ann [/]", "Ann [staff]", "Ann :smile:"])
def test_the_summary_shows_names_as_they_are(clip, name, capsys):
    people = People(**{name: ANN})
    named = lambda config: LoadedPipeline(FacePipeline(fake_engines(), config, people), {})  # noqa: E731
    (result,) = job_of(clip).run(named, quiet())

    Console(width=100).print(summary_table(result, parsed_start(None)))

    assert f" {name} " in capsys.readouterr().out


@pytest.fixture
def fakes_in_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_face_engines", lambda **_: fake_engines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_the_command_writes_what_it_says(clip, tmp_path, fakes_in_the_command):
    result = CliRunner().invoke(app, ["replay", str(clip), "--out", "o/e.jsonl", "--annotate", "o/a.mp4"])

    assert result.exit_code == 0, result.output
    assert "events: o/e.jsonl" in result.output and "annotated video: o/a.mp4" in result.output
    assert {"e.jsonl", "a.mp4"} == {path.name for path in (tmp_path / "o").iterdir()}


def test_the_exit_status_tells_that_one_video_failed(clip, without_pictures, fakes_in_the_command):
    result = CliRunner().invoke(app, ["replay", str(without_pictures), str(clip)])

    assert result.exit_code == 1
    assert "cut.mp4: not one frame" in " ".join(result.stderr.split()).replace("- ", "-")
    assert "two-people: 30 frames" in result.output


def test_a_gallery_that_is_no_sqlite_ends_the_command_in_words(clip, tmp_path, fakes_in_the_command):
    (tmp_path / "g.sqlite").write_bytes(b"not a database, however long it may be" * 50)

    result = CliRunner().invoke(app, ["replay", str(clip), "--gallery", "g.sqlite"])

    assert isinstance(result.exception, MienError)
    assert "g.sqlite: not a gallery" in str(result.exception)


def test_a_gallery_of_another_embedder_ends_the_command_in_words(clip, tmp_path, fakes_in_the_command):
    from tests.test_gallery import look

    with Gallery(tmp_path / "g.sqlite") as gallery:
        gallery.enrol("Ann", [look(1, 0, model="other@1")])

    result = CliRunner().invoke(app, ["replay", str(clip), "--gallery", "g.sqlite"])

    assert "enrol them again" in str(result.exception)
