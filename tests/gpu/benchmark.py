"""What the CUDA path costs: the adjoint of attention by each route, the statistics of logits, and
whole decoding steps of a random-weight model of LLaDA-8B's shape.

    python tests/gpu/benchmark.py [--layers 32] [--minutes 6] [--json FILE]

Medians with p10-p90 of interleaved runs. A step's ratio is to our plain step (policy confidence)
of the same canvas; "floor" is what the bytes and multiplications of a plain pass would take at 3.0
TB/s and 798 TFLOP/s, the ceilings of an H100. What was predicted before any run is printed first.
Nothing here captures CUDA graphs. `--device cpu` runs tiny sizes, to check this script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tabes
import torch
from attention_cases import AttentionCase
from model_shape import MASK, Shape, naive_step, write_checkpoint
from torch import Tensor

ops = torch.ops.tabes
BYTES_PER_SECOND, FLOPS = 3.0e12, 798e12


class Bench:
    def __init__(self, device: str, minutes: float) -> None:
        self.device = device
        self.deadline = time.perf_counter() + 60 * minutes
        self.results: list[dict[str, Any]] = []

    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the device where there is one."""
        if self.device == "cpu":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def interleaved(
        self, works: dict[str, Callable[[], object]], repeats: int
    ) -> dict[str, list[float]]:
        """Times of each, in rounds; one that fails, for memory above all, is left out."""
        times: dict[str, list[float]] = {}
        for name, work in works.items():
            try:
                for _ in range(2):
                    work()
                times[name] = []
            except (RuntimeError, tabes.Error) as error:
                print(f"    {name}: {str(error).splitlines()[0][:90]}")
        for _ in range(repeats):
            for name, seen in times.items():
                seen.append(self.seconds(works[name]))
        return times

    def note(
        self, kind: str, times: dict[str, list[float]], base: str | None, **sizes: Any
    ) -> None:
        print(f"{kind:<10} " + " ".join(f"{k}={v}" for k, v in sizes.items()))
        for name, seen in times.items():
            ordered = sorted(seen)
            low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
            text = f"    {name:<12} {statistics.median(ordered) * 1e6:10.1f} us ({low * 1e6:.1f}-"
            text += f"{high * 1e6:.1f})"
            if base in times:
                pairs = [a / b for a, b in zip(seen, times[base], strict=True)]
                text += f"  {statistics.median(pairs):6.2f} x {base}"
            print(text, flush=True)
        self.results.append({"kind": kind, **sizes, "seconds": times})


def attention(bench: Bench, tiny: bool) -> None:
    """One layer's adjoint. Predicted: FlashAttention-2 20-40 us at B = 1, L = 1024, |A| = 128."""
    dtype = torch.float32 if bench.device == "cpu" else torch.bfloat16
    for batch in (1, 8):
        for length in (64,) if tiny else (512, 1024, 2048):
            for share in (0.0625, 0.125, 0.25, 0.5):
                if bench.late():
                    return
                active = int(share * length)
                heads = 2 if tiny else 32
                case = AttentionCase(
                    "", dtype, [length] * batch, [active] * batch, heads, heads, 128, kept=True
                )
                tensors = [t.to(bench.device) for t in case.tensors(bench.device, dtype)]
                out, lse = case.forward(bench.device, dtype)
                keys = case.keys.to(bench.device)

                def adjoint(
                    route: str,
                    kept: bool = True,
                    case: AttentionCase = case,
                    tensors: list[Tensor] = tensors,
                    keys: Tensor = keys,
                    out: Tensor = out,
                    lse: Tensor = lse,
                ) -> None:
                    os.environ["TABES_ATTENTION"] = route
                    q, k, v, grad = tensors
                    ops.active_query_attention_backward(
                        grad, q, k, v, keys, case.cu_q, case.cu_q, case.cu_k, case.scale,
                        None, None, [], out if kept else None, lse if kept else None,
                    )  # fmt: skip

                works: dict[str, Callable[[], object]] = {
                    "own": lambda run=adjoint: run("own"),
                    "own, no lse": lambda run=adjoint: run("own", False),
                }
                if bench.device == "cuda":
                    works["flash"] = lambda run=adjoint: run("flash")
                    works["efficient"] = lambda run=adjoint: run("efficient")
                times = bench.interleaved(works, 3 if tiny else 20)
                os.environ.pop("TABES_ATTENTION", None)
                bench.note("adjoint", times, "flash", B=batch, L=length, rho=share)


def logits(bench: Bench, tiny: bool) -> None:
    """Predicted: 0.1 ms for 1024 rows against 2.1 ms in plain PyTorch."""
    dtype = torch.float32 if bench.device == "cpu" else torch.bfloat16
    for rows in (4,) if tiny else (32, 256, 1024):
        if bench.late():
            return
        x = torch.randn(rows, 1000 if tiny else 126464, device=bench.device, dtype=dtype)

        def naive(x: Tensor = x) -> None:
            logp = x.float().log_softmax(1)
            p = logp.exp()
            -(p * logp).sum(1)
            p.topk(2, 1)

        works: dict[str, Callable[[], object]] = {
            "fused": lambda x=x: ops.row_statistics(x),
            "PyTorch": naive,
        }
        bench.note("statistics", bench.interleaved(works, 10), "fused", rows=rows)


def first_step(model: tabes.Model, canvases: list[Tensor], policy: Any) -> tabes.StepRecord:
    seen: list[tabes.StepRecord] = []
    tabes.generate(
        model,
        canvases,
        steps=int((canvases[0] == MASK).sum()),
        policy=policy,
        callback=lambda record, _: bool(seen.append(record)),
    )
    return seen[0]


def steps(bench: Bench, shape: Shape, tiny: bool) -> None:
    """Predicted at B = 1, L = 1024: forward 25.8 ms, exact at most 2.6 plain steps (rho 0.25)."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        start = time.perf_counter()
        weights = write_checkpoint(shape, Path(folder), bench.device)
        dtype = "float32" if bench.device == "cpu" else "bfloat16"
        model = tabes.load(folder, device=bench.device, dtype=dtype)
        seconds = time.perf_counter() - start
        size = f"{model.info.parameters / 1e9:.2f} B parameters, {shape.layers} layers"
        print(f"random {size}: written and loaded in {seconds:.0f} s")
    for batch in (1, 8):
        for length in (64,) if tiny else (512, 1024, 2048):
            generator = torch.Generator().manual_seed(length)
            canvases = []
            for _ in range(batch):
                tokens = torch.randint(200, 900, (length,), generator=generator)
                tokens[torch.randperm(length, generator=generator)[: length // 2]] = MASK
                canvases.append(tokens)
            for share in (0.0625, 0.125, 0.25, 0.5):
                if bench.late():
                    print("out of time: the rest of the steps was not measured")
                    return
                candidates = 3
                probes = max(1, int(share * length) - candidates)
                shared = dict(
                    n_candidates=candidates, probes="least_entropic", rho=probes / length,
                    draft="expected", factor=0.0,
                )  # fmt: skip
                policies = {
                    "plain": "confidence",
                    "frozen": tabes.BoE(**shared),
                    "exact": tabes.BoE(**shared, context="exact"),
                    "dense": tabes.BoE(**shared, context="exact", adjoint="dense"),
                }
                works: dict[str, Callable[[], object]] = {
                    name: lambda p=policy, c=canvases: first_step(model, c, p)
                    for name, policy in policies.items()
                }
                if batch == 1:
                    works["naive"] = lambda c=canvases, n=probes: naive_step(
                        shape, weights, c[0].to(bench.device), 3, n
                    )
                times = bench.interleaved(works, 2 if tiny else 5)
                peak = 0
                if bench.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    works["frozen"]()
                    peak = torch.cuda.max_memory_allocated()
                floor = shape.floor(batch, length, BYTES_PER_SECOND, FLOPS)
                bench.note("step", times, "plain", B=batch, L=length, rho=share,
                           floor_us=round(floor * 1e6, 1), peak_MiB=peak >> 20)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tiny = args.device == "cpu"
    bench = Bench(args.device, args.minutes)
    shape = Shape(64, 2, 2, 256, 1000) if tiny else Shape(4096, args.layers, 32, 12288, 126464)
    for part in (attention, logits):
        print(part.__doc__)
        part(bench, tiny)
    print(steps.__doc__)
    steps(bench, shape, tiny)
    if args.json:
        args.json.write_text(json.dumps(bench.results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
