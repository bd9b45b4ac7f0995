"""What ``tabes fidelity`` does once its arguments are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tabes._core import BoE, InputError
from tabes.arguments import seed_of_draws
from tabes.command_line import load_model, print_json
from tabes.fidelity import Fidelity, Setting, fidelity, mask_at_random
from tabes.figure_file import check_figure, plain_style, save_figure
from tabes.files import text_lines
from tabes.model import Model
from tabes.policies import make_policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints and draws as the command line asked; returns the exit code."""
    seed_of_draws(arguments.seed, "--seed")
    if arguments.out is not None:
        check_figure(arguments.out)  # before minutes of measuring
    policies = _policies(arguments)
    model = load_model(arguments)
    texts = _texts(model, arguments)
    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            print(f"\r{done} of {total} texts", end="", file=sys.stderr, flush=True)

    found = fidelity(
        model,
        texts,
        None if policies is None else [Setting.of(p, model.keeps_context) for p in policies],
        n_candidates=arguments.candidates,
        seed=arguments.seed,
        progress=progress,
    )
    if show:
        print(file=sys.stderr)
    if arguments.json:
        print_json({"texts": len(found[0].correlations), "settings": [f.to_dict() for f in found]})
    else:
        print(f"{len(found[0].correlations)} texts, {arguments.candidates} candidates each")
        print(f"{'':<54} rank       95 %         forward   nats,")
        print(f"{'setting':<54} corr.    interval       passes   predicted  true")
        for f in found:
            print(
                f"{f.setting.label:<54} {f.mean:5.3f}  {f.low:6.3f} {f.high:6.3f} {f.cost:9.2f}"
                f"   {f.predicted:9.2f} {f.true:5.2f}"
            )
    if arguments.out is not None:
        draw(found, Path(arguments.out), f"{model.info.family}, {len(texts)} texts")
    return 0


def _policies(arguments: argparse.Namespace) -> list[BoE] | None:
    if arguments.policy is None:
        return None
    policies = []
    for written in arguments.policy:
        policy = make_policy(written)
        if not isinstance(policy, BoE):
            raise InputError(f"--policy {written}: only those of boe have influence scores")
        policies.append(policy)
    return policies


def _texts(model: Model, arguments: argparse.Namespace) -> list[torch.Tensor]:
    if not 0 < arguments.mask_rate <= 1:
        raise InputError(f"--mask-rate {arguments.mask_rate}: it must be above 0 and at most 1")
    if arguments.texts < 1 or arguments.candidates < 2:
        raise InputError("--texts must be at least 1 and --candidates at least 2")
    if model.tokenizer is None:
        raise InputError(f"{arguments.model} has no tokenizer, which texts need")
    out: list[torch.Tensor] = []
    for number, line in enumerate(text_lines(arguments.data), 1):
        if len(out) == arguments.texts:
            break
        if not line:
            continue
        tokens = torch.tensor(model.tokenizer.encode(line), device="cpu")
        if not bool((tokens == model.info.mask_token_id).any()):
            after = 1
            if arguments.mask_after:
                head, found, _ = line.partition(arguments.mask_after)
                if not found:
                    raise InputError(
                        f"{arguments.data}, line {number}: it does not hold "
                        f"--mask-after {arguments.mask_after!r}"
                    )
                # The frame's last token is not part of the beginning.
                after = len(model.tokenizer.encode(head + found)) - 1
            seed = (arguments.seed + len(out)) % 2**64
            tokens = mask_at_random(model, [tokens], arguments.mask_rate, seed, after)[0]
        out.append(tokens)
    if not out:
        raise InputError(f"{arguments.data}: it holds no texts")
    return out


def draw(found: Sequence[Fidelity], path: Path, title: str) -> None:
    """Fidelity with its interval for every setting, over the cost in forward passes."""
    check_figure(path)
    with plain_style():
        save_figure(_figure(found, title), path)


def _figure(found: Sequence[Fidelity], title: str) -> Figure:
    from matplotlib.figure import Figure

    ordered = sorted(found, key=lambda f: f.mean)
    figure = Figure(figsize=(8.5, 0.28 * len(ordered) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for y, f in enumerate(ordered):
        colour = {"frozen": "tab:blue"}.get(
            f.setting.context, "tab:orange" if f.setting.adjoint == "dense" else "tab:green"
        )
        axes.errorbar(
            f.mean, y, xerr=[[f.mean - f.low], [f.high - f.mean]], fmt="o", color=colour, capsize=2
        )
        axes.annotate(
            f"{f.cost:.2f}", (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axes.annotate("forward\npasses", (1.02, 1.0), xycoords="axes fraction", fontsize=8)
    axes.set_yticks(range(len(ordered)), [f.setting.label for f in ordered], fontsize=8)
    axes.axvline(0, color="0.8", linewidth=1)
    axes.set_xlabel("rank correlation of influence scores with the true fall of entropy")
    axes.set_title(title, fontsize=9)
    return figure
