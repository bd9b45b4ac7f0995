"""Does memory stay flat? Thousands of decodes of random shapes by the bundled 5 M model, in one
process and one thread.

    python tests/bench/soak.py [--decodes 10000] [--seed 0] [--models native,wrapped,bfloat16]
                               [--loads 300] [--minutes 120] [--json FILE]

Every decode draws its batch size (1 to 6), lengths (5 to 44), steps (1 to 4), temperature, frozen
steps and policy (one of the cheap policies, every third time BoE with frozen or exact context); one
in eight is done by a wrapped PyTorch module, one in eight by the native model in bfloat16. Prints
resident memory, open descriptors and threads as it goes, then the slope of resident memory (least
squares, after the first 500 decodes) and what load-unload cycles added after ten of them. Ends with
1 if the slope is above 1 MiB per 1,000 decodes, or the cycles added more than 2 MiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tabes
import torch
from common import MASK, checkpoint, resident
from llada_torch import LLaDAConfig

CHEAP = (
    "random",
    "confidence",
    "margin",
    "entropy",
    "threshold(tau=0.9)",
    "factor(f=1)",
    "entropy_bound(gamma=0.1)",
    "spread",
    "klass",
    "remdm_conf",
    "pc_sampler",
)
WARM = 500
WARM_LOADS = 10
SLOPE, LOADED = 1.0, 2.0  # MiB per 1,000 decodes; MiB in all


def usage() -> dict[str, float]:
    return {
        "resident_mib": round(resident(), 2),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def wrapped() -> tabes.Model:
    with tempfile.TemporaryDirectory() as folder:
        module = checkpoint(LLaDAConfig(64, 2, 4, 4, 128, 96, rope_theta=10_000.0), Path(folder))
    embed = module.model.transformer.wte

    def logits(inputs_embeds: torch.Tensor) -> torch.Tensor:
        return module.from_embeddings(inputs_embeds)

    return tabes.wrap(logits, mask_token_id=MASK, embedding_table=embed.weight, max_length=64)


def models(names: list[str]) -> dict[str, tabes.Model]:
    folder = tabes.demo_checkpoint()
    made = {
        "native": lambda: tabes.load(folder),
        "bfloat16": lambda: tabes.load(folder, dtype="bfloat16"),
        "wrapped": wrapped,
    }
    return {name: made[name]() for name in names}


def decode(model: tabes.Model, draw: random.Random) -> None:
    mask = model.info.mask_token_id
    policy: Any = draw.choice(CHEAP)
    context = draw.choice(("frozen", "exact")) if model.keeps_context else "exact"
    if draw.random() < 1 / 3:
        policy = tabes.BoE(context=context)
    canvases = [
        [1] + [mask if draw.random() < 0.7 else 5 for _ in range(draw.randint(2, 41))] + [mask, 2]
        for _ in range(draw.randint(1, 6))
    ]
    frozen = model.keeps_context and not str(policy).startswith("remdm") and draw.random() < 0.3
    tabes.generate(
        model,
        canvases,
        steps=draw.randint(1, 4),
        policy=policy,
        temperature=draw.choice((0.0, 0.7)),
        refresh_every=2 if frozen else 1,
        seed=draw.randrange(1000),
    )


def slope(points: list[dict[str, float]]) -> float:
    """MiB per 1,000 decodes."""
    late = [p for p in points if p["decodes"] >= WARM]
    if len(late) < 2:
        return float("nan")
    x, y = [p["decodes"] / 1000 for p in late], [p["resident_mib"] for p in late]
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--decodes", type=int, default=10_000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--models", default="native,wrapped,bfloat16")
    p.add_argument("--loads", type=int, default=0)
    p.add_argument("--minutes", type=float, default=120, help="stop by then, whatever is left")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(args.seed)
    end = time.monotonic() + 60 * args.minutes
    points: list[dict[str, float]] = []
    found: dict[str, Any] = {"torch": torch.__version__, "seed": args.seed, "models": args.models}

    def save() -> None:
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")

    have = models(args.models.split(","))
    names = [name for name in have for _ in range(6 if name == "native" else 1)]
    every = max(1, min(100, args.decodes // 20))
    for i in range(args.decodes + 1):
        if i % every == 0 or i == args.decodes:
            points.append({"decodes": i, **usage()})
            found |= {"points": points, "slope_mib_per_1000": slope(points)}
            print(points[-1], f"slope {found['slope_mib_per_1000']:.3f}", flush=True)
            save()
        if i == args.decodes or time.monotonic() > end:
            break
        decode(have[draw.choice(names)], draw)

    base = 0.0
    for i in range(args.loads):
        model = tabes.load(tabes.demo_checkpoint(), dtype=("float32", "bfloat16")[i % 2])
        tabes.generate(model, [1] + [model.info.mask_token_id] * 12 + [2], steps=2, policy="boe")
        del model
        gc.collect()
        if i + 1 == WARM_LOADS:
            base = resident()
    if args.loads > WARM_LOADS:
        found |= {"loads": args.loads, "loads_added_mib": round(resident() - base, 2), **usage()}
        print(f"{args.loads} loads added {found['loads_added_mib']} MiB", usage(), flush=True)
    save()
    grew = found["slope_mib_per_1000"] > SLOPE or found.get("loads_added_mib", 0) > LOADED
    raise SystemExit(int(grew))


if __name__ == "__main__":
    main()
