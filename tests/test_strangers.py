"""Who comes again and is not enrolled."""

import json
from datetime import UTC, datetime, timedelta
from itertools import combinations

import numpy as np
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.gallery import Gallery
from daemon.records import Face, FacesEvent, FrameRecord, Identity, Quality, encode
from daemon.strangers import grouped, strangers
from engines.errors import MienError, UsageError

START = datetime(2026, 11, 1, 8, tzinfo=UTC)
SIZE = 192


def unit(vector):
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def person(seed):
    return unit(np.random.default_rng(seed).normal(size=SIZE))


def like(whom, seed, off=0.05):
    return unit(whom + np.random.default_rng(seed).normal(size=SIZE).astype(np.float32) * off)


def event(camera, track, vector, *, minute=0, name=None, epoch=1):
    identity = Identity(
        name=name, status="known" if name else "unknown", similarity=None, margin=None, threshold=0.5
    )
    extra = {} if vector is None else {"embedding": tuple(vector.tolist())}
    face = Face(
        track=track,
        box_xyxy=(1, 1, 50, 60),
        score=0.9,
        landmarks=((10, 20), (30, 20), (20, 30), (12, 45), (28, 45)),
        quality=Quality(usable=True, reasons=(), interocular_px=20.0),
        identity=identity,
        **extra,
    )
    at = START + timedelta(minutes=minute)
    frame = FrameRecord(index=minute, width=640, height=360, captured_at=at, clock="arrival")
    return FacesEvent(instance="hall", epoch=epoch, camera=camera, frame=frame, faces=(face,))


@pytest.fixture
def recorded(tmp_path):
    def written(*events, name="events.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"".join(encode(each) + b"\n" for each in events))
        return path

    return written


def test_one_person_on_two_cameras_and_days_is_one_stranger(recorded):
    postman, neighbour = person(1), person(2)
    monday = recorded(
        event("door", 1, like(postman, 11), minute=0),
        event("yard", 1, like(postman, 12), minute=3),
        event("door", 2, like(neighbour, 13), minute=9),
    )
    tuesday = recorded(event("door", 1, like(postman, 14), minute=1440, epoch=2), name="tuesday.jsonl")

    often, once = strangers([monday, tuesday], 0.5)

    assert (3, ("door", "yard")) == (len(often.tracks), often.cameras)
    assert (1, ("door",), START + timedelta(minutes=9)) == (
        len(once.tracks),
        once.cameras,
        once.tracks[0].first,
    )


def test_tracks_of_two_replays_are_not_one_though_they_have_one_number(recorded):
    replays = [recorded(event("door", 1, person(seed), epoch=0), name=f"{seed}.jsonl") for seed in (1, 2)]
    named = recorded(event("door", 1, person(3), name="Ann", epoch=0), name="named.jsonl")

    found = strangers([*replays, named], 0.5)

    assert [1, 1] == [len(each.tracks) for each in found]
    looks = [each.tracks[0].embedding for each in found]
    np.testing.assert_allclose(looks, [person(1), person(2)], atol=1e-6)


def test_a_daemons_track_goes_on_in_the_next_file(recorded):
    files = [recorded(event("door", 1, person(1), minute=n), name=f"{n}.jsonl") for n in (0, 1)]

    ((seen,),) = (found.tracks for found in strangers(files, 0.5))

    assert 2 == seen.frames


def test_who_got_a_name_in_the_end_is_no_stranger(recorded):
    path = recorded(
        event("door", 1, person(1), minute=0),
        event("door", 1, person(1), minute=1, name="Ann"),
        event("door", 2, person(2), minute=2),
    )

    (only,) = strangers([path], 0.5)

    assert [2] == [seen.track for seen in only.tracks]


def test_a_track_speaks_with_its_last_embedding(recorded):
    path = recorded(event("door", 1, person(1), minute=0), event("door", 1, person(2), minute=1))

    ((seen,),) = (found.tracks for found in strangers([path], 0.5))

    np.testing.assert_allclose(seen.embedding, person(2), atol=1e-6)
    assert (2, START, START + timedelta(minutes=1)) == (seen.frames, seen.first, seen.last)


def test_a_track_is_the_mean_of_its_looks_each_counted_once(recorded):
    one, other = like(person(1), 11), like(person(1), 12)
    path = recorded(
        *(event("door", 1, look, minute=minute) for minute, look in enumerate((one, one, one, other)))
    )

    ((seen,),) = (found.tracks for found in strangers([path], 0.5))

    mean = one + other
    np.testing.assert_allclose(seen.embedding, mean / np.linalg.norm(mean), atol=1e-5)


def slowly_grouped(rows, threshold):
    """Average linkage as it is defined: the two groups most alike on average become one, again and again."""
    groups = [[i] for i in range(len(rows))]
    alike = rows.astype(np.float64) @ rows.T.astype(np.float64)
    while len(groups) > 1:
        best, a, b = max((alike[np.ix_(a, b)].mean(), a, b) for a, b in combinations(groups, 2))
        if best < threshold:
            break
        groups = [group for group in groups if group not in (a, b)] + [a + b]
    return {frozenset(group) for group in groups}


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_average_linkage(seed):
    rng = np.random.default_rng(seed)
    people = [person(seed * 100 + i) for i in range(int(rng.integers(1, 6)))]
    rows = np.stack(
        [
            like(people[rng.integers(len(people))], seed * 1000 + i, off=float(rng.uniform(0.02, 0.12)))
            for i in range(int(rng.integers(1, 25)))
        ]
    )

    found = grouped(rows, 0.4)

    groups = {
        frozenset(i for i, label in enumerate(found) if label == group) for group in range(max(found) + 1)
    }
    assert slowly_grouped(rows, 0.4) == groups


def test_a_stranger_is_enrolled_by_number_and_known_from_then_on(recorded, tmp_path):
    path = recorded(event("door", 1, person(1)), event("yard", 7, like(person(1), 5)))
    people = tmp_path / "people.sqlite"

    shown = CliRunner().invoke(app, ["gallery", "strangers", str(path)])
    done = CliRunner().invoke(
        app, ["gallery", "strangers", str(path), "--enroll", "1", "Postman", "--gallery", str(people)]
    )

    assert shown.exit_code == 0 and "door: 1; yard: 7" in shown.output
    assert done.exit_code == 0 and "Postman: 2 new" in done.output
    with Gallery(people) as gallery:
        looks = gallery.looks("Postman")
    np.testing.assert_allclose(looks[0].embedding, person(1), atol=1e-6)
    assert "door, track 1" in looks[0].image


def test_events_of_another_embedder_enrol_nobody(recorded, tmp_path):
    path, people = recorded(event("door", 1, person(1)[:128])), tmp_path / "people.sqlite"
    command = ["gallery", "strangers", str(path), "--enroll", "1", "Postman", "--gallery", str(people)]

    done = CliRunner().invoke(app, command)

    assert isinstance(done.exception, UsageError)
    assert "an embedding of 128 numbers, and embedder@" in str(done.exception)
    assert not people.exists()


def test_events_without_embeddings_are_refused_with_what_to_do(recorded):
    with pytest.raises(MienError, match=r"no embeddings; record them with `mien replay --embeddings`"):
        strangers([recorded(event("door", 1, None))], 0.5)


def test_what_is_no_event_is_told_with_its_line(recorded):
    path = recorded(event("door", 1, person(1)))
    path.write_bytes(path.read_bytes() + b"{}\n")

    with pytest.raises(MienError, match=r"events\.jsonl, line 2: is no event"):
        strangers([path], 0.5)


def test_nobody_is_nobody(recorded):
    assert [] == strangers([recorded()], 0.5)
    shown = CliRunner().invoke(app, ["gallery", "strangers", str(recorded())])
    assert "nobody unknown was seen" in shown.output
    result = CliRunner().invoke(app, ["gallery", "strangers", str(recorded()), "--enroll", "1", "Ann"])

    assert isinstance(result.exception, UsageError) or result.exit_code == 2


def test_with_an_embedder_of_ones_own_strangers_are_enrolled_as_its_looks(recorded, tmp_path):
    (tmp_path / "own.onnx").write_bytes(b"its weights")
    own = {
        "onnx": "own.onnx",
        "task": "embedder",
        "decoding": "embedding",
        "threshold": 0.3,
        "input_size": [112, 112],
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    (tmp_path / "config.yaml").write_text("engines: {embedder: own.json}\ngallery: {path: people.sqlite}\n")
    path, config = recorded(event("door", 1, person(1))), str(tmp_path / "config.yaml")

    done = CliRunner().invoke(
        app, ["gallery", "strangers", str(path), "--enroll", "1", "Ann", "--config", config]
    )

    assert done.exit_code == 0, done.output
    with Gallery(tmp_path / "people.sqlite") as gallery:
        assert gallery.looks("Ann")[0].model.startswith("own@")
