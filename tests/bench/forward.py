"""Our forward pass beside a plain PyTorch module of the same model, in one process and one thread.

    python tests/bench/forward.py [--repeats 15] [--quick]

Prints, for 5 M and 40 M parameters, L = 128 and 512, float32 and bfloat16: the time of both
(median, p10-p90, interleaved), their ratio and the largest difference of the logits; then the share
of a decoding step spent outside the model, and the peak memory of each side in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import tabes
import torch
from common import MASK, SIZES, checkpoint, peak_of, quantiles, ratio
from llada_torch import LLaDA, LLaDAConfig


def compare(config: LLaDAConfig, name: str, length: int, dtype: str, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        module = checkpoint(config, Path(folder))
        model = tabes.load(folder, dtype=dtype)
    module = module.to(getattr(torch, dtype))
    tokens = torch.randint(4, config.vocab_size, (1, length))
    tokens[:, ::2] = MASK
    packed = [tokens[0]]
    with torch.no_grad():
        wanted = module(tokens).float()[0]
        # Both outputs are timed as they come; the cast to float32 is not part of either.
        ours, theirs = [], []
        for i in range(repeats + 2):
            start = time.perf_counter()
            got = model.core.logits(packed)
            middle = time.perf_counter()
            module(tokens)
            end = time.perf_counter()
            if i >= 2:
                ours.append(middle - start)
                theirs.append(end - middle)
    error = (got - wanted).abs().max().item()
    print(
        f"{name:>5} L={length:<4} {dtype:<9} tabes {quantiles(ours)}  PyTorch {quantiles(theirs)}"
        f"  ratio {ratio(theirs, ours)}  max difference {error:.1e}",
        flush=True,
    )


def outside_share(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(SIZES["5 M"], Path(folder))
        model = tabes.load(folder)
    canvas = [1] + [MASK] * 254 + [2]
    shares = []
    for _ in range(repeats):
        for record in tabes.generate(model, canvas, steps=16).trace:
            shares.append(1 - record.model_seconds / record.seconds)
    shares.sort()
    print(
        f"outside the model, 5 M, L=256, batch 1: median {100 * statistics.median(shares):.2f} % "
        f"of a step, p90 {100 * shares[int(0.9 * len(shares))]:.2f} %"
    )


def peak_in(side: str, folder: str, queue: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    tokens = torch.full((1, 512), MASK)

    def work() -> None:
        if side == "tabes":
            model = tabes.load(folder)
            model.core.logits([tokens[0]])
            return
        from safetensors.torch import load_file

        module = LLaDA(SIZES["40 M"])
        weights = load_file(f"{folder}/model.safetensors")
        module.load_state_dict({k: v.float() for k, v in weights.items()})
        with torch.no_grad():
            module(tokens)

    queue.put(peak_of(work))


def peak_memory() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(SIZES["40 M"], Path(folder))
        context = multiprocessing.get_context("spawn")
        for side in ("tabes", "PyTorch"):
            queue = context.Queue()
            process = context.Process(target=peak_in, args=(side, folder, queue))
            process.start()
            print(f"peak memory, 40 M float32, load + forward, L=512: {side} {queue.get():.0f} MiB")
            process.join()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--quick", action="store_true", help="the small model only")
    args = p.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.2f}")
    for name, config in SIZES.items():
        if args.quick and name != "5 M":
            continue
        for length in (128, 512):
            for dtype in ("float32", "bfloat16"):
                compare(config, name, length, dtype, args.repeats)
    outside_share(3)
    if not args.quick:
        peak_memory()


if __name__ == "__main__":
    main()
