"""Paired comparisons of per-example outcomes, with the bootstrap intervals of `tabes.statistics`.

A rival's quality at a cost between two of its settings is, example by example, the linear
interpolation of its outcomes at the two. This is the expected outcome of a decoder that picks one
of the two settings at random for every sequence, with odds that make its mean cost the one asked
for; so it is something one could run, pairing stays, and the bootstrap over examples stays valid.
Mean costs are taken as known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tabes.statistics import Interval, Values, bootstrap


def difference(ours: Values, theirs: Values, seed: int = 0) -> Interval:
    """Mean of the paired difference of outcomes [n] of the same examples."""
    return bootstrap(ours - theirs, seed)


@dataclass(frozen=True)
class Point:
    """A setting: its mean cost and its outcomes [n] by example, in the order of the split."""

    label: str
    cost: float
    outcomes: Values


@dataclass(frozen=True)
class AtCost:
    """A frontier's outcomes [n] at a cost.

    Attributes:
        how: between which settings, in words.
        exact: False where the frontier ends before this cost and its nearest end stands for it.
    """

    outcomes: Values
    how: str
    exact: bool


def at_cost(frontier: Sequence[Point], cost: float) -> AtCost | None:
    """What a method comes to at a mean cost, None where all its settings cost more.

    Beyond its dearest setting that one stands for the method: it has nothing better to buy.
    """
    points = sorted(frontier, key=lambda p: p.cost)
    if not points or cost < points[0].cost:
        return None
    if cost >= points[-1].cost:
        last = points[-1]
        exact = cost == last.cost
        return AtCost(last.outcomes, last.label if exact else f"{last.label} (its dearest)", exact)
    upper = next(i for i, p in enumerate(points) if p.cost > cost)
    below, above = points[upper - 1], points[upper]
    n = min(len(below.outcomes), len(above.outcomes))
    share = (cost - below.cost) / (above.cost - below.cost)
    mixed = (1 - share) * below.outcomes[:n] + share * above.outcomes[:n]
    if share == 0:
        return AtCost(mixed, below.label, True)
    return AtCost(mixed, f"{below.label} and {above.label}", True)


@dataclass(frozen=True)
class Comparison:
    """One of our points against a rival at the same mean cost."""

    ours: str
    rival: str
    cost: float
    how: str
    exact: bool
    examples: int
    quality: float
    rival_quality: float
    difference: Interval

    def to_dict(self) -> dict[str, object]:
        return {
            "ours": self.ours,
            "rival": self.rival,
            "cost": self.cost,
            "rival_settings": self.how,
            "reaches_cost": self.exact,
            "examples": self.examples,
            "quality": self.quality,
            "rival_quality": self.rival_quality,
            "difference": self.difference.to_dict(),
            "verdict": self.difference.verdict,
        }


def compare(point: Point, name: str, frontier: Sequence[Point]) -> Comparison | None:
    """A point against a rival's frontier at its cost, over the examples both have; None where the
    rival has no setting so cheap."""
    there = at_cost(frontier, point.cost)
    if there is None:
        return None
    n = min(len(point.outcomes), len(there.outcomes))
    ours, theirs = point.outcomes[:n], there.outcomes[:n]
    return Comparison(
        point.label,
        name,
        point.cost,
        there.how,
        there.exact,
        n,
        float(ours.mean()),
        float(theirs.mean()),
        difference(ours, theirs),
    )


def gain(frontier: Sequence[Point], baseline: Sequence[Point]) -> float:
    """How much a method is above a baseline at equal cost, on average over its settings; where the
    baseline is dearer throughout, its cheapest setting stands for it."""
    cheapest = min(baseline, key=lambda p: p.cost)
    gains = []
    for point in frontier:
        there = at_cost(baseline, point.cost)
        outcomes = cheapest.outcomes if there is None else there.outcomes
        n = min(len(point.outcomes), len(outcomes))
        gains.append(float((point.outcomes[:n] - outcomes[:n]).mean()))
    return sum(gains) / len(gains)


def summary(ours: Sequence[Point], rival: Sequence[Point]) -> tuple[Interval, int] | None:
    """The paired difference averaged over those of our points whose cost the rival has, and their
    number; None if there are none. The interval is of that average over examples."""
    pairs = [(point, at_cost(rival, point.cost)) for point in ours]
    known = [(point.outcomes, there.outcomes) for point, there in pairs if there is not None]
    if not known:
        return None
    n = min(min(len(a), len(b)) for a, b in known)
    return bootstrap(np.mean([a[:n] - b[:n] for a, b in known], axis=0)), len(known)
