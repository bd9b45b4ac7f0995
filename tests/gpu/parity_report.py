"""Lines of the parity report: an error, what it may be, and what makes a line fail."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Norm = Callable[[Tensor], Tensor]
# Of what was computed in float32, relative to the largest true value.
SINGLE = 2e-5


@dataclass
class Line:
    name: str
    dtype: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit  # false for NaN


def largest(x: Tensor) -> Tensor:
    return x.abs().max()  # NaN if one of them is


def relative_error(got: Tensor, truth: Tensor, norm: Norm = largest) -> float:
    """Infinity for a NaN, which compares with nothing, and for another shape, which could be
    broadcast to the true one."""
    if got.shape != truth.shape:
        return math.inf
    error = (norm(got.double().cpu() - truth) / norm(truth).clamp_min(1e-12)).item()
    return math.inf if math.isnan(error) else error


def bits(x: Tensor) -> Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(whole)


def all_bits_set(words: int) -> Tensor:
    return torch.full((words,), -1, dtype=torch.int32, device="cuda")


def free_bytes(small: bool) -> int:
    """Of the allocator's pool of blocks up to 1 MiB, or of that of all others."""
    stats, pool = torch.cuda.memory_stats(), "small_pool" if small else "large_pool"
    reserved, active = (
        stats.get(f"{what}_bytes.{pool}.current", 0) for what in ("reserved", "active")
    )
    return int(reserved - active)


class Report:
    def __init__(self, device: str, repeats: bool = True) -> None:
        self.device = device
        self.repeats = repeats
        self.lines: list[Line] = []
        self.left_out: list[str] = []

    def add(self, name: str, dtype: object, error: float, limit: float) -> None:
        line = Line(name, str(dtype).removeprefix("torch."), error, limit)
        self.lines.append(line)
        verdict = "ok" if line.ok else "FAILED"
        numbers = f"{line.dtype:<9} {error:9.2e}  <= {limit:8.2e}"
        print(f"{line.name:<84} {numbers}  {verdict}", flush=True)

    def leave_out(self, what: str, why: str) -> None:
        """Says so; what was not checked is no line."""
        self.left_out.append(what)
        print(f"left out: {what}: {why}", flush=True)

    def poison(self) -> None:
        """Leaves NaNs in the memory that the next results will take.

        All bits set are a NaN in float32, bfloat16 and float16, in whichever half of a word a
        16-bit number lies, and -1 as an integer. The memory comes back from the allocator's cache:
        under PYTORCH_NO_CUDA_MEMORY_CACHING=1, as compute-sanitizer has it, this would have no
        effect (there initcheck looks for what was never written).
        """
        if self.device != "cuda" or os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1":
            return
        torch.cuda.empty_cache()  # now only gaps between tensors in use are free
        held = [all_bits_set(1 << k) for k in (24, 22, 20, 18, 18)]
        for k in range(24, 6, -1):
            while free_bytes(small=k <= 18) >= 4 << k:
                before = torch.cuda.memory_reserved()
                held.append(all_bits_set(1 << k))
                if torch.cuda.memory_reserved() > before:
                    break  # the gaps that are left are smaller
        del held

    def check_poison(self) -> None:
        """Prints whether it has its effect here."""
        if self.device != "cuda":
            self.leave_out("NaNs in the memory of results", "it is taken from CUDA's allocator")
            return
        self.poison()
        sizes = (100, 10_000, 3_000_000)
        fresh = [torch.empty(n, dtype=torch.bfloat16, device="cuda") for n in sizes]
        if not all(bool(t.isnan().all()) for t in fresh):
            self.leave_out("NaNs in the memory of results", "the allocator hands out other memory")

    def compare(
        self, name: str, dtype: torch.dtype, ours: Outputs, truth: Outputs, naive: Outputs | None,
        factor: float = 2.0, single: float = SINGLE, norm: Norm = largest,
    ) -> None:  # fmt: skip
        """The worst of several results, each relative to its true value.

        Args:
            naive: plain PyTorch's results in this dtype: a 16-bit result may be `factor` times as
                far off. None, or float32: at most `single`.
        """
        pairs = [(0.0, single)]
        for i, (got, wanted) in enumerate(zip(ours, truth, strict=True)):
            if wanted.numel() == 0 and got.shape == wanted.shape:
                continue
            limit = single
            if naive is not None and dtype != torch.float32:
                limit = max(limit, factor * relative_error(naive[i], wanted, norm))
            pairs.append((relative_error(got, wanted, norm), limit))
        # Where plain PyTorch has no result there is nothing to measure ours by.
        worst, allowed = max(pairs, key=lambda p: p[0] / p[1] if p[1] < math.inf else math.inf)
        self.add(name, dtype, worst, allowed if allowed < math.inf else 0.0)

    def again(
        self, name: str, dtype: object, first: Outputs, work: Callable[[], Tensor | Outputs]
    ) -> None:
        """What is done once more gives the same bits; not asked where nothing is repeated."""
        if not self.repeats:
            return
        self.poison()
        got = work()
        outputs = (got,) if isinstance(got, Tensor) else tuple(got)
        self.same(f"  the same bits again: {name}", dtype, first, outputs)

    def same(self, name: str, dtype: object, first: Outputs, again: Outputs) -> None:
        """Bit for bit, NaNs among them."""
        differ = sum(
            a.shape != b.shape or a.dtype != b.dtype or not torch.equal(bits(a), bits(b))
            for a, b in zip(first, again, strict=True)
        )
        self.add(name, dtype, differ, 0)
