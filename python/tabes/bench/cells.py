"""Cells put together from the slices that have been run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tabes.bench.spec import Spec
from tabes.bench.statistics import Point
from tabes.bench.store import Cell, Store
from tabes.statistics import Values


@dataclass(frozen=True)
class Result:
    """A setting on a split: outcomes [n] by metric, averaged over seeds example by example, and
    what it cost.

    Attributes:
        forward_equivalents: all forward and backward rows over all tokens.
        plain_equivalents: seconds in plain confidence steps of the same sequences, timed in the
            same process; the median over slices.
        cpu_equivalents: the same in processor time.
        added_mib: at its worst, beyond the process with its model; the most of all slices.
        examples: n; the first of the split that every seed has.
        texts: of the first seed, where the task keeps them.
    """

    spec: Spec
    outcomes: dict[str, Values]
    forward_equivalents: float
    plain_equivalents: float
    cpu_equivalents: float
    forward_rows: float
    backward_rows: float
    head_rows: float
    steps: float
    seconds: float
    added_mib: float | None
    load: tuple[float, float]
    examples: int
    seeds: int
    texts: list[str] | None

    def point(self, label: str, metric: str, cost: str) -> Point:
        return Point(label, getattr(self, cost), self.outcomes[metric])


def collect(
    store: Store, task: str, split: str, spec: Spec, seeds: int, most: int | None = None
) -> Result | None:
    """What the store has of a setting, None if nothing that starts at the first example."""
    runs = []
    for seed in range(seeds):
        rows = _from_the_start(list(store.of(Cell(task, split, spec, seed))))
        if rows:
            runs.append(rows)
    if not runs:
        return None
    n = min(sum(row["number"] for row in rows) for rows in runs)
    n = n if most is None else min(n, most)
    rows = [row for run in runs for row in run]
    metrics = runs[0][0]["outcomes"]

    def numbers(field: str) -> Values:
        return np.array([v for row in rows for v in row[field]], dtype=np.float64)

    length = numbers("length")
    forward, backward = numbers("forward_rows"), numbers("backward_rows")
    seconds = sum(row["seconds"] for row in rows)
    added = [row["added_mib"] for row in rows if row.get("added_mib") is not None]
    texts = runs[0][0]["texts"]
    return Result(
        spec=spec,
        outcomes={
            metric: np.mean(
                [[v for row in run for v in row["outcomes"][metric]][:n] for run in runs], axis=0
            )
            for metric in metrics
        },
        forward_equivalents=float((forward + backward).sum() / length.sum()),
        plain_equivalents=_ratio(rows, "seconds", "plain_step_seconds"),
        cpu_equivalents=_ratio(rows, "cpu_seconds", "plain_step_cpu_seconds"),
        forward_rows=float(forward.mean()),
        backward_rows=float(backward.mean()),
        head_rows=float(numbers("head_rows").mean()),
        steps=float(numbers("steps").mean()),
        seconds=seconds / len(length),
        added_mib=max(added, default=None),
        load=(min(row["load"] for row in rows), max(row["load"] for row in rows)),
        examples=n,
        seeds=len(runs),
        texts=None if texts is None else [t for row in runs[0] for t in row["texts"]][:n],
    )


def _ratio(rows: Sequence[dict[str, Any]], part: str, whole: str) -> float:
    """The median: one slice during which the machine was busy elsewhere moves a mean far."""
    return float(np.median([row[part] / row[whole] for row in rows]))


def _from_the_start(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slices that follow on one another from the first example."""
    # A run with fewer examples may have left a shorter slice where there is a whole one now.
    by_first = {row["first"]: row for row in sorted(rows, key=lambda row: int(row["number"]))}
    whole: list[dict[str, Any]] = []
    at = 0
    while at in by_first:
        whole.append(by_first[at])
        at += by_first[at]["number"]
    return whole
