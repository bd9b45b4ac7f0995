"""What the benchmarks share: model sizes, checkpoints, and how times and memory are reported."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "training"))

from llada_torch import LLaDA, LLaDAConfig
from tabes.process_memory import AddedMemory, memory
from trainer import build_tokenizer, export

SIZES = {
    "5 M": LLaDAConfig(256, 6, 8, 8, 768, 1024, rope_theta=10_000.0),
    "40 M": LLaDAConfig(640, 8, 10, 10, 1792, 1024, rope_theta=10_000.0),
}
MASK = 3


def checkpoint(config: LLaDAConfig, folder: Path) -> LLaDA:
    torch.manual_seed(0)
    module = LLaDA(config)
    for p in module.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    vocabulary = {f"t{i}": i for i in range(config.vocab_size)}
    for i, name in enumerate(("[PAD]", "[BOS]", "[EOS]", "[MASK]")):
        vocabulary.pop(f"t{i}")
        vocabulary[name] = i
    export(module.state_dict(), config, build_tokenizer(vocabulary, "."), 1024, folder)
    # What both sides compute with are the stored weights.
    module.load_state_dict({k: v.bfloat16().float() for k, v in module.state_dict().items()})
    return module.eval()


def quantiles(times: list[float]) -> str:
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    middle = statistics.median(ordered)
    return f"{middle * 1e3:7.1f} ms ({low * 1e3:.1f}-{high * 1e3:.1f})"


def ratio(times: list[float], base: list[float]) -> str:
    """Median and p10-p90 of paired ratios."""
    pairs = sorted(t / b for t, b in zip(times, base, strict=True))
    low, high = pairs[len(pairs) // 10], pairs[-1 - len(pairs) // 10]
    return f"{statistics.median(pairs):.2f} ({low:.2f}-{high:.2f})"


def resident() -> float:
    """MiB."""
    return memory("VmRSS") or float("nan")


def peak_of(work: Callable[[], object]) -> float:
    """MiB that `work` added to this process at its worst, whatever ran in it before."""
    added = AddedMemory()
    work()
    mib = added.mib()
    return float("nan") if mib is None else mib
