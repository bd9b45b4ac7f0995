"""What ``tabes bench pareto`` does once its arguments are read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabes.bench import report
from tabes.bench.analysis import analyse
from tabes.bench.campaign import Campaign
from tabes.bench.fidelities import measure_fidelity
from tabes.bench.figures import draw
from tabes.bench.machine import describe
from tabes.bench.plan_file import load_plan
from tabes.bench.prepare import Setup
from tabes.bench.progress import say
from tabes.bench.store import Store
from tabes.bench.suite import TASKS
from tabes.bench.task import Sources
from tabes.errors import InputError
from tabes.figure_file import check_drawing

RESULTS = "slices.jsonl"


def run(arguments: argparse.Namespace) -> int:
    """Runs what the command line asked for and writes the report; returns the exit code."""
    check_drawing()
    if arguments.workers < 0:
        raise InputError(f"--workers {arguments.workers}: it must be 0 or more")
    out = Path(arguments.out)
    store_path = out / RESULTS
    if store_path.exists() and not (arguments.resume or arguments.report_only):
        raise InputError(f"--out {out}: it has results: --resume goes on with them")
    if arguments.report_only and not store_path.exists():
        raise InputError(f"--out {out}: it has no results to report")
    setup = Setup(
        out, Sources(_path(arguments.sudoku_4x4), _path(arguments.countdown)), _models(arguments)
    )
    named = None
    if arguments.tasks is not None:
        named = [name for name in arguments.tasks.split(",") if name]
    plan = load_plan(_path(arguments.plan), named, arguments.quick)
    if arguments.examples is not None:
        if arguments.examples < 1:
            raise InputError(f"--examples {arguments.examples}: it must be at least 1")
        plan = plan.capped(arguments.examples)
    lacking = {
        task.task: reason for task in plan.tasks if (reason := setup.missing(task.task)) is not None
    }
    for name, reason in lacking.items():
        if named is not None:
            raise InputError(f"--tasks {name} needs {reason}")
        say(f"leaving out {name}, which needs {reason}")
    plan = plan.only([task.task for task in plan.tasks if task.task not in lacking])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error}") from error
    campaign = Campaign(plan, setup, Store(store_path), arguments.workers, say)
    try:
        if arguments.report_only:
            campaign.choose()
        else:
            campaign.run()
            measure_fidelity(campaign)
    except KeyboardInterrupt:
        say(f"stopped; --resume goes on, --report-only reports what {out} has")
        raise
    for path in write_report(campaign, lacking):
        print(path)
    return 0


def write_report(campaign: Campaign, left_out: Mapping[str, str]) -> Sequence[Path]:
    """report.md, results.json and a figure a task; returns their paths."""
    out = campaign.setup.out
    facts: dict[str, Any] = {
        "machine": describe(),
        "weights": campaign.weights,
        "absent": campaign.absent,
        "left_out": dict(left_out),
    }
    tasks = [analyse(campaign, task) for task in campaign.plan.tasks]
    paths = [out / "report.md", out / "results.json"]
    for task in tasks:
        paths.append(out / f"{task['task']}.svg")
        draw(task, paths[-1])
    paths[0].write_text(report.write(tasks, facts), encoding="utf-8")
    content = json.dumps(facts | {"tasks": tasks}, indent=1, ensure_ascii=False)
    paths[1].write_text(content + "\n", encoding="utf-8")
    return paths


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def _models(arguments: argparse.Namespace) -> dict[str, Path]:
    known = {task.model for task in TASKS.values()}
    found = {}
    for given in arguments.model:
        name, _, folder = given.partition("=")
        if name not in known or not folder:
            names = ", ".join(sorted(known))
            raise InputError(f"--model {given}: write NAME=FOLDER, NAME being one of {names}")
        if not (Path(folder) / "config.json").exists():
            raise InputError(f"--model {given}: {folder} holds no config.json")
        found[name] = Path(folder)
    return found
