"""Every CUDA operator and whole decodes against the CPU.

    python tests/gpu/parity.py [--small] [--device cuda] [--json FILE]

The truth is the CPU operator in float64 on the same inputs. A 16-bit result may be twice as far
from it as the same formula in plain PyTorch with that dtype on the same device, a gradient three
times; float32 is held to a fixed bound. Results are written into memory that was filled with NaN
before. `--small` leaves out whole decodes and most sizes (for compute-sanitizer); `--device cpu`
checks this script itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import tabes
import torch
from attention_cases import attention_cases, plain_adjoint
from torch import Tensor

ops = torch.ops.tabes
Outputs = tuple[Tensor, ...]


@dataclass
class Line:
    name: str
    dtype: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit  # false for NaN


class Report:
    def __init__(self, device: str) -> None:
        self.device = device
        self.lines: list[Line] = []

    def add(self, name: str, dtype: object, error: float, limit: float) -> None:
        line = Line(name, str(dtype).removeprefix("torch."), error, limit)
        self.lines.append(line)
        verdict = "ok" if line.ok else "FAILED"
        print(
            f"{line.name:<58} {line.dtype:<9} {error:9.2e}  <= {limit:8.2e}  {verdict}", flush=True
        )

    def poison(self) -> None:
        """Leaves NaNs in the memory that the next results will take."""
        if self.device == "cuda":
            held = [torch.full((n,), torch.nan, device="cuda") for n in (1 << 8, 1 << 14, 1 << 22)]
            held += [torch.full((n,), torch.nan, device="cuda") for n in (1 << 10, 1 << 18) * 4]
            del held

    def compare(
        self, name: str, dtype: torch.dtype, ours: Outputs, truth: Outputs, naive: Outputs | None,
        factor: float = 2.0,
    ) -> None:  # fmt: skip
        """Errors relative to the largest true value, the worst of several results counting."""
        pairs = [(0.0, 2e-5)]
        for i, wanted in enumerate(truth):
            if wanted.numel() == 0:
                continue
            size = wanted.abs().max().clamp_min(1e-12)
            error = ((ours[i].double().cpu() - wanted).abs().max() / size).item()
            limit = 2e-5
            if naive is not None and dtype != torch.float32:
                distance = (naive[i].double().cpu() - wanted).abs().max() / size
                limit = max(factor * distance.item(), limit)
            pairs.append((error if error == error else math.inf, limit))
        worst, allowed = max(pairs, key=lambda pair: pair[0] / pair[1])
        self.add(name, dtype, worst, allowed)


def rows(report: Report, dtype: torch.dtype, small: bool) -> None:
    """The operators that treat rows one by one."""
    device = report.device
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def run(name: str, inputs: Outputs, ours: Callable[..., Tensor], naive: Callable[..., Tensor],
            factor: float = 2.0) -> None:  # fmt: skip
        there = tuple(t.to(device) for t in inputs)
        wide = tuple(t.double() if t.is_floating_point() else t for t in inputs)
        report.poison()
        report.compare(name, dtype, (ours(*there),), (ours(*wide),), (naive(*there),), factor)

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
    shapes = ((3, 1003),) if small else ((1, 7), (3, 1003), (5, 126464), (200, 32000))
    for count, vocab in shapes:
        logits = draw(count, vocab, scale=3.0)
        logits[0, 1] = -torch.inf
        there, weight = logits.to(device), torch.linspace(-1, 2, count)
        report.poison()
        got, wanted = ops.row_statistics(there), ops.row_statistics(logits.double())
        name = f"row_statistics {count} x {vocab}"
        # Computed in float32 from exact inputs, whatever their dtype.
        report.compare(name, torch.float32, got[:4], wanted[:4], None)
        report.add(f"{name} argmax", dtype, (got[4].cpu() != wanted[4]).sum().item(), 0)
        ours, truth = there.clone(), logits.double()
        ops.entropy_adjoint_(ours, got[4], got[2], got[1], weight.to(device))
        ops.entropy_adjoint_(truth, wanted[4], wanted[2], wanted[1], weight.double())
        leaf = there.detach().requires_grad_()
        p = leaf.softmax(1)
        entropy = -(p * leaf.log_softmax(1).clamp_min(-1e4)).sum(1)
        (naive,) = torch.autograd.grad((entropy * weight.to(there)).sum(), leaf)
        report.compare(
            f"entropy_adjoint_ {count} x {vocab}", dtype, (ours,), (truth,), (naive,), 3.0
        )
    logits = draw(64, 5000, scale=2.0)
    u = torch.rand(64, dtype=torch.float64, generator=generator)
    for top_k, top_p in ((0, 1.0), (50, 1.0), (0, 0.8), (50, 0.8)):
        got = ops.sample_rows(logits.to(device), u.to(device), 0.7, top_k, top_p).cpu()
        wrong = (got != ops.sample_rows(logits.float(), u, 0.7, top_k, top_p)).sum().item()
        # A draw that falls within a rounding of the border of two tokens may take the other one.
        report.add(f"sample_rows top_k {top_k} top_p {top_p}: tokens", dtype, wrong, 1)
    where = [torch.randint(0, 1 << 30, (999,)) for _ in range(3)]
    drawn = ops.counter_uniforms(*(t.to(device) for t in where), -5, 1).cpu()
    wrong = (drawn != ops.counter_uniforms(*where, -5, 1)).sum().item()
    report.add("counter_uniforms: other bits", dtype, wrong, 0)


def attention(report: Report, dtype: torch.dtype, small: bool) -> None:
    for case in attention_cases(dtype, small):
        truth = case.adjoint("cpu", torch.float64)
        naive = plain_adjoint(case, report.device)
        for route in case.routes(report.device):
            os.environ["TABES_ATTENTION"] = route
            report.poison()
            ours = case.adjoint(report.device, dtype, kept=case.kept or route != "own")
            report.compare(
                f"attention adjoint, {route}: {case.name}", dtype, ours, truth, naive, 3.0
            )
            if route == "own":
                report.poison()
                again = case.adjoint(report.device, dtype, kept=case.kept)
                same = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
                report.add(f"  the same bits again: {case.name}", dtype, 0 if same else 1, 0)
        os.environ.pop("TABES_ATTENTION", None)


def decodes(report: Report) -> None:
    """Tokens of whole decodes: in float32 all the same, in 16 bits the share that agrees."""
    folder, mask = tabes.demo_checkpoint(), 3
    canvases = [[1] + [mask] * n + [2] for n in (12, 30, 45)]
    quota = tabes.BoE(factor=0.0)
    cases: dict[str, dict[str, object]] = {
        "confidence": dict(policy="confidence"),
        "confidence, selected on the host": dict(policy="confidence", on_device=False),
        "margin": dict(policy="margin"),
        "random": dict(policy="random"),
        "random, frozen steps in blocks": dict(policy="random", refresh_every=3, block_length=16),
        "factor, selected on the device": dict(policy="factor", on_device=True),
        "spread": dict(policy="spread"),
        "spread, selected on the device": dict(policy="spread", on_device=True),
        "boe frozen": dict(policy=tabes.BoE(context="frozen")),
        "boe exact": dict(policy=tabes.BoE(context="exact")),
        "boe paper": dict(policy=tabes.BoE.paper()),
        "boe by quota": dict(policy=quota),
        "boe by quota, selected on the host": dict(policy=quota, on_device=False),
        "boe by quota, frozen steps": dict(policy=quota, refresh_every=3),
        "boe, selected on the device": dict(policy=tabes.BoE(), on_device=True),
    }
    for dtype in ("float32", "bfloat16", "float16"):
        # Half precision has no kernels on the CPU.
        half = dtype == "float16"
        if half and report.device == "cpu":
            continue
        on_cpu = tabes.load(folder, dtype="float32" if half else dtype)
        there = tabes.load(folder, dtype=dtype, device=report.device)
        for name, case in cases.items():
            for temperature in (0.0, 0.7):
                options = dict(steps=8, temperature=temperature, seed=4, **case)
                a = tabes.generate(on_cpu, canvases, **options).tokens
                b = tabes.generate(there, canvases, **options).tokens
                pairs = [
                    (x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True)
                ]
                wrong = sum(int(x) != int(y) for x, y in pairs)
                limit = 0 if dtype == "float32" else len(pairs)
                report.add(
                    f"decode {name}, temperature {temperature}: of {len(pairs)} tokens, different",
                    dtype, wrong, limit,
                )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    report = Report(args.device)
    dtypes = [torch.float32, torch.bfloat16] + [torch.float16] * (args.device == "cuda")
    for dtype in dtypes:
        rows(report, dtype, args.small)
        attention(report, dtype, args.small)
    if not args.small:
        decodes(report)
    failed = [line.name for line in report.lines if not line.ok]
    if args.json:
        lines = [asdict(line) | {"ok": line.ok} for line in report.lines]
        args.json.write_text(json.dumps(lines, indent=1) + "\n")
    print(f"parity: {len(report.lines) - len(failed)} of {len(report.lines)} within limits")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
