"""Confidence intervals by the bootstrap: what is sampled is drawn again, and the figure computed again.

Efron and Tibshirani 1993, percentile intervals. Images, pairs, scenes or persons are drawn, as is right for
the figure; seed 281. A share of few, which may be none or all of them, has Wilson's interval instead: what is
drawn from none is always none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainers.zips import SEED

ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value with its 95 % interval (None where it has none), and how it is written."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""  # "%": the value is a share, written in percent; else what follows the number
    digits: int = 3

    def __str__(self) -> str:
        written = [self._one(v) for v in (self.value, self.low, self.high) if v is not None]
        unit = f" {self.unit}" if self.unit not in ("", "%") else ""
        return f"{written[0]}{unit}" + (f" ({written[1]} to {written[2]})" if len(written) == 3 else "")

    def _one(self, value: float) -> str:
        return f"{value:.{self.digits}%}" if self.unit == "%" else f"{value:.{self.digits}f}"


def bootstrap(
    measure: Callable[[np.ndarray], float],
    count: int,
    *,
    unit: str = "",
    digits: int = 3,
    rounds: int = ROUNDS,
) -> Figure:
    """`measure(indices)` over all of `count` things, and over `rounds` draws of as many with repetition."""
    rng = np.random.default_rng(SEED)
    drawn = [measure(rng.integers(0, count, count)) for _ in range(rounds)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Figure(measure(np.arange(count)), float(low), float(high), unit, digits)


def mean_figure(values: np.ndarray, *, unit: str = "", digits: int = 3) -> Figure:
    """The mean of one value a picture."""
    values = np.asarray(values, np.float64)
    return bootstrap(lambda rows: float(values[rows].mean()), len(values), unit=unit, digits=digits)


def share(right: np.ndarray, digits: int = 2) -> Figure:
    """How often something is so, in percent."""
    return mean_figure(right, unit="%", digits=digits)


def wilson(right: int, count: int, z: float = 1.96, digits: int = 2) -> Figure:
    """A share with Wilson's 95 % score interval, which holds for small counts, none and all, too (Wilson 1927)."""
    p, spread = right / count, z * z / count
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(p * (1 - p) / count + spread / (4 * count)))
    return Figure(p, max(0.0, centre - half), min(1.0, centre + half), "%", digits)
