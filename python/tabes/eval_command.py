"""``tabes eval``: public tasks on a checkpoint, with exact cost and paired outcomes."""

from __future__ import annotations

import argparse
from typing import Any

from tabes.command_line import add_model
from tabes.eval_choices import PRESETS, TASKS


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Run tasks on a checkpoint and write outcomes and results with their exact "
        "cost. Started again with the same arguments it goes on where it stopped. With "
        "lm-evaluation-harness and its tasks: python -m tabes.harness --help."
    )
    add_model(command)
    command.add_argument(
        "--tasks", "-t", required=True, metavar="NAMES", help=f"of {', '.join(TASKS)}"
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
    group.add_argument("--code-seconds", type=float, default=argparse.SUPPRESS, metavar="S")
    group.add_argument("--code-memory", type=int, default=argparse.SUPPRESS, metavar="MIB")
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
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def _run(arguments: argparse.Namespace) -> int:
    from tabes.evaluation.command import run

    return run(arguments)
