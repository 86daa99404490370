import numpy as np
import pytest

from daemon.appearance import appearances
from daemon.config import TrackingConfig
from daemon.tracker import Tracker
from engines.stages import Detections, detect
from tests.fakes import ANN, BOB, FakeDetector, walk

LOOKS = np.eye(4, dtype=np.float32)
ALIKE = np.ones((4, 1), np.float32)


def box(x, y=100.0, side=60.0):
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


class Film:
    """A tracker fed with boxes, 25 frames a second."""

    def __init__(self, **settings):
        self.tracker = Tracker(TrackingConfig(**settings), start_score=0.5)
        self.index = -1

    def show(self, *boxes, looks=None, scores=None, wait_frames=1):
        self.index += wait_frames
        rows = np.array(boxes, np.float32).reshape(-1, 4)
        looks = ALIKE[: len(rows)] if looks is None else looks
        scores = np.full(len(rows), 0.9, np.float32) if scores is None else np.array(scores, np.float32)
        self.tracked = self.tracker.update(Detections(rows, scores), looks, round(self.index * 4e7))
        return [track and track.number for track in self.tracked.tracks]


def test_a_face_that_moves_on_keeps_its_number():
    film = Film()

    numbers = [film.show(box(50 + 6 * i, side=60 + i)) for i in range(40)]

    assert numbers == [[None]] + [[1]] * 39


def test_a_face_seen_once_is_no_track():
    film = Film(min_hits=3)
    film.show(box(50))
    film.show()

    assert film.show(box(50)) == [None]


def test_a_short_miss_costs_nothing():
    film = Film()
    for i in range(10):
        film.show(box(50 + 8 * i))
    for _ in range(12):
        assert film.show() == []

    assert film.show(box(50 + 8 * 18)) == [1]


def test_who_is_gone_for_longer_is_somebody_new():
    film = Film(max_lost_s=1.0)
    film.show(box(50)), film.show(box(50))
    assert film.tracked.ended == ()
    film.show(wait_frames=20)
    film.show(wait_frames=20)

    assert [track.number for track in film.tracked.ended] == [1]
    film.show(box(50))
    assert film.show(box(50)) == [2]


def test_a_gap_between_two_frames_is_no_absence():
    film = Film(max_lost_s=1.0)
    film.show(box(50)), film.show(box(50))

    assert film.show(box(52), wait_frames=50) == [1]


def test_a_faint_face_continues_a_track_but_begins_none():
    film = Film()
    film.show(box(50)), film.show(box(50))

    assert film.show(box(50), box(300), scores=[0.4, 0.4]) == [1, None]
    assert film.show(box(50), box(300), scores=[0.4, 0.4]) == [1, None]


def test_one_face_found_twice_is_one_track():
    film = Film()
    film.show(box(50)), film.show(box(50))
    for _ in range(3):
        numbers = film.show(box(50), box(52, 104, 40))

    assert numbers == [1, None]


def test_order_of_detections_does_not_matter():
    film = Film()
    film.show(box(50), box(300)), film.show(box(50), box(300))

    assert film.show(box(302), box(52)) == [2, 1]


def crossing(hidden, jitter=0.0, looks=LOOKS, reach=100.0):
    """Where the left one and the right one end up; the right one is not found while they overlap."""
    random = np.random.default_rng(3)
    film = Film()
    for i in range(51):
        left, right = 200 - reach + i * reach / 25, 200 + reach - i * reach / 25
        shake = random.normal(0, jitter, (2, 4))
        boxes = np.array([box(left), box(right, side=56)]) + shake
        shown = [0] if hidden and abs(left - right) < 40 else [0, 1]
        numbers = film.show(*boxes[shown], looks=looks[shown])
        if i == 1:
            before = numbers
    return before, numbers


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 1.5])
@pytest.mark.parametrize("looks", [LOOKS, ALIKE], ids=["apart", "alike"])
def test_two_who_cross_stay_two(hidden, jitter, looks):
    before, after = crossing(hidden, jitter, looks)

    assert [1, 2] == before == after


def turning_back(looks):
    """Two meet, one goes behind the other, and both return to where they came from."""
    film = Film()
    for i in range(61):
        step = min(i, 60 - i)
        boxes = np.array([box(100 + 3.2 * step), box(300 - 3.2 * step, side=56)])
        shown = [0] if 26 <= i <= 34 else [0, 1]
        numbers = film.show(*boxes[shown], looks=looks[shown])
    return numbers


@pytest.mark.parametrize("fps", [10, 20, 25])
def test_who_goes_behind_another_is_seen_in_part_and_comes_out_the_same(fps):
    tracker, seen = Tracker(TrackingConfig(), start_score=0.5), {"front": set(), "behind": set()}
    for i in range(3 * fps):
        at = i / fps
        front, behind = np.array(box(170 + 60 * at, side=130)), np.array(box(420 - 110 * at, side=80))
        visible = behind.copy()
        if behind[0] < front[2] < behind[2]:
            visible[0] = front[2]
        elif behind[0] < front[0] < behind[2]:
            visible[2] = front[0]
        inside = front[0] <= behind[0] and behind[2] <= front[2]
        shown = ["front", "behind"] if not inside and visible[2] - visible[0] > 25 else ["front"]
        boxes = np.array([front, visible], np.float32)[: len(shown)]
        found = Detections(boxes, np.full(len(shown), 0.9, np.float32))
        tracked = tracker.update(found, ALIKE[: len(shown)], round(at * 1e9))
        for who, track in zip(shown, tracked.tracks, strict=True):
            if track:
                seen[who].add(track.number)

    assert {"front": {1}, "behind": {2}} == seen


def test_two_who_meet_and_turn_back_are_told_apart_by_their_looks():
    assert turning_back(LOOKS) == [1, 2]


def test_painted_people_who_cross_in_pictures_stay_two():
    tracker, engine = Tracker(TrackingConfig(), 0.5), FakeDetector()
    seen = {}
    for frame in walk([(ANN, 10, 60), (ANN, 240, 60)], [(BOB, 240, 70), (BOB, 10, 70)], num=60):
        (found,) = detect(engine, [frame.image])
        tracked = tracker.update(found, appearances(frame.image, found.boxes_xyxy), frame.time_ns)
        if 10 < frame.index < 50:  # near each other, or one before the other
            continue
        for box_xyxy, track in zip(found.boxes_xyxy, tracked.tracks, strict=True):
            colour = int(frame.image[int(box_xyxy[1]) + 5, int(box_xyxy[0]) + 5].argmax())
            if track:
                seen.setdefault(colour, set()).add(track.number)

    assert len(seen) == 2
    assert {1, 2} == set.union(*seen.values())
    assert all(len(numbers) == 1 for numbers in seen.values())


def test_numbers_are_never_given_twice():
    film = Film()
    film.show(box(50)), film.show(box(50))
    assert [track.number for track in film.tracker.close()] == [1]
    film.show(box(50))

    assert film.show(box(50)) == [2]


def test_a_crowd_is_followed_one_by_one():
    random = np.random.default_rng(1)
    places = np.stack(np.meshgrid(np.arange(6) * 90 + 50, np.arange(5) * 90 + 50), -1).reshape(-1, 2)
    speeds = random.normal(0, 0.3, places.shape)
    film, first = Film(), []
    for i in range(50):
        at = places + speeds * i + random.normal(0, 1, places.shape)
        numbers = film.show(*[box(x, y) for x, y in at], looks=np.ones((30, 1), np.float32))
        first = numbers if i == 1 else first

    assert first == numbers
    assert list(range(1, 31)) == sorted(numbers)
