"""ActiveQueryAttention: its adjoint by every route, and the operator as autograd has it."""

from __future__ import annotations

from functools import partial

import torch
from attention_cases import AttentionCase, attention_cases, attention_route
from parity_report import Outputs, Report
from torch import Tensor

Kept = tuple[Tensor, Tensor]
# Rows up to which all queries' scores in float64 are no long wait on the CPU.
MOST_ROWS = 1024


def attention(report: Report, dtype: torch.dtype, small: bool) -> None:
    on_gpu = report.device == "cuda"
    for case in attention_cases(dtype, small):
        truth = case.adjoint("cpu", torch.float64)
        naive = case.plain_adjoint(report.device)
        for route in case.routes(report.device):
            needs = case.kept or route != "own"
            kept = case.forward(report.device, dtype) if needs else None
            adjoint(report, case, route, "", kept, truth, naive)
        # What the forward pass leaves in earnest, with its own roundings and layout.
        if on_gpu and not case.bias and (case.kept or not small):
            kept = stock(report, case)
            for route in case.routes(report.device):
                adjoint(report, case, route, ", stock log-sum-exp", kept, truth, naive)
        if case.cu_k[-1] <= MOST_ROWS and not case.subset and not (small and case.kept):
            whole(report, case)
    if not on_gpu:
        report.leave_out(
            f"attention adjoint in {dtype} from PyTorch's results and log-sum-exps",
            "its kernels for them need CUDA",
        )


def adjoint(
    report: Report, case: AttentionCase, route: str, how: str, kept: Kept | None,
    truth: Outputs, naive: Outputs,
) -> None:  # fmt: skip
    name = f"attention adjoint, {route}{how}: {case.name}"
    with attention_route(route):
        work = partial(case.adjoint, report.device, case.dtype, kept)
        report.poison()
        ours = work()
        report.compare(name, case.dtype, ours, truth, naive, 3.0)
        if route == "own":
            report.again(name, case.dtype, ours, work)


def stock(report: Report, case: AttentionCase) -> Kept:
    """Checks the results and log-sum-exps of PyTorch's kernels, and returns them."""
    report.poison()
    out, lse = case.stock_forward(report.device)
    true_out, true_lse = case.forward("cpu", torch.float64)
    naive = case.plain_forward(*case.tensors(report.device, case.dtype)[:3])
    name = f"PyTorch's attention: {case.name}"
    report.compare(name, case.dtype, (out,), (true_out,), (naive,))
    # In float32, whatever the dtype.
    report.compare(f"{name}, log-sum-exp", case.dtype, (lse,), (true_lse.double(),), None)
    return out, lse


def whole(report: Report, case: AttentionCase) -> None:
    """The forward operator, and its gradients, for which nothing was kept."""
    out, *slopes = case.whole("cpu", torch.float64, plain=False)
    report.poison()
    ours, *our_slopes = case.whole(report.device, case.dtype, plain=False)
    naive, *naive_slopes = case.whole(report.device, case.dtype, plain=True)
    name = f"active_query_attention: {case.name}"
    report.compare(name, case.dtype, (ours,), (out,), (naive,))
    report.compare(
        f"active_query_attention, gradients: {case.name}", case.dtype, tuple(our_slopes),
        tuple(slopes), tuple(naive_slopes), 3.0,
    )  # fmt: skip
