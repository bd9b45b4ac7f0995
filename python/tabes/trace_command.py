"""``tabes trace``: drawings of decodes that ``tabes generate --trace`` wrote."""

from __future__ import annotations

import argparse
import sys

from tabes import trace as tracing
from tabes.errors import InputError
from tabes.figure_file import FIGURE_TYPES, check_figure

# Of drawings that go to a file or a pipe, which have no width of their own.
_PLAIN_WIDTH = 160


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Draw a decode that generate --trace wrote: in the terminal, or as a figure."
    )
    command.add_argument("file", metavar="FILE", help="what generate --trace wrote; - for stdin")
    command.add_argument(
        "--out",
        "-o",
        metavar="FIGURE",
        help=f"a file to make that ends in {', '.join(FIGURE_TYPES)} (needs matplotlib)",
    )
    command.add_argument(
        "--sequence", type=int, default=0, metavar="N", help="which of a batch, from 0 (0)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        check_figure(arguments.out)
    decodes = tracing.read(arguments.file)
    if not 0 <= arguments.sequence < len(decodes):
        raise InputError(
            f"--sequence {arguments.sequence}: {arguments.file} has {len(decodes)} sequences, "
            "counted from 0"
        )
    decode = decodes[arguments.sequence]
    if arguments.out is not None:
        tracing.draw(decode, arguments.out)
        print(arguments.out)
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print(tracing.render(decode, console.width))
    return 0
