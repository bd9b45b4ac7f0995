"""Intervals against hand computation, every resample, and published tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tabes.statistics import Interval, bootstrap, score, wilson


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)


def test_bootstrap_against_every_resample() -> None:
    """Of three values there are 27 resamples: their quantiles are what many draws come to."""
    given = values(0, 1, 5)
    means = [np.mean(draw) for draw in itertools.product(given, repeat=3)]
    low, high = np.quantile(means, (0.025, 0.975), method="inverted_cdf")
    found = bootstrap(given, resamples=20_000)
    assert found.mean == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_bootstrap_against_the_normal_interval() -> None:
    """Of many outcomes the interval is that of the central limit theorem."""
    given = np.repeat(values(0, 1), (300, 700))
    found = bootstrap(given)
    error = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert found.low == pytest.approx(0.7 - error, abs=0.003)
    assert found.high == pytest.approx(0.7 + error, abs=0.003)
    assert bootstrap(given) == found
    assert bootstrap(given, seed=1) != found
    assert bootstrap(given.tolist()) == found
    assert bootstrap(values(0.5, 0.5)) == Interval(0.5, 0.5, 0.5)


def test_verdicts() -> None:
    assert Interval(0.1, 0.01, 0.2).verdict == "better"
    assert Interval(-0.1, -0.2, -0.01).verdict == "worse"
    assert Interval(0.1, 0.0, 0.2).verdict == "inside the noise"
    assert Interval(0.1, -0.1, 0.3).verdict == "inside the noise"


# R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, score method without correction;
# k of k is n / (n + 1.96^2) to 1.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 5, 5 / (5 + 1.96**2), 1.0),
        (0, 5, 0.0, 1.96**2 / (5 + 1.96**2)),
        (1, 1, 1 / (1 + 1.96**2), 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
@pytest.mark.case("N17")
def test_shares(hits: int, n: int, low: float, high: float) -> None:
    found = score([1.0] * hits + [0.0] * (n - hits))
    assert found == wilson(hits / n, n)
    assert found.mean == hits / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    if hits == n:
        assert found.high == 1.0
    if hits == 0:
        assert found.low == 0.0


@pytest.mark.case("N17")
def test_scores_between_yes_and_no() -> None:
    mixed = [0.0, 0.25, 1.0, 0.5]
    assert score(mixed) == bootstrap(mixed)
    # All alike: resampling would be certain.
    alike = score([0.5] * 10)
    assert (alike.low, alike.high) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert score([0.5]).low < 0.1
    # Larger samples of the same share tell more.
    widths = [score([1.0] * n).mean - score([1.0] * n).low for n in (1, 5, 50, 500)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_every_share_lies_in_its_interval() -> None:
    for n in (1, 2, 3, 7, 1000):
        for hits in {0, 1, n // 3, n - 1, n}:
            found = wilson(hits / n, n)
            assert 0 <= found.low <= found.mean <= found.high <= 1
            assert found.low < found.high
