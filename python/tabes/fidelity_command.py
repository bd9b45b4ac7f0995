"""``tabes fidelity``: how well influence scores predict the truth, for any checkpoint and texts."""

from __future__ import annotations

import argparse

from tabes.command_line import add_model


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Measures the rank correlation of token influence scores with the true fall of "
        "entropy when a position is revealed, for many settings, beside their cost in forward "
        "passes."
    )
    add_model(command)
    command.add_argument(
        "data",
        metavar="DATA",
        help="texts, one a line (empty lines are none); masks in them are kept, else some are made",
    )
    command.add_argument(
        "--texts", type=int, default=120, metavar="N", help="how many of the texts (120)"
    )
    command.add_argument(
        "--mask-rate", type=float, default=0.5, metavar="R", help="share of positions masked (0.5)"
    )
    command.add_argument(
        "--mask-after", default="", metavar="TEXT", help="mask only behind this, as '>>'"
    )
    command.add_argument("--candidates", type=int, default=5, metavar="N", help="drawn a text (5)")
    command.add_argument("--seed", type=int, default=0, help="of masks and candidates (0)")
    command.add_argument(
        "--policy",
        action="append",
        metavar="POLICY",
        help="measure the score of this policy, as 'boe(alpha=0.25, 0.5; context=exact)', instead "
        "of the usual list; repeat it",
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.add_argument("--out", metavar="FIGURE", help="draw a figure (.svg, .png)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tabes.fidelity_report import run

    return run(arguments)
