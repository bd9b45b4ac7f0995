"""A plan as a JSON file.

===============  ==================================================================================
``tune, test``   examples a task on either split
``slice``        examples a process runs at a time; ``batch`` of them decode together
``seeds``        how often everything is repeated where tokens are drawn at random
``methods``      by name: ``policy`` and ``options``; what traces its frontier: ``steps``, or
                 ``vary`` {option: [values]}; ``per_step``: its forward passes a step, by which a
                 task's steps are divided; ``points``: at most so many of these (2 or more);
                 ``tune``: a list of options to choose from; ``random``: draws even at
                 temperature 0; ``examples``: at most so many; ``seeds``: fewer than the task's;
                 ``ours``: what the report is about
``tasks``        by name: ``steps``, ``temperature``, ``block_length``, ``tune``, ``test``,
                 ``seeds``, ``ablation``, and ``methods`` {name: settings that differ here, or null
                 to leave it out}
``ablation``     ``method``, ``steps`` (at which it is taken apart), ``examples``, and
                 ``variants`` {label: {options that differ}}
                 Among options, "policy" names another policy and "refresh_every" is that of
                 `tabes.generate`
``baseline``     the method whose frontier others are measured from when options are chosen
===============  ==================================================================================
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabes.bench.plan import Ablation, Method, Plan, TaskPlan, Variant, quick, thinned
from tabes.bench.suite import TASKS
from tabes.errors import InputError
from tabes.files import read_text

_METHOD_FIELDS = {
    "policy": str,
    "options": dict,
    "steps": list,
    "vary": dict,
    "per_step": (int, float),
    "points": int,
    "tune": list,
    "random": bool,
    "examples": int,
    "seeds": int,
    "ours": bool,
}
_TASK_FIELDS = {
    "steps": list,
    "temperature": (int, float),
    "block_length": int,
    "tune": int,
    "test": int,
    "seeds": int,
    "methods": dict,
    "ablation": dict,
}
_PLAN_FIELDS = {
    "tune": int,
    "test": int,
    "slice": int,
    "batch": int,
    "seeds": int,
    "methods": dict,
    "tasks": dict,
    "ablation": dict,
    "baseline": str,
}
_ABLATION_FIELDS = {"method": str, "steps": list, "examples": int, "variants": dict}


def load_plan(path: Path | None, tasks: Sequence[str] | None, small: bool) -> Plan:
    """Reads a plan, the package's own if `path` is None; of its tasks those named.

    Raises InputError, which says where, for a plan that cannot be used.
    """
    where = "the default plan" if path is None else str(path)
    try:
        given = json.loads(
            read_text(Path(__file__).with_name("plan.json") if path is None else path)
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {error}") from error
    _check(given, _PLAN_FIELDS, where)
    for field in ("methods", "tasks", "baseline"):
        if field not in given:
            raise InputError(f"{where}: it has no {field!r}")
    known = given["tasks"]
    for name in known:
        if name not in TASKS:
            raise InputError(f"{where}: tasks: {_unknown(name, TASKS)}")
    for name in tasks or ():
        if name not in known:
            raise InputError(f"--tasks {name}: {_unknown(name, known)}")
    plan = Plan(
        _positive(given.get("slice", 50), f"{where}: slice"),
        _positive(given.get("batch", 16), f"{where}: batch"),
        given["baseline"],
        tuple(
            _task(name, entry, given, f"{where}: tasks: {name}")
            for name, entry in known.items()
            if tasks is None or name in tasks
        ),
    )
    if not plan.tasks:
        raise InputError(f"{where}: it has no tasks")
    return quick(plan) if small else plan


def _task(name: str, entry: Any, plan: Mapping[str, Any], where: str) -> TaskPlan:
    _check(entry, _TASK_FIELDS, where)
    temperature = float(entry.get("temperature", 0.0))
    overrides = entry.get("methods", {})
    for method in overrides:
        if method not in plan["methods"]:
            raise InputError(f"{where}: methods: {_unknown(method, plan['methods'])}")
    test = _positive(entry.get("test", plan.get("test", 1000)), f"{where}: test")
    seeds = _positive(entry.get("seeds", plan.get("seeds", 1)), f"{where}: seeds")
    methods = []
    for method, common in plan["methods"].items():
        here = f"{where}: methods: {method}"
        differs = overrides.get(method, {})
        if differs is None:
            continue
        _check(common, _METHOD_FIELDS, here)
        _check(differs, _METHOD_FIELDS, here)
        full = {**common, **differs}
        methods.append(_method(method, full, entry.get("steps"), temperature, test, seeds, here))
    baseline = plan["baseline"]
    if all(m.name != baseline for m in methods):
        raise InputError(f"{where}: methods: the baseline {baseline!r} is not among them")
    ablation = plan.get("ablation", {}) | entry.get("ablation", {})
    return TaskPlan(
        name,
        temperature,
        entry.get("block_length"),
        _positive(entry.get("tune", plan.get("tune", 200)), f"{where}: tune"),
        test,
        tuple(methods),
        _ablation(ablation, methods, test, f"{where}: ablation") if ablation else None,
    )


def _method(
    name: str,
    given: Mapping[str, Any],
    steps: list[int] | None,
    temperature: float,
    test: int,
    seeds: int,
    where: str,
) -> Method:
    if "vary" in given:
        if len(given["vary"]) != 1:
            raise InputError(f"{where}: vary names one option and its values")
        varied, values = next(iter(given["vary"].items()))
    else:
        varied, per_step = "steps", given.get("per_step", 1)
        if per_step <= 0:
            raise InputError(f"{where}: per_step is {per_step}: it must be above 0")
        own = given.get("steps")
        whole = [_positive(n, f"{where}: steps") for n in own or steps or ()]
        values = whole if own else sorted({max(1, round(n / per_step)) for n in whole})
        most = _positive(given.get("points", max(2, len(values))), f"{where}: points")
        values = list(thinned(values, max(2, most)))
    if not values:
        raise InputError(
            f"{where}: it has no points: give steps to the task, or vary to the method"
        )
    candidates = given.get("tune", [{}])
    if not candidates or not all(isinstance(options, dict) for options in candidates):
        raise InputError(f"{where}: tune is a list of options to choose from")
    own_seeds = _positive(given.get("seeds", seeds), f"{where}: seeds")
    return Method(
        name,
        given.get("policy", name),
        given.get("options", {}),
        varied,
        tuple(values),
        tuple(candidates),
        min(seeds, own_seeds) if temperature > 0 or given.get("random", False) else 1,
        min(test, _positive(given.get("examples", test), f"{where}: examples")),
        given.get("ours", False),
    )


def _ablation(
    given: Mapping[str, Any], methods: Sequence[Method], test: int, where: str
) -> Ablation | None:
    _check(given, _ABLATION_FIELDS, where)
    for field in ("method", "steps", "variants"):
        if field not in given:
            raise InputError(f"{where}: it has no {field!r}")
    if all(method.name != given["method"] for method in methods):
        return None
    variants = []
    for label, entry in given["variants"].items():
        if not isinstance(entry, dict):
            raise InputError(f"{where}: variants: {label}: give the options that differ")
        variants.append(Variant(label, entry))
    return Ablation(
        given["method"],
        tuple(_positive(n, f"{where}: steps") for n in given["steps"]),
        min(test, _positive(given.get("examples", test), f"{where}: examples")),
        tuple(variants),
    )


def _check(given: Any, fields: Mapping[str, Any], where: str) -> None:
    if not isinstance(given, dict):
        raise InputError(f"{where}: it is a {type(given).__name__}, not an object")
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"{where}: {_unknown(name, fields)}")
        if not isinstance(value, fields[name]) or (
            isinstance(value, bool) and fields[name] is not bool
        ):
            raise InputError(f"{where}: {name} is {value!r}, of the wrong kind")


def _positive(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where} is {value!r}: it must be a whole number of at least 1")
    return value


def _unknown(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(names)}"
    return f"there is no {name!r}; {hint}"
