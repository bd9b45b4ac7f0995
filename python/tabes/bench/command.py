"""``tabes bench pareto``: every policy on every task at equal cost, in one command."""

from __future__ import annotations

import argparse

from tabes.bench.suite import TASKS


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
    from tabes.bench.run import run

    return run(arguments)
