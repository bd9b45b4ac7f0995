"""Shapes that ActiveQueryAttention is checked at, with a plain PyTorch version."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

ops = torch.ops.tabes
aten = torch.ops.aten


@contextmanager
def attention_route(name: str) -> Iterator[None]:
    """Every adjoint of attention goes this way, whatever the dispatcher would choose."""
    before = os.environ.get("TABES_ATTENTION", "")
    os.environ["TABES_ATTENTION"] = name
    try:
        yield
    finally:
        os.environ["TABES_ATTENTION"] = before  # empty: the dispatcher chooses


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
    kept: bool = False  # the adjoint is given what the forward pass left
    odd: bool = False  # memory that starts where 16 bytes cannot be copied at a time
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
        def there(t: Tensor) -> Tensor:
            if not self.odd:
                return t.to(device, dtype)
            room = torch.empty(t.numel() + 1, device=device, dtype=dtype)
            return room[1:].view(t.shape).copy_(t)

        kv = there(self.kv).view(-1, 2, self.groups, self.width)
        return there(self.q), kv[:, 0], kv[:, 1], there(self.grad)

    def forward(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Results [m, H * d] and log-sum-exps [m, H] float32 at the queries."""
        q, k, v, _ = self.tensors(device, torch.float64 if device == "cpu" else torch.float32)
        parts = [self.sequence(b, q, k, v, self.cu_q, self.added) for b in range(len(self.lengths))]
        out, lse = (torch.cat(t) for t in zip(*parts, strict=True))
        return out.to(dtype), lse.float().contiguous()

    def sequence(
        self, b: int, q: Tensor, k: Tensor, v: Tensor, cu: list[int], added: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention written out, of sequence b, whose queries are the rows of q from cu[b] on:
        results [n, H * d] and log-sum-exps [n, H]."""
        own, mine = slice(self.cu_k[b], self.cu_k[b + 1]), slice(cu[b], cu[b + 1])
        repeat = self.heads // self.groups
        key, value = (t[own].repeat_interleave(repeat, 1).transpose(0, 1) for t in (k, v))
        score = q[mine].transpose(0, 1) @ key.transpose(1, 2) * self.scale
        if added is not None:
            score = score + added.to(score)[mine, : self.lengths[b]]
        return (score.softmax(-1) @ value).transpose(0, 1).flatten(1), score.logsumexp(-1).t()

    def stock_forward(self, device: str) -> tuple[Tensor, Tensor]:
        """The same as `forward`, by the kernels of PyTorch that the model's own pass calls before
        an adjoint, and called as there (attend_kept in cpp/src/ops/attention.cpp)."""
        q, k, v, _ = self.tensors(device, self.dtype)
        outs, sums = [], []
        b = 0
        for (length, n), alike in itertools.groupby(zip(self.lengths, self.active, strict=True)):
            count = len(list(alike))

            def part(t: Tensor, cu: list[int], rows: int, b: int = b, count: int = count) -> Tensor:
                own = t[cu[b] : cu[b + count]]
                return own.view(count, rows, *own.shape[1:]).transpose(1, 2)

            own_q = part(q, self.cu_q, n)
            own_k, own_v = part(k, self.cu_k, length), part(v, self.cu_k, length)
            b += count
            if n == 0:
                continue
            if self.dtype != torch.float32:
                out, lse = aten._scaled_dot_product_flash_attention(
                    own_q, own_k, own_v, 0.0, False, False, scale=self.scale
                )[:2]
            else:
                repeat = self.heads // self.groups
                if repeat > 1:
                    own_k, own_v = (t.repeat_interleave(repeat, 1) for t in (own_k, own_v))
                out, lse = aten._scaled_dot_product_efficient_attention(
                    own_q, own_k, own_v, None, True, 0.0, False, scale=self.scale
                )[:2]
                lse = lse[:, :, :n]  # padded to a multiple of 32 queries
            outs.append(out.transpose(1, 2).reshape(count * n, -1))
            sums.append(lse.transpose(1, 2).reshape(count * n, -1))
        return torch.cat(outs), torch.cat(sums)

    def adjoint(
        self, device: str, dtype: torch.dtype, kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """By the operator; `kept`: results and log-sum-exps of a forward pass."""
        q, k, v, grad = self.tensors(device, dtype)
        out, lse = kept or (None, None)
        dq, dk, dv = ops.active_query_attention_backward(
            grad, q, k, v, self.keys.to(device), self.cu_q, self.cu_q, self.cu_k, self.scale,
            None if self.added is None else self.added.to(device, dtype),
            self.queries.to(device) if self.subset else None,
            self.cu_queries if self.subset else [], out, lse,
        )  # fmt: skip
        return dq, dk, dv

    def plain_forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Results [m, H * d], written out."""
        n = len(self.lengths)
        return torch.cat([self.sequence(b, q, k, v, self.cu_q, self.added)[0] for b in range(n)])

    def plain_adjoint(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """By autograd through written-out attention in the case's dtype."""
        *leaves, grad = (t.detach() for t in self.tensors(device, self.dtype))
        q, k, v = (t.requires_grad_() for t in leaves)
        dq, dk, dv = torch.autograd.grad(self.plain_forward(q, k, v), (q, k, v), grad)
        keys = self.keys.to(device)
        return (dq[self.queries.to(device)] if self.subset else dq), dk[keys], dv[keys]

    def whole(self, device: str, dtype: torch.dtype, plain: bool) -> tuple[Tensor, ...]:
        """ActiveQueryAttention of all rows as one calls it, differentiated: results [R, H * d], dq,
        dk and dv, by the operator or written out. Rows that are not active have gradients of 0."""
        generator = torch.Generator().manual_seed(self.width)
        total = self.cu_k[-1]
        draws = [torch.randn(total, self.heads, self.width, generator=generator) for _ in "qg"]
        bias = torch.randn(total, max(self.lengths) + 3, generator=generator) if self.bias else None
        # What the dtype holds exactly, so that all dtypes have the same inputs.
        q, grad = (t.to(self.dtype).to(device, dtype) for t in draws)
        added = None if bias is None else bias.to(self.dtype).to(device, dtype)
        _, k, v, _ = self.tensors(device, dtype)
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        keys = self.keys.to(device)
        is_active = torch.zeros(total, dtype=torch.bool, device=device).index_fill_(0, keys, True)
        if plain:
            cu, n = self.cu_k, len(self.lengths)
            out = torch.cat([self.sequence(b, q, k, v, cu, added)[0] for b in range(n)])
            out = torch.where(is_active[:, None], out, out.detach())
        else:
            out = ops.active_query_attention(q, k, v, keys, self.cu_q, self.cu_k, self.scale, added)
        slopes = torch.autograd.grad(out, (q, k, v), grad.flatten(1))
        if plain:
            # Keys of inactive rows have gradients too, but nothing further back asks for them.
            slopes = tuple(torch.where(is_active[:, None, None], t, 0) for t in slopes)
        return out.detach(), *slopes

    def routes(self, device: str) -> list[str]:
        """All that route_possible (cpp/src/ops/cuda/plan.h) allows, given what was kept."""
        routes = ["own"]
        if device == "cuda" and not self.bias:
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
    ragged = [130, 9, 1, 70], [65, 0, 1, 17]
    yield AttentionCase("ragged, an empty active set", dtype, *ragged, 4, 2, 64)
    yield AttentionCase("ragged, an empty active set, kept", dtype, *ragged, 4, 2, 64, kept=True)
    yield AttentionCase("bias", dtype, [130, 70], [65, 17], 2, 2, 64, bias=True)
    yield AttentionCase("odd addresses", dtype, [130, 70], [65, 17], 2, 2, 64, odd=True, kept=True)
    yield AttentionCase("dq of some queries", dtype, [130, 70], [65, 17], 2, 2, 64, subset=True)
    yield AttentionCase(
        "dq of some queries, kept", dtype, [130, 70], [65, 17], 2, 2, 64, subset=True, kept=True
    )
    if not small:
        yield AttentionCase("LLaDA, B = 2", dtype, [1024] * 2, [256] * 2, 32, 32, 128, kept=True)
        yield AttentionCase("few rows of many", dtype, [4096], [32], 32, 8, 128, kept=True)
