"""What single operators take on the device, with an empty cache: the adjoint of attention by each
route, the statistics of logits, and the vocabulary projection over all rows or the masked ones."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from functools import partial

import torch
from benchmark_report import Bench, Work
from model_shape import Shape
from roofline import Canvas, Cost, Model, Part
from torch import Tensor

ops = torch.ops.tabes
Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass
class Attention:
    """One layer's attention over sequences of `lengths` rows, `active` of them active."""

    name: str
    lengths: list[int]
    active: list[int]
    heads: int = 32
    groups: int = 32
    width: int = 128
    dtype: torch.dtype = torch.bfloat16

    def sizes(self) -> dict[str, object]:
        return {
            "case": self.name, "B": len(self.lengths), "L": max(self.lengths),
            "active": sum(self.active), "heads": self.heads, "groups": self.groups,
            "width": self.width, "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip

    def draw(self, device: str) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator).to(self.dtype)

        self.cu_k = list(itertools.accumulate(self.lengths, initial=0))
        self.cu_q = list(itertools.accumulate(self.active, initial=0))
        self.keys = torch.cat(
            [
                torch.randperm(length, device=device, generator=generator)[:n].sort().values + start
                for length, n, start in zip(self.lengths, self.active, self.cu_k, strict=False)
            ]
        )
        self.q = normal(self.cu_q[-1], self.heads, self.width)
        self.grad = normal(self.cu_q[-1], self.heads * self.width)
        # Slices of one matrix, as the model has them.
        kv = normal(self.cu_k[-1], 2 * self.groups * self.width)
        kv = kv.view(-1, 2, self.groups, self.width)
        self.k, self.v = kv[:, 0], kv[:, 1]
        outs, sums = [], []
        for b in range(len(self.lengths)):
            query = self.q[self.cu_q[b] : self.cu_q[b + 1]].float().transpose(0, 1)
            key, value = (
                t[self.cu_k[b] : self.cu_k[b + 1]]
                .repeat_interleave(self.heads // self.groups, 1)
                .float()
                .transpose(0, 1)
                for t in (self.k, self.v)
            )
            score = query @ key.transpose(1, 2) * self.width**-0.5
            sums.append(score.logsumexp(-1).t())
            outs.append((score.softmax(-1) @ value).transpose(0, 1).flatten(1))
        self.out, self.lse = torch.cat(outs).to(self.dtype), torch.cat(sums).contiguous()

    def adjoint(self, route: str, kept: bool = True) -> Gradients:
        """By that route, or by the one the dispatcher chooses."""
        os.environ.pop("TABES_ATTENTION", None)
        if route != "auto":
            os.environ["TABES_ATTENTION"] = route
        try:
            result: Gradients = ops.active_query_attention_backward(
                self.grad, self.q, self.k, self.v, self.keys, self.cu_q, self.cu_q, self.cu_k,
                self.width**-0.5, None, None, [], self.out if kept else None,
                self.lse if kept else None,
            )  # fmt: skip
            return result
        finally:
            os.environ.pop("TABES_ATTENTION", None)

    def routes(self, on_gpu: bool) -> list[str]:
        """Those there are kernels for."""
        routes = ["auto", "own"]
        if on_gpu and self.dtype != torch.float32:
            routes.append("flash")
        if on_gpu and len(set(self.lengths)) == len(set(self.active)) == 1:
            routes.append("efficient")
        return routes

    def floor(self) -> Cost:
        d, g = self.heads * self.width, self.groups * self.width
        queries, keys = self.cu_q[-1], self.cu_k[-1]
        products = sum(
            6 * a * length + 4 * a * a
            for a, length in zip(self.active, self.lengths, strict=True)
        )  # fmt: skip
        numbers = 4 * queries * d + 2 * keys * g + 2 * queries * g
        return Cost((Part("adjoint", self.dtype.itemsize * numbers, products * d),))


def attention_cases(tiny: bool) -> list[Attention]:
    """The layer of LLaDA at every size, L = 1024 first; then other batches, heads and dtypes."""
    if tiny:
        return [
            Attention("uniform", [64], [16], 2, 2, 64, torch.float32),
            Attention("ragged, grouped heads", [64, 20], [16, 3], 4, 2, 64, torch.float32),
        ]
    shares = (0.0625, 0.125, 0.25, 0.5)
    sizes = [(b, n, rho) for n in (1024, 512, 2048) for b in (1, 8) for rho in shares]
    cases = [Attention("uniform", [n] * b, [int(rho * n)] * b) for b, n, rho in sizes]
    lengths = [2048, 1024, 512, 256, 1024, 100, 700, 1500]
    ragged = [[int(share * n) for n in lengths] for share in (0.03, 0.25)]
    others = [Attention("ragged", lengths, active) for active in ragged]
    # Below the share up to which the dispatcher takes our kernels, and above.
    for active in (32, 256):
        others.append(Attention("grouped heads", [1024], [active], groups=8))
        for width in (64, 96, 256):
            heads = 4096 // width
            others.append(Attention("head size", [1024], [active], heads, heads, width))
        others.append(Attention("float32", [1024], [active], dtype=torch.float32))
        others.append(Attention("float16", [1024], [active], dtype=torch.float16))
    others.append(Attention("long, few rows", [4096], [64], groups=8))
    # Those of L = 1024, then the others, then what is left.
    return cases[:8] + others + cases[8:]


def same(a: Gradients, b: Gradients) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def attention(bench: Bench) -> None:
    """FlashAttention-2 was predicted to take 20-40 us at B = 1, L = 1024, |A| = 128."""
    for case in attention_cases(not bench.on_gpu):
        if bench.late():
            return
        case.draw(bench.device)
        routes = case.routes(bench.on_gpu)
        works = {r: Work(partial(case.adjoint, r), 2, case.floor()) for r in routes}
        # Which finds the log-sum-exps itself.
        works["own, no lse"] = Work(partial(case.adjoint, "own", kept=False), 2)
        variants, last = bench.compare(f"attention {case.name}", works, calls=5, seconds=0.2)
        # Only our kernels give the same bits every time.
        picked = None
        if "auto" in last and "own" in last:
            picked = "own" if same(last["auto"], last["own"]) else "stock"  # type: ignore[arg-type]
        measured = {r: variants[r]["median"] for r in routes if "median" in variants[r]}
        fastest = min(measured, key=lambda r: measured[r]) if measured else None
        bench.note(
            "attention", variants, "flash" if "flash" in routes else "own",
            **case.sizes(), picked=picked, fastest=fastest,
        )  # fmt: skip


def plain_statistics(x: Tensor) -> None:
    logp = x.float().log_softmax(1)
    p = logp.exp()
    (p * logp).sum(1)
    p.topk(2, 1)


def statistics_of_logits(bench: Bench, shape: Shape) -> None:
    """Predicted: 0.1 ms for 1024 rows against 2.1 ms in plain PyTorch."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    for rows in (32, 256, 1024) if bench.on_gpu else (4,):
        x = torch.randn(rows, shape.vocabulary, device=bench.device, dtype=dtype)

        floor = Cost((Part("statistics", x.nbytes, 0),))
        works = {
            "fused": Work(partial(ops.row_statistics, x), 2, floor),
            "PyTorch": Work(partial(plain_statistics, x)),
        }
        variants, _ = bench.compare("statistics", works, calls=4, seconds=0.3)
        bench.note("statistics", variants, "fused", rows=rows)


def head(bench: Bench, shape: Shape) -> None:
    """Predicted for all rows and for the masked half: 1.7 and 0.8 ms at B = 1, L = 1024, 13.5 and
    6.7 ms at B = 8. Logits come in pieces of 256 MiB, as in a decode."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    weight = torch.randn(shape.vocabulary, shape.width, device=bench.device, dtype=dtype)
    length = 1024 if bench.on_gpu else 64
    piece = max(1, (256 << 20) // (shape.vocabulary * weight.itemsize))
    for batch in (1, 8):
        x = torch.randn(batch * length, shape.width, device=bench.device, dtype=dtype)

        def project(rows: Tensor) -> None:
            for part in torch.chunk(rows, math.ceil(len(rows) / piece)):
                ops.row_statistics(part @ weight.t())

        works: dict[str, Work] = {}
        for name, rows in (("masked rows", length // 2), ("all rows", length)):
            canvas = Canvas(batch, length, rows, 0, 0)
            floor = Cost(Model(shape, weight.itemsize).forward(canvas, length, rows).parts[-1:])
            works[name] = Work(partial(project, x[: batch * rows]), 2, floor)
        variants, _ = bench.compare("head", works, calls=3, seconds=0.5)
        bench.note("head", variants, "masked rows", B=batch, L=length)
