"""Whole decodes of the random model: rows selected on the host or the device, passes eager or
replayed as CUDA graphs, full and frozen passes; and how well cheap gradients agree with dear ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tabes
import torch
from benchmark_report import Bench, Entry, Work, paired
from benchmark_steps import Point, add_rows, steered
from model_shape import MASK
from torch import Tensor

STEPS = 4


@dataclass(frozen=True)
class Way:
    """Where rows are selected, and whether passes are replayed."""

    on_device: bool
    replayed: bool

    def __str__(self) -> str:
        return ("device" if self.on_device else "host") + (", replayed" if self.replayed else "")

    @property
    def warmups(self) -> int:
        return 3 if self.replayed else 1


def ways(on_gpu: bool) -> list[Way]:
    """On the CPU nothing is recorded."""
    recorded = (False, True) if on_gpu else (False,)
    return [Way(on_device, replayed) for on_device in (False, True) for replayed in recorded]


def note(bench: Bench, section: str, variants: dict[str, Entry], **sizes: object) -> None:
    """With the ratios that matter: replayed passes to eager ones, steered steps to plain ones."""
    result = bench.note(section, variants, "plain, host", **sizes)
    known = {name: entry for name, entry in variants.items() if "failed" not in entry}
    result["replayed_over_eager"] = {
        name: paired(known[f"{name}, replayed"], entry)
        for name, entry in known.items()
        if f"{name}, replayed" in known
    }
    result["steered_over_plain"] = {
        name: paired(entry, known[f"plain, {way}"])
        for name, entry in known.items()
        for kind, way in [name.split(", ", 1)]
        if kind != "plain" and f"plain, {way}" in known
    }
    for what in ("replayed_over_eager", "steered_over_plain"):
        for name, ratio in result[what].items():
            print(f"    {what.replace('_', ' ')}, {name}: {ratio:.3f}")


def decode(
    model: tabes.Model, tokens: list[Tensor], policy: str | tabes.Policy, refresh_every: int,
    way: Way,
) -> tabes.GenerateOutput:  # fmt: skip
    return tabes.generate(
        model, tokens, steps=STEPS, policy=policy, refresh_every=refresh_every,
        on_device=way.on_device, cuda_graphs=way.replayed,
    )  # fmt: skip


def seconds_of_a_step(output: tabes.GenerateOutput) -> float:
    return output.seconds / len(output.trace)


def decodes(bench: Bench, model: tabes.Model, wanted: list[tuple[Point, int]]) -> None:
    """Time a step. The probes are the candidates, a quarter of the sequence, or, as in the steps
    above, a quarter beside three candidates; in the last step, which has no choice, nothing is
    steered."""
    for point, refresh_every in wanted:
        if bench.late():
            return
        tokens = point.tokens()
        policies: dict[str, str | tabes.Policy] = {
            "plain": "confidence",
            "BoE": tabes.BoE(factor=0.0, n_candidates=int(point.share * point.length)),
        }
        if refresh_every == 1:
            policies["ranked probes"] = steered(point.canvas())
        works = {
            f"{kind}, {way}": Work(
                partial(decode, model, tokens, policy, refresh_every, way),
                way.warmups,
                seconds=seconds_of_a_step,
            )
            for kind, policy in policies.items()
            for way in ways(bench.on_gpu)
        }
        variants, last = bench.compare(f"decode {point}", works, least=2)
        add_rows(variants, last)
        note(bench, "decode", variants, **point.sizes(), steps=STEPS, refresh_every=refresh_every)


def decode_points(on_gpu: bool) -> list[tuple[Point, int]]:
    if not on_gpu:
        return [(Point(1, 64, 0.25), 1), (Point(1, 64, 0.25), STEPS), (Point(8, 64, 0.25), 1)]
    sizes = [Point(1, 1024, 0.25), Point(1, 512, 0.25), Point(8, 1024, 0.25)]
    return [(point, refresh) for point in sizes for refresh in (1, STEPS)]


def continuation(length: int, masks: int) -> list[Tensor]:
    """A canvas whose end is to be written."""
    tokens = torch.randint(200, 900, (length,), generator=torch.Generator().manual_seed(7))
    tokens[-masks:] = MASK
    return [tokens]


def short_passes(bench: Bench, model: tabes.Model) -> None:
    """A pass over 64 rows in a frozen context, the second step of a decode whose first alone is
    full; selection by the host and its wait for the device are in it. Predicted: 5.5-7 ms
    replayed."""
    length, masks = (1024, 64) if bench.on_gpu else (64, 16)
    tokens = continuation(length, masks)
    works = {
        f"plain, {way}": Work(
            partial(decode, model, tokens, "confidence", 0, way),
            way.warmups,
            seconds=lambda output: float(output.trace[1].seconds),
        )
        for way in ways(bench.on_gpu)
        if not way.on_device
    }
    variants, last = bench.compare("short passes", works, seconds=1.0)
    add_rows(variants, last)
    note(bench, "short pass", variants, B=1, L=length, rows=masks)


def cached_steps(
    model: tabes.Model, tokens: list[Tensor], policy: str | tabes.Policy, block: int, way: Way,
) -> tabes.GenerateOutput:  # fmt: skip
    """By two decodes of different numbers of steps, both with one full pass; the longer one, its
    seconds those of a step."""
    blocks = int((tokens[0] == MASK).sum()) // block
    short, long = (
        tabes.generate(
            model, tokens, steps=steps * blocks, block_length=block, refresh_every=0,
            policy=policy, on_device=way.on_device, cuda_graphs=way.replayed,
        )
        for steps in (4, 8)
    )  # fmt: skip
    return replace(long, seconds=(long.seconds - short.seconds) / (4 * blocks))


def block_cached(bench: Bench, model: tabes.Model) -> None:
    """A prompt of which two blocks are written, their rows alone computed after the first pass.
    Predicted: steering from all rows of a block costs 3.1-3.2 plain steps."""
    length, block = (1024, 32) if bench.on_gpu else (64, 8)
    tokens = continuation(length, 2 * block)
    policies: dict[str, str | tabes.Policy] = {
        "plain": "confidence",
        "BoE": tabes.BoE(factor=0.0, n_candidates=block),
    }
    works = {
        f"{kind}, {way}": Work(
            partial(cached_steps, model, tokens, policy, block, way),
            way.warmups,
            seconds=lambda output: float(output.seconds),
        )
        for kind, policy in policies.items()
        for way in ways(bench.on_gpu)
    }
    variants, last = bench.compare("block-cached", works)
    add_rows(variants, last)
    note(bench, "block-cached", variants, B=1, L=length, block=block)


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Pairs in the same order less pairs in the other, of all pairs."""
    above = torch.ones(len(a), len(a), dtype=torch.bool).triu(1)
    signs = (a[:, None] - a).sign() * (b[:, None] - b).sign()
    return float(signs[above].mean())


def overlap(a: Tensor, b: Tensor, count: int) -> float:
    """The share of a's `count` largest that are among b's."""
    first, second = (set(t.topk(count).indices.tolist()) for t in (a, b))
    return len(first & second) / count


def agreement(given: Tensor, truth: Tensor) -> Entry:
    return {
        "relative_error": float((given - truth).norm() / truth.norm()),
        "kendall_tau": kendall_tau(given, truth),
        "top_8_overlap": overlap(given, truth, 8),
    }


def gradients(bench: Bench, model: tabes.Model, folder: Path) -> None:
    """Influence scores of 64 candidates on 64 probes, L = 512, by the frozen context against the
    exact one, 16 bits against 32, ActiveQueryAttention against the ordinary gradient."""
    point = Point(1, 512 if bench.on_gpu else 64, 0.25)
    tokens = point.tokens()
    masked = torch.nonzero(tokens[0] == MASK)[:, 0].tolist()
    half = min(64, len(masked) // 2)
    candidates, probes = masked[: 2 * half : 2], masked[1 : 2 * half : 2]

    def scores(of: tabes.Model, context: str, adjoint: str = "active") -> Tensor:
        result = tabes.influence(
            of, tokens, [candidates], [probes], context=context, adjoint=adjoint
        )
        return result.tis[0]

    def load(dtype: str) -> tabes.Model:
        same = model.info.dtype == dtype
        return model if same else tabes.load(folder, device=bench.device, dtype=dtype)

    found: dict[str, Tensor] = {}
    for dtype in ("bfloat16", "float32"):
        one = load(dtype)
        for context in ("frozen", "exact"):
            found[f"{dtype} {context}"] = scores(one, context)
        found[f"{dtype} dense"] = scores(one, "exact", "dense")
        del one
        bench.free_memory()
    pairs = [(f"{dtype} {kind}", f"{dtype} exact") for dtype in ("bfloat16", "float32")
             for kind in ("frozen", "dense")]  # fmt: skip
    pairs += [(f"bfloat16 {kind}", f"float32 {kind}") for kind in ("frozen", "exact", "dense")]
    pairs.append(("bfloat16 frozen", "float32 exact"))
    compared = {f"{a} against {b}": agreement(found[a], found[b]) for a, b in pairs}
    print(f"gradients    L={point.length} candidates={half} probes={half}")
    for name, entry in compared.items():
        print(
            f"    {name:<38} error {entry['relative_error']:.3f}  Kendall tau "
            f"{entry['kendall_tau']:.3f}  top 8 shared {entry['top_8_overlap']:.2f}"
        )
    bench.results.append(
        {"section": "gradients", "L": point.length, "candidates": half, "compared": compared}
    )
