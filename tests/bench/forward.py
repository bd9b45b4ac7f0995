"""Our forward pass beside a plain PyTorch module of the same model, in one process and one thread.

    python tests/bench/forward.py [--repeats 15] [--quick]

Prints, for 5 M and 40 M parameters, L = 128 and 512, float32 and bfloat16: the time of both
(median, p10-p90, interleaved), their ratio and the largest difference of the logits; then the share
of a decoding step spent outside the model, and the peak memory of each side in its own process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import tabes
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "training"))

from llada_torch import LLaDA, LLaDAConfig
from train_moses import build_tokenizer, export

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
    export(module.state_dict(), config, build_tokenizer(vocabulary), folder)
    described = json.loads((folder / "config.json").read_text()) | {"max_sequence_length": 1024}
    (folder / "config.json").write_text(json.dumps(described))
    # What both sides compute with are the stored weights.
    module.load_state_dict({k: v.bfloat16().float() for k, v in module.state_dict().items()})
    return module.eval()


def quantiles(times: list[float]) -> str:
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    middle = statistics.median(ordered)
    return f"{middle * 1e3:7.1f} ms ({low * 1e3:.1f}-{high * 1e3:.1f})"


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
    ratios = sorted(t / o for o, t in zip(ours, theirs, strict=True))
    print(
        f"{name:>5} L={length:<4} {dtype:<9} tabes {quantiles(ours)}  PyTorch {quantiles(theirs)}"
        f"  ratio {statistics.median(ratios):.2f} ({ratios[len(ratios) // 10]:.2f}-"
        f"{ratios[-1 - len(ratios) // 10]:.2f})  max difference {error:.1e}",
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


def high_water() -> int:
    """This process's peak resident memory in KiB (ru_maxrss would be inherited from the parent)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def peak_of(side: str, folder: str, queue: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    base = high_water()
    tokens = torch.full((1, 512), MASK)
    if side == "tabes":
        model = tabes.load(folder)
        model.core.logits([tokens[0]])
    else:
        from safetensors.torch import load_file

        module = LLaDA(SIZES["40 M"])
        weights = load_file(f"{folder}/model.safetensors")
        module.load_state_dict({k: v.float() for k, v in weights.items()})
        with torch.no_grad():
            module(tokens)
    queue.put((high_water() - base) / 1024)


def peak_memory() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(SIZES["40 M"], Path(folder))
        context = multiprocessing.get_context("spawn")
        for side in ("tabes", "PyTorch"):
            queue = context.Queue()
            process = context.Process(target=peak_of, args=(side, folder, queue))
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
