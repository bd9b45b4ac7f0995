"""The order of a run: tune, choose, test, ablate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tabes._core import InputError
from tabes.bench.cells import Result, collect
from tabes.bench.plan import Ablation, Method, Plan, TaskPlan, thinned
from tabes.bench.pool import run_units
from tabes.bench.prepare import Setup, all_examples
from tabes.bench.progress import Watch
from tabes.bench.spec import Spec, available, effective, policy_from
from tabes.bench.statistics import gain
from tabes.bench.store import Cell, Store, Unit
from tabes.bench.suite import TASKS

_TUNE_POINTS = 3  # of a frontier, to choose between options
Chosen = dict[str, Any]


class Campaign:
    """A plan carried out in a folder.

    Attributes:
        plan: without the methods that this build of tabes lacks.
        absent: those.
        numbers: examples there are, by task and split.
        chosen: by task and method, the options that the tune split decided for.
    """

    def __init__(
        self, plan: Plan, setup: Setup, store: Store, workers: int, say: Callable[[str], None]
    ) -> None:
        self.setup, self.store, self.workers = setup, store, workers
        self.absent = sorted(
            {m.policy for t in plan.tasks for m in t.methods if not available(m.policy)}
        )
        self.plan = replace(plan, tasks=tuple(map(_only_available, plan.tasks)))
        self.weights = setup.check_same_models({TASKS[t.task].model for t in self.plan.tasks})
        self.numbers: dict[tuple[str, str], int] = {}
        self.say = say
        self.chosen: dict[str, Chosen] = {}

    def run(self) -> None:
        """Everything that is not in the store yet."""
        for task in self.plan.tasks:
            _check_options(task)
        for task in self.plan.tasks:
            asked = {"tune": task.tune, "test": task.test}
            for split, examples in all_examples(self.setup, task.task, asked, self.say).items():
                self.numbers[task.task, split] = len(examples)
        self._finish("tune", [self._tune_cells(task) for task in self.plan.tasks])
        self.choose()
        self._finish("test", [self._test_cells(task) for task in self.plan.tasks])

    def choose(self) -> None:
        """Options by what the tune split says so far; kept beside the results to be read."""
        for task in self.plan.tasks:
            self.chosen[task.task] = {
                method.name: self._best(task, method)
                for method in task.methods
                if len(method.candidates) > 1
            }
        path = self.setup.out / "chosen.json"
        path.write_text(json.dumps(self.chosen, indent=1) + "\n", encoding="utf-8")

    def options(self, task: TaskPlan, method: Method) -> Mapping[str, Any]:
        """The chosen options of a method."""
        options: Mapping[str, Any] = (
            self.chosen.get(task.task, {}).get(method.name, {}).get("options", method.candidates[0])
        )
        return options

    def _best(self, task: TaskPlan, method: Method) -> Chosen:
        metric = TASKS[task.task].metrics[0]
        baseline = task.method(self.plan.baseline)

        def frontier(method: Method, options: Mapping[str, Any], thin: bool) -> list[Result]:
            specs = _tune_specs(method, options, task, thin)
            found = (collect(self.store, task.task, "tune", spec, 1) for spec in specs)
            return [result for result in found if result is not None]

        base = frontier(baseline, baseline.candidates[0], thin=False)
        gains: list[float | None] = []
        for options in method.candidates:
            results = frontier(method, options, thin=True)
            points = [
                [r.point("", metric, "forward_equivalents") for r in part]
                for part in (results, base)
            ]
            gains.append(gain(*points) if results and base else None)
        known = [g for g in gains if g is not None]
        best = gains.index(max(known)) if known else 0
        return {"options": dict(method.candidates[best]), "gains": gains}

    def _tune_cells(self, task: TaskPlan) -> list[tuple[Cell, int]]:
        specs: dict[str, Spec] = {}
        baseline = task.method(self.plan.baseline)
        choosing = [m for m in task.methods if len(m.candidates) > 1]
        if choosing:
            for spec in _tune_specs(baseline, baseline.candidates[0], task, thin=False):
                specs[spec.key] = spec
        for method in choosing:
            for options in method.candidates:
                for spec in _tune_specs(method, options, task, thin=True):
                    specs[spec.key] = spec
        number = min(task.tune, self.numbers[task.task, "tune"])
        return [(Cell(task.task, "tune", spec, 0), number) for spec in specs.values()]

    def _test_cells(self, task: TaskPlan) -> list[tuple[Cell, int]]:
        wanted: dict[str, tuple[Cell, int]] = {}

        def add(spec: Spec, seeds: int, examples: int) -> None:
            number = min(examples, self.numbers[task.task, "test"])
            for seed in range(seeds):
                cell = Cell(task.task, "test", spec, seed)
                known = wanted.get(cell.key)
                wanted[cell.key] = (cell, max(number, known[1] if known else 0))

        for method in task.methods:
            for spec in method.specs(self.options(task, method), task):
                add(spec, method.seeds, method.examples)
        if task.ablation is not None:
            for spec in self.ablation_specs(task, task.ablation).values():
                add(spec, 1, task.ablation.examples)
        return list(wanted.values())

    def ablation_specs(self, task: TaskPlan, ablation: Ablation) -> dict[tuple[str, int], Spec]:
        """By label and steps; the label of the whole method is empty."""
        method = task.method(ablation.method)
        whole = method.specs(self.options(task, method), task)[0]
        found = {}
        for steps in ablation.steps:
            common = replace(whole, steps=steps)
            found["", steps] = common
            for variant in ablation.variants:
                changed = common.changed(variant.options)
                # What changes nothing need not be run again.
                same = effective(changed) == effective(common)
                found[variant.label, steps] = common if same else changed
        return found

    def _finish(self, phase: str, cells: Sequence[Sequence[tuple[Cell, int]]]) -> None:
        units = [unit for unit in _units(cells, self.plan.slice) if unit not in self.store]
        with Watch(phase, len(units)) as watch:

            def done(unit: Unit, found: dict[str, Any]) -> None:
                self.store.add(unit, found)
                watch.step(f"{unit.cell.task}, {unit.cell.spec.policy}")

            run_units(units, self.setup, self.numbers, self.plan.batch, self.workers, done)


def _only_available(task: TaskPlan) -> TaskPlan:
    methods = tuple(m for m in task.methods if available(m.policy))
    ablation = task.ablation
    if ablation is not None:
        if all(m.name != ablation.method for m in methods):
            ablation = None
        else:
            kept = tuple(v for v in ablation.variants if available(v.options.get("policy", "boe")))
            ablation = replace(ablation, variants=kept)
    return replace(task, methods=methods, ablation=ablation)


def _check_options(task: TaskPlan) -> None:
    """A misspelt option is found now, not an hour later."""
    for method in task.methods:
        for options in method.candidates:
            for spec in method.specs(options, task):
                try:
                    policy_from(spec)
                except InputError as error:
                    raise InputError(f"{task.task}, method {method.name}: {error}") from None
    if task.ablation is None:
        return
    whole = task.method(task.ablation.method).specs({}, task)[0]
    for variant in task.ablation.variants:
        try:
            policy_from(whole.changed(variant.options))
        except InputError as error:
            raise InputError(f"{task.task}, ablation {variant.label}: {error}") from None


def _tune_specs(
    method: Method, options: Mapping[str, Any], task: TaskPlan, thin: bool
) -> list[Spec]:
    if thin:
        method = replace(method, values=thinned(method.values, _TUNE_POINTS))
    return method.specs(options, task)


def _units(cells: Sequence[Sequence[tuple[Cell, int]]], size: int) -> list[Unit]:
    """All slices, the first of every cell before the second of any: whenever a run stops, its
    cells are about equally far, and drifting load meets all alike."""
    units = []
    for task in cells:
        most = max((number for _, number in task), default=0)
        for first in range(0, most, size):
            units += [
                Unit(cell, first, min(size, number - first))
                for cell, number in task
                if first < number
            ]
    return units
