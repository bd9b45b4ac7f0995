"""What one BoE step costs beside a plain step, in one process and one thread.

    python tests/bench/steering.py [--repeats 9] [--sizes 5,40] [--json FILE]

For every size, length, share rho of active rows and dtype, interleaved: our plain step (policy
confidence), our BoE step with frozen context, with exact context, and with exact context and the
dense adjoint; and on the same weights in plain PyTorch a plain step, a BoE step by naive autograd
(input gradients only, logits of the probe rows only) and one with stopped gradients at inactive
rows. Half of the canvas is masked; three candidates and as many probes as make rho * L
active rows. Ratios are to our plain step,
for PyTorch to PyTorch's. Then peak memory, each variant in its own process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tabes
import torch
from common import MASK, SIZES, checkpoint, high_water, ratio
from llada_torch import LLaDA
from torch import Tensor

CANDIDATES = 3
OURS = {
    "frozen": dict(context="frozen"),
    "exact": dict(context="exact"),
    "dense": dict(context="exact", adjoint="dense"),
}


def canvas(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(4, 1000, (length,), generator=generator)
    tokens[torch.randperm(length, generator=generator)[: length // 2 + 4]] = MASK
    return tokens


def probes(rho: float, length: int) -> int:
    """As many as make candidates and probes together the share rho of the rows."""
    return int(rho * length) - CANDIDATES


def our_step(model: tabes.Model, tokens: Tensor, policy: Any) -> tuple[float, tabes.StepRecord]:
    """Seconds and record of a decode's first step."""
    seen: list[tabes.StepRecord] = []
    tabes.generate(
        model,
        tokens,
        steps=len(tokens) // 2,
        policy=policy,
        callback=lambda record, _: bool(seen.append(record)),
    )
    return seen[0].seconds, seen[0]


def predictions(module: LLaDA, x: Tensor, rows: Tensor, active: Tensor | None = None) -> Tensor:
    """Logits of `rows` with the mask forbidden, and nothing computed for other rows."""
    transformer = module.model.transformer
    head, transformer.ff_out = transformer.ff_out, torch.nn.Identity()
    try:
        features = module.from_embeddings(x, active)[0, rows]
    finally:
        transformer.ff_out = head
    logits = head(features).float()
    return logits.index_fill(1, torch.tensor([MASK]), -torch.inf)


def entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return -(p * p.clamp_min(1e-38).log()).sum(-1)


def torch_plain(module: LLaDA, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        masked = (tokens == MASK).nonzero()[:, 0]
        logits = predictions(module, module.model.transformer.wte(tokens)[None], masked)
        confidence = logits.softmax(-1).max(-1).values
        return masked, logits, confidence.argsort(descending=True, stable=True)


def torch_boe(module: LLaDA, tokens: Tensor, rho: float, stop: bool) -> Tensor:
    masked, logits, order = torch_plain(module, tokens)
    table = module.model.transformer.wte.weight
    chosen, rest = order[:CANDIDATES], order[CANDIDATES:]
    with torch.no_grad():
        spread = entropy(logits[rest]).argsort(stable=True)
        at_probes = masked[rest[spread[: probes(rho, len(tokens))]]]
        delta = logits[chosen].softmax(-1).to(table.dtype) @ table - table[MASK]
        x = table[tokens]
    at = masked[chosen]
    leaf = (x[at] + 0.5 * delta).requires_grad_()
    active = None
    if stop:
        active = torch.zeros(len(tokens), dtype=torch.bool)
        active[at] = active[at_probes] = True
    phi = entropy(predictions(module, x.index_copy(0, at, leaf)[None], at_probes, active)).sum()
    return -(torch.autograd.grad(phi, leaf)[0].float() * delta.float()).sum(-1)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name: str, dtype: str, length: int, rhos: list[float], repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        module = checkpoint(SIZES[name], Path(folder))
        model = tabes.load(folder, dtype=dtype)
    module = module.to(getattr(torch, dtype)).requires_grad_(False)
    tokens = canvas(length)
    results = []
    for rho in rhos:
        policies = {
            key: tabes.BoE(n_candidates=CANDIDATES, rho=probes(rho, length) / length, **options)
            for key, options in OURS.items()
        }
        times: dict[str, list[float]] = {
            key: [] for key in ("plain", *policies, "torch plain", "torch naive", "torch stopped")
        }
        records: dict[str, tabes.StepRecord] = {}
        for i in range(repeats + 1):
            plain = our_step(model, tokens, "confidence")[0]
            row = {"plain": plain}
            for key, policy in policies.items():
                row[key], records[key] = our_step(model, tokens, policy)
            row["torch plain"] = timed(lambda: torch_plain(module, tokens))
            row["torch naive"] = timed(lambda rho=rho: torch_boe(module, tokens, rho, False))
            row["torch stopped"] = timed(lambda rho=rho: torch_boe(module, tokens, rho, True))
            if i:  # the first round also packs the transposed weights
                for key, seconds in row.items():
                    times[key].append(seconds)
        backward = [
            (e - 2 * p) / (d - 2 * p)
            for e, d, p in zip(times["exact"], times["dense"], times["plain"], strict=True)
        ]
        results.append(
            dict(size=name, dtype=dtype, length=length, rho=rho, seconds=times)
            | {
                key: dict(forward_rows=r.forward_rows, backward_rows=r.backward_rows)
                for key, r in records.items()
            }
        )
        parts = [f"{key} {ratio(times[key], times['plain'])}" for key in policies]
        parts += [
            f"{key} {ratio(times[f'torch {key}'], times['torch plain'])}"
            for key in ("naive", "stopped")
        ]
        print(
            f"{name:>5} {dtype:<9} L={length:<4} rho={rho:<6} plain "
            f"{statistics.median(times['plain']) * 1e3:6.1f} ms | "
            + " | ".join(parts)
            # What a BoE step takes beyond its two forward passes.
            + f" | backward/dense {statistics.median(backward):.2f}"
            + f" | rows {records['frozen'].forward_rows}+{records['frozen'].backward_rows} of "
            f"{length}",
            flush=True,
        )
    return results


def peak_of(variant: str, folder: str, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    tokens = canvas(512)
    base = high_water()
    if variant.startswith("torch"):
        from safetensors.torch import load_file

        module = LLaDA(SIZES["40 M"]).requires_grad_(False)
        weights = load_file(f"{folder}/model.safetensors")
        module.load_state_dict({k: v.float() for k, v in weights.items()})
        for _ in range(2):
            if variant == "torch plain":
                torch_plain(module, tokens)
            else:
                torch_boe(module, tokens, 0.25, False)
    else:
        name, _, layout = variant.partition(" ")
        model = tabes.load(folder, prepack=layout != "unpacked")
        policy = (
            "confidence"
            if name == "plain"
            else tabes.BoE(n_candidates=CANDIDATES, rho=probes(0.25, 512) / 512, **OURS[name])
        )
        for _ in range(2):
            our_step(model, tokens, policy)
    queue.put((high_water() - base) / 1024)


def peak_memory() -> dict[str, float]:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(SIZES["40 M"], Path(folder))
        context = multiprocessing.get_context("spawn")
        unpacked = [f"{name} unpacked" for name in ("plain", *OURS)]
        for variant in ("plain", *OURS, *unpacked, "torch plain", "torch naive"):
            queue = context.Queue()
            process = context.Process(target=peak_of, args=(variant, folder, queue))
            process.start()
            peaks[variant] = queue.get()
            process.join()
    weights = 4 * sum(p.numel() for p in LLaDA(SIZES["40 M"]).parameters()) / 2**20
    print(
        f"peak memory, 40 M float32, L=512, rho=0.25, load and steps (weights {weights:.0f} MiB): "
        + ", ".join(f"{k} {v:.0f} MiB" for k, v in peaks.items())
    )
    return peaks


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--sizes", default="5,40", help="millions of parameters: 5, 40 or both")
    p.add_argument("--lengths", default="128,256,512")
    p.add_argument("--rhos", default="0.0625,0.125,0.25,0.5")
    p.add_argument("--dtypes", default="float32,bfloat16")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.2f}", flush=True)
    results = []
    for size in args.sizes.split(","):
        for dtype in args.dtypes.split(","):
            for length in map(int, args.lengths.split(",")):
                rhos = [float(r) for r in args.rhos.split(",")]
                results += measure(f"{size} M", dtype, length, rhos, args.repeats)
    peaks = peak_memory()
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(dict(results=results, peak_mib=peaks)))


if __name__ == "__main__":
    main()
