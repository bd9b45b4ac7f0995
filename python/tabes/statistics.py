"""Intervals: of means by the bootstrap, of shares by Wilson's score, the same ones everywhere.

All are 95 % intervals. The bootstrap resamples the values, so of values that are all alike it gives
one point: 5 of 5 would be a share of 1 for certain. Shares of yes or no are therefore given
Wilson's interval (E. B. Wilson, JASA 22 (1927) 209), by which 5 of 5 says no more than 0.57 to 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 2000
_LEVELS = (0.025, 0.975)
_QUANTILE = 1.959963984540054  # of the normal distribution at the upper level


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of a difference: "better", "worse", or "inside the noise" if the interval holds 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "inside the noise"

    def to_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


@functools.lru_cache(maxsize=8)
def _counts(n: int, seed: int, resamples: int) -> Values:
    """How often each of n examples is drawn, by resample: all that a mean needs to know."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws.astype(np.float64)


def bootstrap(
    values: Values | Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The mean of values [n], n at least 1, and its interval by the percentiles of resampled means.

    The same values and seed give the same interval.
    """
    given = np.asarray(values, dtype=np.float64)
    means = _counts(len(given), seed, resamples) @ given / len(given)
    low, high = np.quantile(means, _LEVELS)
    return Interval(float(given.mean()), float(low), float(high))


def wilson(mean: float, n: int) -> Interval:
    """A share `mean` of n examples, n at least 1, and Wilson's interval of it."""
    square = _QUANTILE**2
    middle = (mean + square / (2 * n)) / (1 + square / n)
    width = math.sqrt(mean * (1 - mean) / n + square / (4 * n * n)) * _QUANTILE / (1 + square / n)
    # Not beyond the mean by rounding, where it is 0 or 1.
    return Interval(mean, min(mean, max(0.0, middle - width)), max(mean, min(1.0, middle + width)))


def score(values: Values | Sequence[float]) -> Interval:
    """The mean of scores [n] from 0 to 1: of yes and no (1 and 0) with Wilson's interval, of others
    with that of the bootstrap.

    Scores that are all alike tell the bootstrap nothing, so they get Wilson's too: scores between 0
    and 1 vary less than yes and no of the same mean, so that it is rather too wide.
    """
    given = np.asarray(values, dtype=np.float64)
    if np.isin(given, (0.0, 1.0)).all() or (given == given[0]).all():
        return wilson(float(given.mean()), len(given))
    return bootstrap(given)
