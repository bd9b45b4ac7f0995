"""``tabes bench pareto``: every policy on every task at equal cost, in one command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabes._core import InputError
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
from tabes.figure_file import check_drawing

RESULTS = "slices.jsonl"


def configure(bench: argparse.ArgumentParser) -> None:
    bench.description = "Compare decoders at equal cost."
    kinds = bench.add_subparsers(metavar="BENCHMARK", required=True)
    command = kinds.add_parser(
        "pareto",
        help="quality over cost for every policy, on every task",
        description="Runs every policy at many settings on every task, keeps each example's "
        "outcome and cost, and writes tables, figures and JSON that compare them at equal "
        "forward-equivalents and at equal wall-clock time.",
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    command.add_argument("--tasks", metavar="T[,T...]", help=f"only these of {', '.join(TASKS)}")
    command.add_argument("--plan", metavar="FILE", help="what to measure (the package's plan.json)")
    command.add_argument("--quick", action="store_true", help="few examples: does everything run?")
    command.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="at most so many of every task (the plan's; --resume adds more later)",
    )
    command.add_argument("--resume", action="store_true", help="go on with the results in DIR")
    command.add_argument(
        "--report-only", action="store_true", help="write the report of what DIR has, run nothing"
    )
    command.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes of one thread (2; 0: none)",
    )
    command.add_argument("--sudoku-4x4", metavar="FILE", help="the public puzzles, as CSV")
    command.add_argument("--countdown", metavar="FILE", help="the public questions, as JSON lines")
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a checkpoint in place of the bundled moses, sudoku or countdown, or of rxnfp",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
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
