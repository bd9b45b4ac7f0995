"""Single steps of the random model: plain, steered with a frozen or an exact context, with the
dense adjoint, and by PyTorch's autograd; eager and replayed as CUDA graphs; deterministic."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import tabes
import torch
from benchmark_report import Bench, Entry, Work
from model_shape import MASK, NaiveSteps, Shape
from roofline import Canvas, Model
from torch import Tensor

CANDIDATES = 3


@dataclass(frozen=True)
class Point:
    """B canvases of L rows, half of them masked; this share of rows is active in a steered step."""

    batch: int
    length: int
    share: float

    def canvas(self) -> Canvas:
        probes = max(1, int(self.share * self.length) - CANDIDATES)
        return Canvas(self.batch, self.length, self.length // 2, CANDIDATES, probes)

    def tokens(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.length)
        tokens = []
        for _ in range(self.batch):
            own = torch.randint(200, 900, (self.length,), generator=generator)
            own[torch.randperm(self.length, generator=generator)[: self.length // 2]] = MASK
            tokens.append(own)
        return tokens

    def sizes(self) -> Entry:
        return {"B": self.batch, "L": self.length, "rho": self.share}


def points(on_gpu: bool) -> list[Point]:
    """The most telling first: L = 1024, a quarter of the rows active."""
    if not on_gpu:
        return [Point(8, 64, 0.25), Point(1, 64, 0.25), Point(1, 64, 0.5)]
    every = [
        Point(batch, length, share)
        for batch in (8, 1)
        for length in (1024, 512, 2048)
        for share in (0.25, 0.5, 0.125, 0.0625)
    ]
    return sorted(every, key=lambda p: 2 * (p.length != 1024) + (p.share != 0.25))


def steered(canvas: Canvas, **options: str) -> tabes.BoE:
    """As many candidates, and probes beside them, in every step; drafts as in the naive step."""
    return tabes.BoE(
        n_candidates=canvas.candidates,
        probes="least_entropic",
        rho=canvas.probes / canvas.length,
        draft="expected",
        factor=0.0,
        context=options.get("context", "frozen"),
        adjoint=options.get("adjoint", "active"),
    )


def first_step(
    model: tabes.Model, tokens: list[Tensor], policy: str | tabes.Policy, replayed: bool = False
) -> tabes.GenerateOutput:
    """A decode that the callback stops after one step, which the host selects."""
    return tabes.generate(
        model,
        tokens,
        steps=int((tokens[0] == MASK).sum()),
        policy=policy,
        callback=lambda *_: False,
        cuda_graphs=replayed,
    )


def add_rows(variants: dict[str, Entry], last: dict[str, object]) -> None:
    """What the last run before the timed ones computed, and how much of it was replayed."""
    for name, output in last.items():
        if isinstance(output, tabes.GenerateOutput):
            rows = [output.forward_rows, output.backward_rows, output.head_rows]
            variants[name] |= {"replayed_passes": output.replayed_passes, "rows": rows}


def naive(bench: Bench, shape: Shape, weights: dict[str, Tensor]) -> None:
    """PyTorch's steps on the same weights, all sequences of a batch at once; the share of active
    rows changes nothing but the probes' logits. Predicted: 3.2 plain forward passes."""
    costs = Model(shape, 2 if bench.on_gpu else 4)
    for point in points(bench.on_gpu):
        if point.share != 0.25:
            continue
        if bench.late():
            return
        canvas = point.canvas()
        step = NaiveSteps(shape, weights, torch.stack(point.tokens()).to(bench.device))
        works = {
            "PyTorch plain": Work(step.plain, 1, costs.step("plain", canvas)),
            "PyTorch naive": Work(
                partial(step.steered, canvas.candidates, canvas.probes),
                1,
                costs.step("naive", canvas),
            ),
        }
        variants, last = bench.compare(f"naive {point}", works, seconds=2.0)
        last.clear()
        bench.note("naive", variants, "PyTorch plain", **point.sizes())
        bench.free_memory()


def steps(bench: Bench, shape: Shape, model: tabes.Model, wanted: list[Point]) -> None:
    """Predicted at B = 1, L = 1024, rho 0.25: forward 25.8 ms, exact at most 2.6 plain steps."""
    costs = Model(shape, 2 if bench.on_gpu else 4)
    for point in wanted:
        if bench.late():
            return
        canvas, tokens = point.canvas(), point.tokens()
        policies: dict[str, str | tabes.Policy] = {
            "plain": "confidence",
            "frozen": steered(canvas),
            "exact": steered(canvas, context="exact"),
        }
        works = {
            name: Work(partial(first_step, model, tokens, p), 1, costs.step(name, canvas))
            for name, p in policies.items()
        }
        # Many rows leave the host time enough: whether it must launch every kernel tells nothing.
        telling = point.batch == 1 or point.share == 0.25
        if telling:
            dense = steered(canvas, context="exact", adjoint="dense")
            works["dense"] = Work(
                partial(first_step, model, tokens, dense), 1, costs.step("dense", canvas)
            )
        for name, policy in policies.items() if bench.on_gpu and telling else ():
            works[f"{name}, replayed"] = Work(
                partial(first_step, model, tokens, policy, True), 3, costs.step(name, canvas)
            )
        variants, last = bench.compare(
            f"step {point}", works, seconds=4.0 if point.share == 0.25 else 2.0
        )
        add_rows(variants, last)
        result = bench.note("step", variants, "plain", **point.sizes())
        compare_backward(bench, costs, canvas, result)
        compare_naive(bench, point, result)
        for name in ("plain", "plain, replayed"):
            entry = variants.get(name, {})
            if bench.ceilings and "median" in entry:
                speed = costs.step("plain", canvas).flops / entry["median"]
                entry["share_of_gemm"] = speed / bench.ceilings.flops
                print(f"    {name}: {entry['share_of_gemm']:.1%} of a GEMM's speed")


def compare_backward(bench: Bench, costs: Model, canvas: Canvas, result: Entry) -> None:
    """What an exact or dense step takes beyond its two forward passes."""
    variants: dict[str, Entry] = result["variants"]
    if any("failed" in variants.get(name, {"failed": ""}) for name in ("plain", "exact", "dense")):
        return
    plain = variants["plain"]["seconds"]
    found: Entry = {}
    for name, active in (("exact", canvas.active), ("dense", canvas.length)):
        rest = [a - 2 * b for a, b in zip(variants[name]["seconds"], plain, strict=False)]
        found[name] = {"seconds": float(statistics.median(rest))}
        if bench.ceilings:
            floor = costs.adjoint(canvas, active, canvas.probes).seconds(bench.ceilings)
            found[name] |= {"floor": floor, "over_floor": found[name]["seconds"] / floor}
    row_sparse, dense = found["exact"]["seconds"], found["dense"]["seconds"]
    found["row_sparse_over_dense"] = row_sparse / dense if dense > 0 else None
    result["backward"] = found
    print(
        f"    backward: row-sparse {row_sparse * 1e3:.2f} ms, dense {dense * 1e3:.2f} ms"
        + "".join(f", {k} {found[k].get('over_floor', 0):.2f} x floor" for k in ("exact", "dense"))
    )


def compare_naive(bench: Bench, point: Point, result: Entry) -> None:
    """PyTorch's naive step in our plain steps; the two were not timed in turns."""
    plain = result["variants"]["plain"]
    for other in bench.find("naive", B=point.batch, L=point.length):
        entry = other["variants"]["PyTorch naive"]
        if "median" in entry and "median" in plain:
            result["naive_over_plain"] = entry["median"] / plain["median"]
            print(f"    PyTorch naive: {result['naive_over_plain']:.2f} x plain")


def deterministic_step(
    model: tabes.Model, tokens: list[Tensor], policy: str | tabes.Policy
) -> tabes.GenerateOutput:
    # An operator of PyTorch's that cannot be deterministic warns: this is about time, and whether
    # bits repeat is for parity.py to say. Nor is memory filled that nobody reads.
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False
    try:
        return first_step(model, tokens, policy)
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic(bench: Bench, model: tabes.Model) -> None:
    """Without FlashAttention-2's backward, which is not."""
    for point in points(bench.on_gpu)[:5]:
        if point.share != 0.25 or bench.late():
            continue
        canvas, tokens = point.canvas(), point.tokens()
        works = {}
        for context in ("frozen", "exact"):
            policy = steered(canvas, context=context)
            works[context] = Work(partial(first_step, model, tokens, policy))
            works[f"{context}, deterministic"] = Work(
                partial(deterministic_step, model, tokens, policy)
            )
        variants, _ = bench.compare(f"deterministic {point}", works, seconds=2.0)
        for context in ("frozen", "exact"):
            pair = {k: v for k, v in variants.items() if k.startswith(context)}
            bench.note("deterministic", pair, context, context=context, **point.sizes())
