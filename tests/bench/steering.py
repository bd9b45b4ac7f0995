"""What one BoE step costs beside a plain step, in one process and one thread.

    python tests/bench/steering.py [--repeats 9] [--sizes 5,40] [--json FILE]

For every size, length, share rho of active rows and dtype, interleaved: our plain step (policy
confidence), our BoE step with frozen context, with exact context, and with exact context and the
dense adjoint; and on the same weights in plain PyTorch a plain step, a BoE step by naive autograd
(input gradients only, logits of the probe rows only) and one with stopped gradients at inactive
rows. Half of the canvas is masked; three candidates and as many probes as make rho * L
active rows. Ratios are to our plain step, for PyTorch to PyTorch's. A second line has the rows of
every variant: through the trunk, through its adjoint, through the vocabulary projection. Then the
peak memory of every variant, size and dtype at the greatest length, each in its own process.
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
from common import MASK, SIZES, checkpoint, peak_of, ratio
from llada_torch import LLaDA
from safetensors.torch import load_file
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


def torch_rows(length: int, rho: float) -> dict[str, list[int]]:
    """Of the PyTorch variants, as the code above asks for them. Stopping gradients at the attention
    outputs prunes no rows elsewhere: autograd's backward pass goes through all of them."""
    masked, probed = int((canvas(length) == MASK).sum()), probes(rho, length)
    boe = [2 * length, length, masked + probed]
    return {"torch plain": [length, 0, masked], "torch naive": boe, "torch stopped": boe}


def steered(**options: object) -> tabes.BoE:
    """As many candidates, and probes beside them, in every step."""
    return tabes.BoE(
        n_candidates=CANDIDATES,
        probes="least_entropic",
        draft="expected",
        factor=0.0,
        **options,
    )


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
            key: steered(rho=probes(rho, length) / length, **options)
            for key, options in OURS.items()
        }
        times: dict[str, list[float]] = {
            key: [] for key in ("plain", *policies, "torch plain", "torch naive", "torch stopped")
        }
        records: dict[str, tabes.StepRecord] = {}
        for i in range(repeats + 1):
            row = {}
            row["plain"], records["plain"] = our_step(model, tokens, "confidence")
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
        rows = {
            key: [r.forward_rows, r.backward_rows, r.head_rows] for key, r in records.items()
        } | torch_rows(length, rho)
        results.append(
            dict(size=name, dtype=dtype, length=length, rho=rho, seconds=times, rows=rows)
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
            + f" | backward/dense {statistics.median(backward):.2f}\n"
            + "      rows forward+backward+head: "
            + ", ".join(f"{key} {'+'.join(map(str, r))}" for key, r in rows.items()),
            flush=True,
        )
    return results


def load_and_step(variant: str, size: str, dtype: str, length: int, folder: str) -> None:
    tokens = canvas(length)
    if variant.startswith("torch"):
        with torch.device("meta"):  # so that nothing but the weights themselves is ever held
            module = LLaDA(SIZES[size])
        weights = load_file(f"{folder}/model.safetensors")
        weights = {name: weights.pop(name).to(getattr(torch, dtype)) for name in list(weights)}
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False)
        for _ in range(2):
            if variant == "torch plain":
                torch_plain(module, tokens)
            else:
                torch_boe(module, tokens, 0.25, variant == "torch stopped")
        return
    model = tabes.load(folder, dtype=dtype)
    policy = (
        "confidence"
        if variant == "plain"
        else steered(rho=probes(0.25, length) / length, **OURS[variant])
    )
    for _ in range(2):
        our_step(model, tokens, policy)


def peak_in(*setting: Any) -> None:
    """Of the variant (and what `load_and_step` takes) to the queue, the last of them."""
    torch.set_num_threads(1)
    setting[-1].put(peak_of(lambda: load_and_step(*setting[:-1])))


def peak_memory(size: str, dtype: str, length: int) -> dict[str, float]:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(SIZES[size], Path(folder))
        context = multiprocessing.get_context("spawn")
        theirs = ["torch plain", "torch naive", "torch stopped"]
        for variant in ("plain", *OURS, *theirs):
            queue = context.Queue()
            process = context.Process(
                target=peak_in, args=(variant, size, dtype, length, folder, queue)
            )
            process.start()
            peaks[variant] = queue.get()
            process.join()
    item = getattr(torch, dtype).itemsize
    weights = item * sum(p.numel() for p in LLaDA(SIZES[size]).parameters()) / 2**20
    print(
        f"peak memory, {size} {dtype}, L={length}, rho=0.25, load and steps "
        f"(weights {weights:.0f} MiB): " + ", ".join(f"{k} {v:.0f} MiB" for k, v in peaks.items()),
        flush=True,
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
    lengths = [int(n) for n in args.lengths.split(",")]
    rhos = [float(r) for r in args.rhos.split(",")]
    settings = [(f"{s} M", d) for s in args.sizes.split(",") for d in args.dtypes.split(",")]
    results = []
    for size, dtype in settings:
        for length in lengths:
            results += measure(size, dtype, length, rhos, args.repeats)
    peaks = [
        dict(size=size, dtype=dtype, mib=peak_memory(size, dtype, max(lengths)))
        for size, dtype in settings
    ]
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(dict(results=results, peaks=peaks)))


if __name__ == "__main__":
    main()
