from itertools import permutations

import numpy as np
import pytest

from daemon.assignment import assign


def least_cost(cost):
    rows, columns = cost.shape
    if rows > columns:
        return least_cost(cost.T)
    return min(
        sum(cost[row, column] for row, column in enumerate(p)) for p in permutations(range(columns), rows)
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 5), (2, 6), (6, 3)])
def test_the_total_cost_is_the_least_there_is(shape):
    random = np.random.default_rng(0)
    for _ in range(30):
        cost = random.random(shape)

        pairs = assign(cost)

        assert (
            min(shape) == len(pairs) == len({row for row, _ in pairs}) == len({column for _, column in pairs})
        )
        assert least_cost(cost) == pytest.approx(sum(cost[pair] for pair in pairs))


def test_the_whole_counts_and_not_the_first_choice():
    cost = np.array([[0.0, 0.1], [0.1, 1.0]])

    assert assign(cost) == [(0, 1), (1, 0)]


def test_as_many_pairs_as_are_allowed():
    cost = np.array([[0.5, np.inf, np.inf], [0.1, np.inf, 0.9]])

    assert assign(cost) == [(0, 0), (1, 2)]


def test_nothing_fits_nothing():
    assert [] == assign(np.full((2, 3), np.inf)) == assign(np.zeros((0, 3))) == assign(np.zeros((3, 0)))
