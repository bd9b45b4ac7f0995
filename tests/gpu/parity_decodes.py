"""Whole decodes. In float32 every token is the CPU's; in every dtype those that compute the same in
another way on one device write the same tokens; in 16 bits the share of tokens that are not
float32's is held to what plain PyTorch changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tabes
import torch
from attention_cases import attention_route
from naive_model import NaiveModel
from parity_report import Outputs, Report
from torch import Tensor

MASK, STEPS, SEED = 3, 8, 4


@dataclass(frozen=True)
class Case:
    """A decode of CANVASES.

    Attributes:
        counts_known: the schedule says how many tokens a step reveals (Pace::quota). Otherwise the
            host, a step ahead, works with bounds, and rows selected on the device are more rows
            than those selected on the host.
    """

    name: str
    options: dict[str, Any] = field(hash=False)
    counts_known: bool = True


QUOTA = tabes.BoE(factor=0.0)
CASES = [
    Case("confidence", dict(policy="confidence")),
    Case("margin", dict(policy="margin")),
    Case("random", dict(policy="random")),
    Case("random, frozen steps in blocks",
         dict(policy="random", refresh_every=3, block_length=16)),
    Case("factor", dict(policy="factor"), counts_known=False),
    Case("spread", dict(policy="spread"), counts_known=False),
    Case("boe frozen", dict(policy=tabes.BoE()), counts_known=False),
    Case("boe exact", dict(policy=tabes.BoE(context="exact")), counts_known=False),
    Case("boe paper", dict(policy=tabes.BoE.paper())),
    Case("boe, frozen steps", dict(policy=tabes.BoE(), refresh_every=3), counts_known=False),
    Case("boe by quota", dict(policy=QUOTA)),
    Case("boe by quota, frozen steps", dict(policy=QUOTA, refresh_every=3)),
]  # fmt: skip
CANVASES = [torch.tensor([1] + [MASK] * n + [2]) for n in (12, 30, 45)]

# Of these plain PyTorch decodes as well: by the loop of tabes with the module in the place of the
# model, or, where there are gradients, by the written-out decode of the tests.
PLAIN = [
    (policy, temperature)
    for policy in ("confidence", "factor", "spread")
    for temperature in (0.0, 0.7)
]
STEERED = [tabes.BoE(), tabes.BoE(context="exact"), QUOTA]
MORE_CANVASES = [torch.tensor([1] + [MASK] * n + [2]) for n in range(10, 46, 7)]
# A tie that falls the other way changes what is left of its canvas. This share is about two of the
# 54 canvases that are counted, for dtypes in which plain PyTorch meets none.
FEW = 0.03


def decode(model: tabes.Model, case: Case, temperature: float, **how: Any) -> tabes.GenerateOutput:
    return tabes.generate(
        model, CANVASES, steps=STEPS, seed=SEED, temperature=temperature, **case.options, **how
    )


def changed(a: list[Tensor], b: list[Tensor]) -> int:
    return sum(int((x != y).sum()) for x, y in zip(a, b, strict=True))


def different(a: tabes.GenerateOutput, b: tabes.GenerateOutput) -> int:
    return changed(list(a.tokens), list(b.tokens))


def masks(canvases: list[Tensor]) -> int:
    return sum(int((c == MASK).sum()) for c in canvases)


def selections(model: tabes.Model, case: Case) -> dict[str, bool]:
    """Where this case's rows can be selected: on the host, and for most on the device."""
    try:
        tabes.generate(
            model, [MASK] * 4, steps=2, on_device=True, cuda_graphs=False, **case.options
        )
    except tabes.InputError:
        return {"host": False}
    return {"host": False, "device": True}


def decodes(report: Report, dtypes: list[torch.dtype]) -> None:
    on_cpu = tabes.load(tabes.demo_checkpoint())
    for dtype in dtypes:
        there = tabes.load(tabes.demo_checkpoint(), dtype=dtype, device=report.device)
        eager(report, dtype, there, on_cpu)
        allowed = 0.0
        if dtype != torch.float32:
            allowed = against_naive(report, dtype, there, on_cpu)
        if report.device == "cuda":
            graphs(report, dtype, there, allowed)
        else:
            report.leave_out(f"decodes in {dtype} replayed as CUDA graphs", "they need CUDA")


def eager(report: Report, dtype: torch.dtype, there: tabes.Model, on_cpu: tabes.Model) -> None:
    # By our own adjoint: FlashAttention-2's backward adds in any order.
    with attention_route("own"):
        for case in CASES:
            for temperature in (0.0, 0.7) if dtype == torch.float32 else (0.7,):
                name = f"decode {case.name}, temperature {temperature}"
                seen = {}
                for where, on_device in selections(there, case).items():
                    how = dict(on_device=on_device, cuda_graphs=False)
                    seen[where] = decode(there, case, temperature, **how)
                    if dtype == torch.float32:
                        wanted = decode(on_cpu, case, temperature, **how)
                        wrong = different(seen[where], wanted)
                        report.add(f"{name}, {where}: tokens not the CPU's", dtype, wrong, 0)
                # Other numbers of rows round 16 bits otherwise.
                exact = case.counts_known or dtype == torch.float32
                if exact and "device" in seen:
                    wrong = different(seen["device"], seen["host"])
                    report.add(f"{name}: tokens not the host's", dtype, wrong, 0)
        case = next(c for c in CASES if c.options["policy"] is QUOTA)
        for where, on_device in selections(there, case).items():

            def work(case: Case = case, on_device: bool = on_device) -> Outputs:
                return numbers(decode(there, case, 0.7, on_device=on_device, cuda_graphs=False))

            report.again(f"decode {case.name}, {where}", dtype, work(), work)


def numbers(out: tabes.GenerateOutput) -> Outputs:
    """The tokens, and what every step knew of those it revealed."""
    seen = [(r.confidence, r.entropy, r.score, r.influence) for r in out.trace]
    return (*out.tokens, *(torch.cat(column) for column in zip(*seen, strict=True)))


def against_naive(
    report: Report, dtype: torch.dtype, there: tabes.Model, on_cpu: tabes.Model
) -> float:
    """Returns the share of tokens that may differ."""
    naive = NaiveModel(report.device, dtype)
    wrapped = naive.wrapped()
    ours = plain = 0

    def count(wanted: list[Tensor], got: list[Tensor], naively: list[Tensor]) -> None:
        nonlocal ours, plain
        ours += changed(wanted, got)
        plain += changed(wanted, naively)

    for policy, temperature in PLAIN:
        options: dict[str, Any] = dict(
            policy=policy, temperature=temperature, steps=STEPS, seed=SEED
        )
        wanted, got, naively = (
            list(tabes.generate(model, MORE_CANVASES, **options).tokens)
            for model in (on_cpu, there, wrapped)
        )
        count(wanted, got, naively)
    for boe in STEERED:
        wanted, got = (
            list(tabes.generate(model, MORE_CANVASES, policy=boe, steps=STEPS).tokens)
            for model in (on_cpu, there)
        )
        count(wanted, got, [naive.steered_decode(c, STEPS, boe) for c in MORE_CANVASES])
    total = (len(PLAIN) + len(STEERED)) * masks(MORE_CANVASES)
    allowed = max(2 * plain / total, FEW)
    report.add(f"decodes: share of {total} tokens not float32's", dtype, ours / total, allowed)
    return allowed


def graphs(report: Report, dtype: torch.dtype, there: tabes.Model, allowed: float) -> None:
    """Decodes whose third run replays what the second recorded of the shapes that the first saw."""
    wrong = total = 0
    for case in CASES:
        for where, on_device in selections(there, case).items():
            name = f"graphs, {case.name}, {where}"
            # A model of its own, which has recorded nothing.
            model = tabes.load(tabes.demo_checkpoint(), dtype=dtype, device=report.device)
            with attention_route("own"):
                plain = decode(model, case, 0.7, on_device=on_device, cuda_graphs=False)
                first, _, third = (
                    decode(model, case, 0.7, on_device=on_device, cuda_graphs=True)
                    for _ in range(3)
                )
            report.same(f"{name}: as the first run", dtype, numbers(first), numbers(third))
            # Every step has a forward pass, and every steered one a gradient.
            passes = len(third.trace) + sum(r.backward_rows > 0 for r in third.trace)
            missing = max(0, passes - third.replayed_passes)
            report.add(f"{name}: of {passes} passes, not replayed", dtype, missing, 0)
            # With graphs, rows selected on the device are computed in multiples of 32: products of
            # other shapes, which may round otherwise.
            if not on_device or dtype == torch.float32:
                report.add(f"{name}: tokens not those without", dtype, different(third, plain), 0)
            else:
                wrong += different(third, plain)
                total += masks(CANVASES)
    if dtype != torch.float32:
        share = wrong / total if total else 0.0
        report.add(f"graphs: share of {total} tokens not those without", dtype, share, allowed)
