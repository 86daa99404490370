import numpy as np
import pytest

from daemon.config import IdentityConfig
from daemon.identity import IdentityVote, Match, judged, match, without_doubles
from daemon.looks import EMPTY_SNAPSHOT, GallerySnapshot
from daemon.records import Identity

ANN, BOB, CYD = np.eye(4, dtype=np.float32)[:3]
PEOPLE = GallerySnapshot(("Ann", "Bob"), np.stack((ANN, BOB)), np.array([0, 1]))
SETTINGS = IdentityConfig(min_votes=3, max_votes=10, min_margin=0.05)


def near(vector, similarity, seed=0):
    """A unit vector of that cosine to `vector`, and orthogonal to the rest of the people."""
    return np.array(vector * similarity + np.eye(4, dtype=np.float32)[3] * np.sqrt(1 - similarity**2))


def vote(*looks, weights=None, threshold=0.4):
    cast = IdentityVote(SETTINGS, threshold)
    for look, weight in zip(looks, weights or [1.0] * len(looks), strict=True):
        cast.add(look.astype(np.float32), weight)
        cast.decide(PEOPLE)
    return cast


def test_a_match_is_the_nearest_person_and_the_lead_over_the_second():
    found = match(PEOPLE, np.array([0.8, 0.6, 0, 0], np.float32))

    assert found.name == "Ann"
    assert pytest.approx((found.similarity, found.margin)) == (0.8, 0.2)


def test_nobody_enrolled_matches_nobody():
    assert Match(None, None, None) == match(EMPTY_SNAPSHOT, ANN)


def test_a_single_person_has_no_lead_and_needs_none():
    found = match(GallerySnapshot(("Ann",), ANN[None], np.array([0])), ANN)

    assert None is found.margin
    assert judged(found, 0.4, 0.05).status == "known"


@pytest.mark.parametrize(
    ("similarity", "margin", "status"),
    [(0.5, 0.1, "known"), (0.39, 0.3, "unknown"), (0.5, 0.02, "unknown")],
)
def test_known_takes_the_threshold_and_the_lead(similarity, margin, status):
    identity = judged(Match("Ann", similarity, margin), 0.4, 0.05)

    assert (status, "Ann" if status == "known" else None) == (identity.status, identity.name)
    assert (similarity, margin, 0.4) == (identity.similarity, identity.margin, identity.threshold)


def test_a_track_is_undecided_until_it_was_looked_at_often_enough():
    statuses = [vote(*[ANN] * number).decide(PEOPLE).status for number in (0, 2, 3)]

    assert statuses == ["undecided", "undecided", "known"]


def test_a_stranger_is_unknown_and_not_the_nearest():
    identity = vote(*[near(ANN, 0.2)] * 4).decide(PEOPLE)

    assert (identity.status, identity.name, identity.similarity) == ("unknown", None, 0.2)


def test_where_nobody_is_enrolled_everybody_is_unknown_at_once():
    identity = vote().decide(EMPTY_SNAPSHOT)

    assert (identity.status, identity.similarity) == ("unknown", None)


def test_good_looks_outvote_bad_ones():
    looks = [ANN, BOB, ANN, BOB, BOB]

    assert vote(*looks, weights=[1, 0.1, 1, 0.1, 0.1]).decide(PEOPLE).name == "Ann"
    assert vote(*looks, weights=[0.1, 1, 0.1, 1, 1]).decide(PEOPLE).name == "Bob"


def test_looks_that_disagree_do_not_settle_on_a_name_without_a_lead():
    cast = IdentityVote(SETTINGS, 0.4)
    for look in (ANN, BOB, ANN, BOB):
        cast.add(look, 1.0)

    assert (cast.decide(PEOPLE).status, cast.decide(PEOPLE).margin) == ("unknown", 0.0)


def test_a_name_once_given_is_easier_to_keep():
    cast = vote(*[near(ANN, 0.45)] * 3)
    for _ in range(10):
        cast.add(near(ANN, 0.37).astype(np.float32), 1.0)

    assert cast.decide(PEOPLE).name == "Ann"
    assert vote(*[near(ANN, 0.37)] * 10).decide(PEOPLE).status == "unknown"


def test_a_track_that_goes_over_to_another_person_forgets_the_first():
    cast = vote(*[ANN] * 8)
    names = []
    for _ in range(4):
        forgotten = cast.add(BOB, 1.0)
        names.append((forgotten, cast.decide(PEOPLE).name))

    assert names == [(False, "Ann"), (False, "Ann"), (True, "Bob"), (False, "Bob")]


def test_one_bad_look_changes_nothing():
    cast = vote(*[ANN] * 3)
    cast.add(CYD, 1.0)

    assert (cast.decide(PEOPLE).name, cast.decide(PEOPLE).similarity) == ("Ann", 1.0)


def test_who_is_enrolled_later_is_recognised_at_once():
    cast = IdentityVote(SETTINGS, 0.4)
    for _ in range(3):
        cast.add(CYD, 1.0)
    later = GallerySnapshot(("Cyd",), CYD[None], np.array([0]))

    assert [cast.decide(each).status for each in (PEOPLE, later, PEOPLE)] == ["unknown", "known", "unknown"]


def identity(name, similarity):
    status = "known" if name else "unknown"
    return Identity(name=name, status=status, similarity=similarity, margin=None, threshold=0.4)


def test_nobody_is_in_two_places_at_once():
    settled = without_doubles(
        [identity("Ann", 0.5), identity("Ann", 0.7), identity(None, 0.1), identity("Bob", 0.5)]
    )

    assert [each.name for each in settled] == [None, "Ann", None, "Bob"]
    assert [each.status for each in settled] == ["undecided", "known", "unknown", "known"]


def test_of_two_equals_the_first_has_the_name():
    assert [each.name for each in without_doubles([identity("Ann", 0.5)] * 2)] == ["Ann", None]
