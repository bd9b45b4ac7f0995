"""Shapes that the adjoint of ActiveQueryAttention is checked at, with a plain PyTorch version."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

ops = torch.ops.tabes


@dataclass
class AttentionCase:
    """Sequences of `lengths` rows, of which `active` are active (queries and wanted keys)."""

    name: str
    dtype: torch.dtype
    lengths: list[int]
    active: list[int]
    heads: int = 4
    groups: int = 4
    width: int = 128
    bias: bool = False
    subset: bool = False  # dq of every other query only
    kept: bool = False
    cu_k: list[int] = field(init=False)
    cu_q: list[int] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.lengths) + self.width)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        self.cu_k = list(itertools.accumulate(self.lengths, initial=0))
        self.cu_q = list(itertools.accumulate(self.active, initial=0))
        total, m = self.cu_k[-1], self.cu_q[-1]
        chosen = [
            torch.randperm(length, generator=generator)[:n].sort().values + start
            for length, n, start in zip(self.lengths, self.active, self.cu_k, strict=False)
        ]
        self.keys = torch.cat(chosen)
        wanted = [range(a, b, 2) for a, b in itertools.pairwise(self.cu_q)]
        self.queries = torch.tensor([i for r in wanted for i in r], dtype=torch.int64)
        self.cu_queries = list(itertools.accumulate(map(len, wanted), initial=0))
        self.q = draw(m, self.heads, self.width)
        self.grad = draw(m, self.heads * self.width)
        # Slices of one matrix, as the model has them.
        self.kv = draw(total, 2 * self.groups * self.width)
        self.added = draw(m, max(self.lengths) + 3) if self.bias else None
        self.scale = self.width**-0.5

    def tensors(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kv = self.kv.to(device, dtype).unflatten(1, (2, self.groups, self.width))
        return self.q.to(device, dtype), kv[:, 0], kv[:, 1], self.grad.to(device, dtype)

    def forward(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Results [m, H * d] and log-sum-exps [m, H] float32 at the queries."""
        q, k, v, _ = self.tensors(device, torch.float64 if device == "cpu" else torch.float32)
        outs, sums = [], []
        for b in range(len(self.lengths)):
            score, value = self.scores(b, q, k, v)
            sums.append(score.logsumexp(-1).t())
            outs.append((score.softmax(-1) @ value).transpose(0, 1).flatten(1))
        return torch.cat(outs).to(dtype), torch.cat(sums).float().contiguous()

    def scores(self, b: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of sequence b: scores [H, n, L] and its values for every head [H, L, d]."""
        own = slice(self.cu_k[b], self.cu_k[b + 1])
        mine = slice(self.cu_q[b], self.cu_q[b + 1])
        repeat = self.heads // self.groups
        key, value = (t[own].repeat_interleave(repeat, 1).transpose(0, 1) for t in (k, v))
        score = q[mine].transpose(0, 1) @ key.transpose(1, 2) * self.scale
        if self.added is not None:
            score = score + self.added.to(score)[mine, : self.lengths[b]]
        return score, value

    def adjoint(self, device: str, dtype: torch.dtype, kept: bool = False) -> tuple[Tensor, ...]:
        q, k, v, grad = self.tensors(device, dtype)
        out, lse = self.forward(device, dtype) if kept else (None, None)
        return ops.active_query_attention_backward(
            grad, q, k, v, self.keys.to(device), self.cu_q, self.cu_q, self.cu_k, self.scale,
            None if self.added is None else self.added.to(device, dtype),
            self.queries.to(device) if self.subset else None,
            self.cu_queries if self.subset else [], out, lse,
        )  # fmt: skip

    def routes(self, device: str) -> list[str]:
        routes = ["own"]
        if device == "cuda" and not self.bias and 0 not in self.active:
            if self.dtype != torch.float32:
                routes.append("flash")
            if len(set(self.lengths)) == len(set(self.active)) == 1:
                routes.append("efficient")
        return routes


def attention_cases(dtype: torch.dtype, small: bool) -> Iterator[AttentionCase]:
    length = 70 if small else 300
    for active in (1, 63, 64, 65, length):
        yield AttentionCase(f"|A| = {active} of {length}", dtype, [length], [active], 2, 2, 64)
    for width in (64, 256) if small else (32, 64, 96, 128, 256):
        yield AttentionCase(f"head size {width}", dtype, [90], [40], 2, 1, width, kept=True)
    ragged, active = [130, 9, 1, 70], [65, 0, 1, 17]
    yield AttentionCase("ragged, an empty active set", dtype, ragged, active, 4, 2, 64)
    yield AttentionCase("bias", dtype, [130, 70], [65, 17], 2, 2, 64, bias=True)
    yield AttentionCase("dq of some queries", dtype, [130, 70], [65, 17], 2, 2, 64, subset=True)
    yield AttentionCase(
        "the same, kept", dtype, [130, 70], [65, 17], 2, 2, 64, subset=True, kept=True
    )
    if not small:
        yield AttentionCase("LLaDA, B = 2", dtype, [1024] * 2, [256] * 2, 32, 32, 128, kept=True)
        yield AttentionCase("few rows of many", dtype, [4096], [32], 32, 8, 128, kept=True)


def plain_adjoint(case: AttentionCase, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd through written-out attention in the case's dtype."""
    q, k, v, grad = (t.detach() for t in case.tensors(device, case.dtype))
    for t in (q, k, v):
        t.requires_grad_()
    outs = []
    for b in range(len(case.lengths)):
        score, value = case.scores(b, q, k, v)
        outs.append((score.softmax(-1) @ value).transpose(0, 1).flatten(1))
    dq, dk, dv = torch.autograd.grad(torch.cat(outs), (q, k, v), grad)
    keys = case.keys.to(device)
    return (dq[case.queries.to(device)] if case.subset else dq), dk[keys], dv[keys]
