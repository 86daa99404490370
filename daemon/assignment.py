"""Which of two sets belong together at the least total cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FORBIDDEN_COST = 1e6
"""Stands in for infinity, which would turn into NaN where potentials are subtracted."""


def assign(cost: Floats) -> list[tuple[int, int]]:
    """Pairs (row, column) of least total cost; as many as are allowed, none of infinite cost.

    cost: (N, M), infinite where a pair is not allowed. Rows ascend. Shortest augmenting paths (Kuhn 1955;
    Jonker and Volgenant 1987), O(N^2 M).
    """
    if not cost.size:
        return []
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in assign(cost.T))
    finite = np.where(np.isfinite(cost), cost, FORBIDDEN_COST)
    row_of = _row_of_columns(finite)
    pairs = ((int(row), column) for column, row in enumerate(row_of) if row >= 0)
    return sorted((row, column) for row, column in pairs if np.isfinite(cost[row, column]))


def _row_of_columns(cost: Floats) -> NDArray[np.int64]:
    """(M,) the row matched to each column, -1 for none; every row is matched, so N <= M."""
    num_rows, num_columns = cost.shape
    row_potential, column_potential = np.zeros(num_rows), np.zeros(num_columns)
    row_of = np.full(num_columns, -1, np.int64)
    for start in range(num_rows):
        shortest = np.full(num_columns, np.inf)
        before = np.full(num_columns, -1, np.int64)
        done = np.zeros(num_columns, bool)
        row, column, reached = start, -1, 0.0
        while row >= 0:
            through = reached + cost[row] - row_potential[row] - column_potential
            better = ~done & (through < shortest)
            shortest[better] = through[better]
            before[better] = column
            column = int(np.where(done, np.inf, shortest).argmin())
            reached = float(shortest[column])
            done[column] = True
            row = int(row_of[column])
        slack = reached - shortest[done]
        # The last column was free: its potential does not move, and no row hangs on it yet.
        rows = row_of[done]
        row_potential[rows[rows >= 0]] += slack[rows >= 0]
        row_potential[start] += reached
        column_potential[done] -= slack
        while column >= 0:
            previous = int(before[column])
            row_of[column] = start if previous < 0 else row_of[previous]
            column = previous
    return row_of
