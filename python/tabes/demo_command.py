"""``tabes demo``: molecules from the bundled model."""

from __future__ import annotations

import argparse
import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

import tabes
from tabes.command_line import add_output, add_policy, print_json, view
from tabes.errors import InputError

if TYPE_CHECKING:
    from tabes.output import GenerateOutput

# The molecules that the bundled model learned from: tokens without frame, mean and deviation.
_LENGTH_MEAN, _LENGTH_DEVIATION, _LENGTH_RANGE = 35.4, 4.5, (13, 50)
# Few enough that the order matters: at one token a step the bundled model is nearly always right.
_COMPARISON_STEPS = 12
_DRAWING_TEMPERATURE = 0.7
_MOST_MOLECULES = 10_000  # they are one batch


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Decode molecules (SMILES) with the bundled model, from nothing but masks. "
        "Without --policy the same canvases are decoded by confidence and by BoE in as many steps, "
        "then by confidence at BoE's cost. With RDKit installed each is marked valid or invalid."
    )
    command.add_argument("--number", "-n", type=int, default=8, help="how many molecules (8)")
    command.add_argument(
        "--length", type=int, metavar="L", help="their tokens (as the training data's, 13 to 50)"
    )
    command.add_argument(
        "--steps",
        type=int,
        help=f"denoising steps ({_COMPARISON_STEPS}; with --policy as many as tokens)",
    )
    add_policy(command, None, "confidence and boe, compared")
    command.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    command.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"(0, where the order alone makes the difference; with --policy "
        f"{_DRAWING_TEMPERATURE})",
    )
    add_output(command)
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    for option, value in (("--number", arguments.number), ("--length", arguments.length)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: it must be at least 1")
    from tabes.inputs import prepare

    policy = None if arguments.policy is None else tabes.make_policy(arguments.policy)
    model = tabes.load("moses")
    # Of the model's positions two are the frame's.
    most = {"--number": _MOST_MOLECULES, "--length": model.info.max_length - 2}
    for option, value in (("--number", arguments.number), ("--length", arguments.length)):
        if value is not None and value > most[option]:
            raise InputError(f"{option} {value}: it must be at most {most[option]}")
    lengths = _lengths(arguments)
    prompts, longest = ["[MASK]" * length for length in lengths], max(lengths)
    starts = prepare(model, prompts).sequences
    runs: list[dict[str, Any]] = []

    def run(
        policy: str | tabes.Policy, steps: int, default: float, name: str, note: str = ""
    ) -> GenerateOutput:
        with view(model, arguments, name) as watched:
            watched.start(starts)
            output = tabes.generate(
                model,
                prompts,
                steps=steps,
                policy=policy,
                temperature=default if arguments.temperature is None else arguments.temperature,
                seed=arguments.seed,
                callback=watched,
            )
        smiles = output.texts or []
        valid = _validity(smiles)
        runs.append({"smiles": smiles, "valid": valid, **output.to_dict()})
        if not arguments.json:
            print(f"# {name}{note}")
            for i, text in enumerate(smiles):
                print(text if valid is None else f"{text}\t{'valid' if valid[i] else 'invalid'}")
            print(f"# {_summary(output, valid)}", flush=True)
        return output

    if policy is not None:
        steps = longest if arguments.steps is None else arguments.steps
        run(policy, steps, _DRAWING_TEMPERATURE, arguments.policy)
    else:
        steps = _COMPARISON_STEPS if arguments.steps is None else arguments.steps
        run("confidence", steps, 0.0, "confidence")
        steered = run("boe", steps, 0.0, "boe")
        # Gradients cost as much as steps do, so the same steps alone would flatter them.
        same_cost = round(steered.forward_equivalents)
        if len(steered.trace) < same_cost:
            run("confidence", same_cost, 0.0, "confidence", " at the cost of boe")
    if arguments.json:
        print_json({"runs": runs})
    return 0


def _lengths(arguments: argparse.Namespace) -> list[int]:
    if arguments.length is not None:
        return [arguments.length] * arguments.number
    draw = random.Random(arguments.seed)
    low, high = _LENGTH_RANGE
    return [
        min(max(round(draw.gauss(_LENGTH_MEAN, _LENGTH_DEVIATION)), low), high)
        for _ in range(arguments.number)
    ]


def _validity(smiles: list[str]) -> list[bool] | None:
    """Whether RDKit can read each SMILES, None if it is not installed."""
    try:
        chem, log = import_module("rdkit.Chem"), import_module("rdkit.RDLogger")
    except ImportError:
        return None
    log.DisableLog("rdApp.*")
    return [bool(text) and chem.MolFromSmiles(text) is not None for text in smiles]


def _summary(output: GenerateOutput, valid: list[bool] | None) -> str:
    count = len(output.texts or [])
    judged = (
        f"{count} molecules; pip install rdkit to check them"
        if valid is None
        else f"{sum(valid)} of {count} valid (RDKit)"
    )
    return (
        f"{judged}; {len(output.trace)} steps, {output.forward_equivalents:.1f} "
        f"forward-equivalents, {output.seconds:.2f} s"
    )
