"""What is to be measured: by task its methods, and the settings that trace their frontiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tabes.bench.spec import Spec

_QUICK_EXAMPLES, _QUICK_POINTS = 48, 3


@dataclass(frozen=True)
class Method:
    """A policy on a task: the settings that trace its frontier, and the options to choose from."""

    name: str
    policy: str
    options: Mapping[str, Any]
    varied: str  # "steps" or an option
    values: tuple[Any, ...]
    candidates: tuple[Mapping[str, Any], ...]
    seeds: int
    examples: int
    ours: bool

    def specs(self, chosen: Mapping[str, Any], task: TaskPlan) -> list[Spec]:
        """The points of its frontier."""
        base = Spec(
            self.policy, {}, block_length=task.block_length, temperature=task.temperature
        ).changed({**self.options, **chosen})
        if self.varied == "steps":
            return [replace(base, steps=n) for n in self.values]
        return [base.changed({self.varied: value}) for value in self.values]


@dataclass(frozen=True)
class Variant:
    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    method: str
    steps: tuple[int, ...]
    examples: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class TaskPlan:
    task: str
    temperature: float
    block_length: int | None
    tune: int
    test: int
    methods: tuple[Method, ...]
    ablation: Ablation | None

    def method(self, name: str) -> Method:
        return next(m for m in self.methods if m.name == name)


@dataclass(frozen=True)
class Plan:
    slice: int
    batch: int
    baseline: str
    tasks: tuple[TaskPlan, ...]

    def only(self, tasks: Sequence[str]) -> Plan:
        """The same for some of its tasks."""
        return replace(self, tasks=tuple(t for t in self.tasks if t.task in tasks))

    def capped(self, most: int) -> Plan:
        """The same with at most so many examples everywhere."""

        def short(task: TaskPlan) -> TaskPlan:
            ablation = task.ablation
            return replace(
                task,
                tune=min(task.tune, most),
                test=min(task.test, most),
                methods=tuple(replace(m, examples=min(m.examples, most)) for m in task.methods),
                ablation=ablation and replace(ablation, examples=min(ablation.examples, most)),
            )

        return replace(self, tasks=tuple(map(short, self.tasks)))


def thinned(values: Sequence[Any], most: int) -> tuple[Any, ...]:
    """At most `most` of the values, the first and last among them, evenly spread."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[round(i * (len(values) - 1) / (most - 1))] for i in range(most))


def quick(plan: Plan) -> Plan:
    """The same at a small fraction of the time: to see that everything runs."""

    def short(task: TaskPlan) -> TaskPlan:
        number = min(task.test, _QUICK_EXAMPLES)
        methods = tuple(
            replace(
                method,
                values=thinned(method.values, _QUICK_POINTS),
                candidates=method.candidates[:2],
                seeds=1,
                examples=min(method.examples, number),
            )
            for method in task.methods
        )
        ablation = task.ablation and replace(
            task.ablation, steps=task.ablation.steps[:1], examples=number
        )
        tune = min(task.tune, _QUICK_EXAMPLES // 2)
        return replace(task, tune=tune, test=number, methods=methods, ablation=ablation)

    return replace(
        plan, slice=min(plan.slice, _QUICK_EXAMPLES // 2), tasks=tuple(map(short, plan.tasks))
    )
