"""What the CUDA path costs: single operators, steps and whole decodes of a random-weight model of
LLaDA-8B's shape, beside the least time that its bytes and multiplications take.

    python tests/gpu/benchmark.py [--layers 32] [--seconds 360] [--json FILE]

Medians with p10-p90 of interleaved runs. A step's ratio is to our plain step (policy confidence) of
the same canvas, the floor the sum over the step's parts (roofline.py) at the ceilings that a large
product and a large copy reach on the device at the start. At the end the limits that were to be
reached and what was predicted are held against what was measured. What runs out of time or memory
is left out and said to be; any other failure is remembered, the rest goes on, and the exit status
is 1. `--device cpu` runs tiny sizes, to check this script itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

# Before CUDA starts: deterministic steps need it; on an H100 it is what is used anyway.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import tabes
import torch
from benchmark_checks import checks, table
from benchmark_decodes import block_cached, decode_points, decodes, gradients, short_passes
from benchmark_kernels import attention, head, statistics_of_logits
from benchmark_report import Bench, measure_ceilings
from benchmark_steps import deterministic, naive, points, steps
from model_shape import LLADA_8B, TINY, Shape, roomy_folder, write_checkpoint
from roofline import DOCUMENTED_H100, Canvas, Model, parts_table


def find_ceilings(bench: Bench, shape: Shape) -> None:
    bench.documented = DOCUMENTED_H100
    bench.ceilings = measure_ceilings(bench)
    for name, c in (("measured", bench.ceilings), ("documented, H100", bench.documented)):
        print(f"{name}: {c.bytes_per_second / 1e12:.2f} TB/s, {c.flops / 1e12:.1f} TFLOP/s")
    cost = Model(shape, 2 if bench.on_gpu else 4).step("frozen", Canvas(1, 1024, 512, 3, 253))
    print("the floor of a frozen step, B = 1, L = 1024, a quarter of the rows active:")
    print("\n".join(parts_table(cost, bench.ceilings)))


class RandomModel:
    """The checkpoint in a folder of its own and, once loaded, the model."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape = bench, shape
        self.stack = ExitStack()
        self.folder: Path | None = None
        self.model: tabes.Model | None = None

    def write_and_measure_naive(self) -> None:
        """The weights are PyTorch's until its steps are measured, then they are dropped."""
        bytes_each = 2 if self.bench.on_gpu else 4
        room = roomy_folder(bytes_each * self.shape.parameters)
        start = time.monotonic()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=room)))
        weights = write_checkpoint(self.shape, folder, self.bench.device)
        self.folder = folder
        size = f"{self.shape.parameters / 1e9:.2f} B parameters, {self.shape.layers} layers"
        print(f"random {size}: written to {room} in {time.monotonic() - start:.0f} s")
        naive(self.bench, self.shape, weights)

    def load(self) -> None:
        if self.folder is None:
            raise RuntimeError("no checkpoint was written")
        dtype = "bfloat16" if self.bench.on_gpu else "float32"
        self.model = tabes.load(self.folder, device=self.bench.device, dtype=dtype)

    def section(self, name: str, work: Callable[[tabes.Model], None]) -> None:
        if self.model is None:
            self.bench.sections[name] = "no model"
        else:
            self.bench.section(name, partial(work, self.model))


def measure(bench: Bench, shape: Shape, random: RandomModel) -> None:
    """The most telling parts first; what is left when time runs out is not measured."""
    wanted, lengths = points(bench.on_gpu), decode_points(bench.on_gpu)
    bench.section("ceilings", lambda: find_ceilings(bench, shape))
    bench.section("naive", random.write_and_measure_naive)
    bench.section("load", random.load)
    random.section("steps", lambda model: steps(bench, shape, model, wanted[:2]))
    random.section("short passes", lambda model: short_passes(bench, model))
    random.section("decodes", lambda model: decodes(bench, model, lengths[:1]))
    bench.section("attention", lambda: attention(bench))
    random.section("block-cached", lambda model: block_cached(bench, model))
    random.section("gradients", lambda model: gradients(bench, model, random.folder or Path()))
    bench.section("statistics", lambda: statistics_of_logits(bench, shape))
    bench.section("head", lambda: head(bench, shape))
    random.section("deterministic", lambda model: deterministic(bench, model))
    few = [length for length in lengths[1:] if length[0].batch < 8]
    random.section("more decodes", lambda model: decodes(bench, model, few))
    random.section("more steps", lambda model: steps(bench, shape, model, wanted[2:]))
    many = [length for length in lengths[1:] if length[0].batch == 8]
    random.section("batched decodes", lambda model: decodes(bench, model, many))


def stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(f"stopped by signal {signum}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=LLADA_8B.layers)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    bench = Bench(args.device, time.monotonic() + args.seconds, args.json)
    shape = replace(LLADA_8B, layers=args.layers) if bench.on_gpu else TINY
    bench.about = {
        "device": torch.cuda.get_device_name() if bench.on_gpu else "cpu",
        "torch": torch.__version__,
        "tabes": tabes.__version__,
        "layers": shape.layers,
        "parameters": shape.parameters,
    }
    random = RandomModel(bench, shape)
    try:
        with random.stack:
            measure(bench, shape, random)
    finally:
        # Fewer layers take less time: what was said of 32 says nothing of them.
        comparable = bench.on_gpu and shape == LLADA_8B
        unknown = {} if comparable else {"measured": None, "met": None}
        bench.checks = [entry | unknown for entry in checks(bench)]
        bench.write()
    print(f"\n{bench.about['device']}, torch {bench.about['torch']}, {shape.layers} layers")
    print(table(bench.checks))
    late = [f"{name} ({said})" for name, said in bench.sections.items() if said != "done"]
    print(f"not or not wholly measured: {', '.join(late) or 'nothing'}")
    for text in bench.failures:
        print("FAILED", text)
    return int(bool(bench.failures))


if __name__ == "__main__":
    sys.exit(main())
