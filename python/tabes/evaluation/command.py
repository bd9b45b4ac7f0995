"""What ``tabes eval`` does once its arguments are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabes.command_line import load_model, print_json
from tabes.errors import InputError
from tabes.evaluation.data import Data, read_file
from tabes.evaluation.execution import Limits
from tabes.evaluation.runner import Progress, Report, evaluate, prepare
from tabes.evaluation.settings import PRESETS, Settings
from tabes.evaluation.suite import task_names
from tabes.evaluation.tasks import Prompting
from tabes.files import read_text


def run(arguments: argparse.Namespace) -> int:
    """Runs what the command line asked for; returns the exit code."""
    # All input is read first: a large model is not loaded only to complain about a file.
    names = [name for name in arguments.tasks.replace(",", " ").split() if name]
    prompting = Prompting(
        arguments.chat, _template(arguments.template), arguments.prefill, arguments.shots
    )
    limits = _limits(arguments)
    prepare(names, prompting, limits, arguments.allow_code_execution)
    settings = _settings(arguments)
    data = _data(arguments.data, names)
    model = load_model(arguments)
    out = (
        Path("tabes-eval") / Path(arguments.model).resolve().name
        if arguments.out is None
        else Path(arguments.out)
    )
    with _bar() as progress:
        report = evaluate(
            model,
            names,
            settings,
            out,
            data=data,
            prompting=prompting,
            limit=arguments.limit,
            batch_size=arguments.batch_size,
            allow_code_execution=arguments.allow_code_execution,
            limits=limits,
            progress=progress,
        )
    if arguments.json:
        print_json(report.values)
    else:
        _print(report)
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    values: dict[str, Any] = {}
    for name in vars(PRESETS["paper"]):
        if name in arguments:
            values[name] = getattr(arguments, name)
    return Settings.of(values, PRESETS[arguments.preset])


def _limits(arguments: argparse.Namespace) -> Limits:
    given = {"seconds": "code_seconds", "memory_mib": "code_memory"}
    return Limits(**{n: getattr(arguments, o) for n, o in given.items() if o in arguments})


def _template(path: str | None) -> str | None:
    return None if path is None else read_text(path, "--template")


def _data(given: list[str], tasks: list[str]) -> dict[str, Data]:
    """The files by task; with one task its name may be left out."""
    data: dict[str, Data] = {}
    for text in given:
        task, equals, file = text.partition("=")
        if not equals or task not in task_names():
            task, file = tasks[0], text
            if len(set(tasks)) > 1:
                raise InputError(f"--data {text}: with several tasks write TASK={text}")
        if task in data:
            raise InputError(f"--data {text}: {task} has a file already")
        data[task] = read_file(Path(file))
    return data


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar over examples, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        known: dict[str, Any] = {}

        def progress(task: str, done: int, total: int) -> None:
            if task not in known:
                known[task] = bars.add_task(task, total=total, completed=done)
            bars.update(known[task], completed=done)

        yield progress


def _print(report: Report) -> None:
    for name, task in report.values["tasks"].items():
        cost = task["cost"]
        for metric, value in task["metrics"].items():
            print(
                f"{name} {metric} {value['mean']:.4f} "
                f"(95 % interval {value['low']:.4f} to {value['high']:.4f}), "
                f"{task['examples']} examples"
            )
        if task["errors"]:
            print(f"  {task['errors']} replies could not be judged and count as wrong")
        print(f"  protocol: {task['protocol']}")
        print(
            f"  cost: {cost['forward_equivalents']:.2f} forward-equivalents, "
            f"{cost['forward_rows']} forward, {cost['backward_rows']} backward and "
            f"{cost['head_rows']} head rows, {cost['seconds']:.1f} s"
        )
    print(f"{report.results}\n{report.outcomes}")
