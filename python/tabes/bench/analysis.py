"""Results of the test split as plain data: what tables, figures and results.json are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tabes.bench.campaign import Campaign
from tabes.bench.cells import Result, collect
from tabes.bench.fidelities import read_fidelity, setting_of
from tabes.bench.plan import Method, TaskPlan
from tabes.bench.spec import Spec
from tabes.bench.statistics import Point, compare, difference, summary
from tabes.bench.suite import TASKS
from tabes.bench.task import Example
from tabes.statistics import score
from tabes.tasks import molecules

COSTS = ("forward_equivalents", "plain_equivalents")
Frontier = list[tuple[str, Result]]


def label_of(method: Method, spec: Spec) -> str:
    """What tells the points of a method apart."""
    if method.varied == "steps":
        return f"{spec.steps} steps"
    value = {**spec.options, "refresh_every": spec.refresh_every}[method.varied]
    return f"{method.varied} {value:g}" if isinstance(value, float) else f"{method.varied} {value}"


def analyse(campaign: Campaign, task: TaskPlan) -> dict[str, Any]:
    """Everything about a task."""
    about = TASKS[task.task]
    frontiers = {method.name: _frontier(campaign, task, method) for method in task.methods}
    frontiers = {name: frontier for name, frontier in frontiers.items() if frontier}
    examples = campaign.setup.examples(task.task, "test", task.test)
    novel = _known(frontiers.values()) if about.keeps_texts else set()
    ours = [m.name for m in task.methods if m.ours and m.name in frontiers]
    return {
        "task": task.task,
        "title": about.title,
        "model": about.model,
        "metrics": list(about.metrics),
        "temperature": task.temperature,
        "examples": len(examples),
        "methods": [
            {
                "name": method.name,
                "policy": method.policy,
                "ours": method.ours,
                "options": {**method.options, **campaign.options(task, method)},
                "choice": campaign.chosen.get(task.task, {}).get(method.name),
                "candidates": [dict(options) for options in method.candidates],
                "points": [
                    {"label": label}
                    | _described(result, examples)
                    | (_population(result, novel) if about.keeps_texts else {})
                    for label, result in frontiers[method.name]
                ],
            }
            for method in task.methods
            if method.name in frontiers
        ],
        "comparisons": {
            cost: {
                metric: [_against(frontiers, name, ours, metric, cost) for name in ours]
                for metric in about.metrics
            }
            for cost in COSTS
        },
        "ablation": _ablation(campaign, task),
    }


def _frontier(campaign: Campaign, task: TaskPlan, method: Method) -> Frontier:
    found: Frontier = []
    for spec in method.specs(campaign.options(task, method), task):
        result = collect(campaign.store, task.task, "test", spec, method.seeds, method.examples)
        if result is not None:
            found.append((label_of(method, spec), result))
    return found


def _described(result: Result, examples: Sequence[Example]) -> dict[str, Any]:
    groups: dict[str, list[int]] = {}
    for at, example in enumerate(examples[: result.examples]):
        groups.setdefault(example.group, []).append(at)
    return {
        "spec": result.spec.to_dict(),
        "quality": {m: score(v).to_dict() for m, v in result.outcomes.items()},
        "groups": {
            group: {m: float(v[at].mean()) for m, v in result.outcomes.items()}
            for group, at in groups.items()
        },
        "forward_equivalents": result.forward_equivalents,
        "plain_equivalents": result.plain_equivalents,
        "cpu_equivalents": result.cpu_equivalents,
        "forward_rows": result.forward_rows,
        "backward_rows": result.backward_rows,
        "head_rows": result.head_rows,
        "steps": result.steps,
        "seconds": result.seconds,
        "added_mib": result.added_mib,
        "load": list(result.load),
        "examples": result.examples,
        "seeds": result.seeds,
    }


def _molecules(result: Result) -> list[str]:
    found = (molecules.canonical(text) for text in result.texts or [])
    return [smiles for smiles in found if smiles is not None]


def _known(frontiers: Iterable[Frontier]) -> set[str]:
    """Which of all molecules made are training molecules."""
    made = {s for frontier in frontiers for _, result in frontier for s in _molecules(result)}
    return molecules.known_molecules(made)


def _population(result: Result, known: set[str]) -> dict[str, Any]:
    valid = _molecules(result)
    distinct = set(valid)
    return {
        "unique": len(distinct) / len(valid) if valid else None,
        "novel": len(distinct - known) / len(distinct) if distinct else None,
        "diversity": molecules.internal_diversity(valid) if valid else None,
    }


def _points(frontier: Frontier, metric: str, cost: str) -> list[Point]:
    return [result.point(label, metric, cost) for label, result in frontier]


def _against(
    frontiers: Mapping[str, Frontier], name: str, own: Sequence[str], metric: str, cost: str
) -> dict[str, Any]:
    """One of our own methods against all that are not, point by point and over all points."""
    ours = _points(frontiers[name], metric, cost)
    rivals = {
        rival: _points(frontier, metric, cost)
        for rival, frontier in frontiers.items()
        if rival not in own
    }
    rows = []
    for point in ours:
        found = [compare(point, rival, frontier) for rival, frontier in rivals.items()]
        known = sorted((c for c in found if c is not None), key=lambda c: -c.rival_quality)
        rows.append(
            {
                "label": point.label,
                "cost": point.cost,
                "quality": float(np.mean(point.outcomes)),
                "rivals": [c.to_dict() for c in known],  # the best first
            }
        )
    siblings = {other: _points(frontiers[other], metric, cost) for other in own if other != name}
    return {
        "method": name,
        "points": rows,
        "overall": _overall(ours, rivals),
        "among_ours": _overall(ours, siblings),
    }


def _overall(ours: Sequence[Point], others: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The mean difference to each of the others where there is one."""
    found = {}
    for name, frontier in others.items():
        over_all = summary(ours, frontier)
        if over_all is not None:
            interval, points = over_all
            found[name] = interval.to_dict() | {"points": points, "verdict": interval.verdict}
    return found


def _ablation(campaign: Campaign, task: TaskPlan) -> list[dict[str, Any]]:
    ablation = task.ablation
    if ablation is None:
        return []
    metric = TASKS[task.task].metrics[0]
    fidelities = read_fidelity(campaign, task.task)
    specs = campaign.ablation_specs(task, ablation)
    rows = []
    for steps in ablation.steps:
        whole = collect(campaign.store, task.task, "test", specs["", steps], 1, ablation.examples)
        for (label, at), spec in specs.items():
            if at != steps or whole is None:
                continue
            result = collect(campaign.store, task.task, "test", spec, 1, ablation.examples)
            if result is None:
                continue
            n = min(result.examples, whole.examples)
            found = difference(result.outcomes[metric][:n], whole.outcomes[metric][:n])
            setting = setting_of(spec)
            same = label != "" and spec.key == specs["", steps].key
            rows.append(
                {
                    "label": label,
                    "steps": steps,
                    "same": same,
                    "examples": n,
                    "quality": float(result.outcomes[metric][:n].mean()),
                    "difference": found.to_dict() | {"verdict": found.verdict},
                    "forward_equivalents": result.forward_equivalents,
                    "plain_equivalents": result.plain_equivalents,
                    "fidelity": None if setting is None else fidelities.get(setting.label),
                }
            )
    return rows
