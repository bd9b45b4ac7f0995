"""``tabes eval``: public tasks on a checkpoint, with exact cost and paired outcomes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabes._core import InputError
from tabes.command_line import add_model, load_model, print_json
from tabes.evaluation.data import Data, read_file
from tabes.evaluation.execution import Limits
from tabes.evaluation.runner import Progress, Report, evaluate, prepare
from tabes.evaluation.settings import PRESETS, Settings
from tabes.evaluation.suite import task_names
from tabes.evaluation.tasks import Prompting
from tabes.files import read_text


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Run tasks on a checkpoint and write outcomes and results with their exact "
        "cost. Started again with the same arguments it goes on where it stopped. With "
        "lm-evaluation-harness and its tasks: python -m tabes.harness --help."
    )
    add_model(command)
    command.add_argument(
        "--tasks", "-t", required=True, metavar="NAMES", help=f"of {', '.join(task_names())}"
    )
    command.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="a .jsonl or .csv file with the fields of the task's public data; without it that "
        "data comes from the Hugging Face hub (sudoku: from a generator)",
    )
    command.add_argument("--out", "-o", metavar="FOLDER", help="(tabes-eval/CHECKPOINT)")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="(1)")
    command.add_argument("--json", action="store_true", help="the results on stdout")
    _add_settings(command)
    _add_prompting(command)
    group = command.add_argument_group("tasks that run programs of the model")
    group.add_argument(
        "--allow-code-execution", action="store_true", help="allow it; best in a container"
    )
    group.add_argument("--code-seconds", type=float, default=Limits.seconds, metavar="S")
    group.add_argument("--code-memory", type=int, default=Limits.memory_mib, metavar="MIB")
    command.set_defaults(run=_run)


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("decoding", "what is not given comes from the preset")
    group.add_argument(
        "--preset",
        default="paper",
        choices=list(PRESETS),
        help="paper: 256 tokens, 128 steps, blocks of 32 (default); one-a-step: 256 steps",
    )

    def add(*names: str, **keywords: Any) -> None:
        group.add_argument(*names, default=argparse.SUPPRESS, **keywords)

    add("--gen-length", "--max-new-tokens", type=int, metavar="N")
    add("--steps", type=int, metavar="N")
    add("--block-length", "--block-size", type=_block, metavar="N", help="a number, or none")
    add(
        "--refresh-every",
        type=int,
        metavar="N",
        help="a full forward pass every N steps only, 0: in the first (1)",
    )
    add(
        "--policy",
        "--alg",
        "--remasking",
        metavar="POLICY",
        help="which positions come first, as confidence or 'boe(alpha=0.25, 0.5; n_candidates=3x)'",
    )
    add("--temperature", type=float, metavar="T")
    add("--top-p", type=float, metavar="P")
    add("--top-k", type=int, metavar="K")
    add("--cfg-scale", type=float, metavar="S")
    add("--seed", type=int)
    add(
        "--forbid",
        action="append",
        dest="forbidden",
        metavar="TOKEN",
        help="a token never to write, by name or id; repeat it",
    )
    add("--allow-special", action="store_true", help="write special tokens such as [UNK] too")
    add("--logits-eos-inf", action="store_true", help="never write end tokens")
    add("--confidence-eos-eot-inf", action="store_true", help="reveal end tokens last")


def _add_prompting(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("prompts", "each of these changes the protocol's name")
    group.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="use the checkpoint's chat template (if it has one)",
    )
    group.add_argument("--template", metavar="FILE", help="text with {question} where that goes")
    group.add_argument("--prefill", metavar="TEXT", help="what the reply starts with")
    group.add_argument("--shots", type=int, metavar="N", help="worked examples (sudoku: 5)")


def _block(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _run(arguments: argparse.Namespace) -> int:
    # All input is read first: a large model is not loaded only to complain about a file.
    names = [name for name in arguments.tasks.replace(",", " ").split() if name]
    prompting = Prompting(
        arguments.chat, _template(arguments.template), arguments.prefill, arguments.shots
    )
    limits = Limits(arguments.code_seconds, arguments.code_memory)
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
