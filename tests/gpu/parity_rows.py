"""The operators that treat rows one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from parity_report import Outputs, Report
from torch import Tensor

ops = torch.ops.tabes


def rows(report: Report, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def run(name: str, inputs: Outputs, ours: Callable[..., Tensor], naive: Callable[..., Tensor],
            factor: float = 2.0) -> None:  # fmt: skip
        there = tuple(t.to(report.device) for t in inputs)
        wide = tuple(t.double() if t.is_floating_point() else t for t in inputs)
        report.poison()
        got = ours(*there)
        report.compare(name, dtype, (got,), (ours(*wide),), (naive(*there),), factor)
        report.again(name, dtype, (got,), lambda: (ours(*there),))

    for count, width in ((5, 128), (33, 4096)):
        x, grad, weight = draw(count, width), draw(count, width), torch.rand(width) + 0.5

        def norm(x: Tensor, w: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w.to(x.dtype)

        def norm_slope(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(norm(leaf, w), leaf, grad)[0]

        run(f"rms_norm {count} x {width}", (x, weight), lambda x, w: ops.rms_norm(x, w, 1e-5), norm)
        run(f"rms_norm_backward {count} x {width}", (grad, x, weight),
            lambda g, x, w: ops.rms_norm_backward(g, x, w, 1e-5), norm_slope, 3.0)  # fmt: skip
    for act, plain in (("silu", torch.nn.functional.silu), ("gelu", torch.nn.functional.gelu)):
        x, grad = draw(7, 2 * 1000, scale=2.0), draw(7, 1000)

        def gate(x: Tensor, plain: Callable[[Tensor], Tensor] = plain) -> Tensor:
            first, second = x.chunk(2, 1)
            return plain(first) * second

        def gate_slope(grad: Tensor, x: Tensor, gate: Callable[[Tensor], Tensor] = gate) -> Tensor:
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(gate(leaf), leaf, grad)[0]

        run(f"gated {act}", (x,), lambda x, act=act: ops.gated(x, act), gate)
        run(f"gated_backward {act}", (grad, x),
            lambda g, x, act=act: ops.gated_backward(g, x, act), gate_slope, 3.0)  # fmt: skip
    angle = torch.randn(50, 64, generator=generator)
    where = torch.randint(0, 50, (20,), generator=generator)
    for inverse in (False, True):

        def rotate(x: Tensor, c: Tensor, s: Tensor, at: Tensor, inverse: bool = inverse) -> Tensor:
            out = x.clone()
            ops.rope_(out, 3, c, s, at, inverse)
            return out

        def plain_rotate(
            x: Tensor, c: Tensor, s: Tensor, at: Tensor, inverse: bool = inverse
        ) -> Tensor:
            h = x.view(len(x), -1, 2, 64)
            c, s = c[at, None].to(x.dtype), s[at, None].to(x.dtype) * (-1 if inverse else 1)
            a, b = h[:, :3, 0], h[:, :3, 1]
            turned = torch.stack((a * c - b * s, b * c + a * s), 2)
            return torch.cat((turned, h[:, 3:]), 1).reshape(x.shape)

        inputs = (draw(20, 5 * 128), angle.cos(), angle.sin(), where)
        run(f"rope_ {'back' if inverse else 'forth'}", inputs, rotate, plain_rotate)


def logits(report: Report, dtype: torch.dtype, small: bool) -> None:
    """The statistics of rows of logits and the adjoint of their entropy."""
    generator = torch.Generator().manual_seed(2)
    # A row is split over blocks where there are few of 16,384 logits and more (row_splits in
    # cpp/src/ops/cuda/plan.h).
    shapes = ((3, 1003), (2, 20000)) if small else ((1, 7), (3, 1003), (5, 126464), (200, 32000))
    for count, vocab in shapes:
        logits = (torch.randn(count, vocab, generator=generator) * 3.0).to(dtype)
        logits[0, 1] = -torch.inf
        there, weight = logits.to(report.device), torch.linspace(-1, 2, count)
        size = f"{count} x {vocab}"
        report.poison()
        got, wanted = ops.row_statistics(there), ops.row_statistics(logits.double())
        # Computed in float32 from exact inputs, whatever their dtype.
        report.compare(f"row_statistics {size}", dtype, got[:4], wanted[:4], None)
        wrong = (got[4].cpu() != wanted[4]).sum().item()
        report.add(f"row_statistics {size}: other argmax", dtype, wrong, 0)
        report.again(f"row_statistics {size}", dtype, got, partial(ops.row_statistics, there))

        def adjoint(x: Tensor, of: Outputs, weight: Tensor) -> Tensor:
            out = x.clone()
            ops.entropy_adjoint_(out, of[4], of[2], of[1], weight)
            return out

        ours = adjoint(there, got, weight.to(report.device))
        leaf = there.detach().requires_grad_()
        p = leaf.softmax(1)
        entropy = -(p * leaf.log_softmax(1).clamp_min(-1e4)).sum(1)
        (naive,) = torch.autograd.grad((entropy * weight.to(there)).sum(), leaf)
        truth = adjoint(logits.double(), wanted, weight.double())
        name = f"entropy_adjoint_ {size}"
        report.compare(name, dtype, (ours,), (truth,), (naive,), 3.0)
        again = partial(adjoint, there, got, weight.to(report.device))
        report.again(name, dtype, (ours,), again)


def draws(report: Report, dtype: torch.dtype) -> None:
    """Tokens and the random numbers that choose them."""
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(64, 5000, generator=generator) * 2.0).to(dtype)
    u = torch.rand(64, dtype=torch.float64, generator=generator)
    there = logits.to(report.device), u.to(report.device)
    for top_k, top_p in ((0, 1.0), (50, 1.0), (0, 0.8), (50, 0.8)):
        name = f"sample_rows top_k {top_k} top_p {top_p}"

        def sample(top_k: int = top_k, top_p: float = top_p) -> Outputs:
            return (ops.sample_rows(*there, 0.7, top_k, top_p),)

        report.poison()
        (got,) = sample()
        wrong = (got.cpu() != ops.sample_rows(logits.float(), u, 0.7, top_k, top_p)).sum().item()
        # A draw that falls within a rounding of the border of two tokens may take the other one.
        report.add(f"{name}: other tokens", dtype, wrong, 1)
        report.again(name, dtype, (got,), sample)
    where = [torch.randint(0, 1 << 30, (999,), generator=generator) for _ in range(3)]
    keys = [t.to(report.device) for t in where]

    def uniforms() -> Outputs:
        return (ops.counter_uniforms(*keys, -5, 1).cpu(),)

    report.poison()
    drawn, wanted = uniforms(), (ops.counter_uniforms(*where, -5, 1),)
    report.same("counter_uniforms: the CPU's bits", dtype, drawn, wanted)
    report.again("counter_uniforms", dtype, drawn, uniforms)
