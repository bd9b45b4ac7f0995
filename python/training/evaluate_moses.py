"""RDKit validity of a SMILES model's unconditional samples, by policy and number of steps.

    python python/training/evaluate_moses.py runs/moses/checkpoint --number 1000

Each molecule gets the length of a held-out MOSES molecule and is sampled at temperature 0.7.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

import tabes
from rdkit import Chem, RDLogger
from tabes.tasks.molecules import ATOM, moses_file, read_smiles
from trainer import BOS, EOS, MASK


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--number", type=int, default=1000, help="molecules for every figure")
    p.add_argument("--steps", type=int, nargs="*", default=[8, 12, 24, 48, 64])
    p.add_argument("--policies", nargs="*", default=["confidence", "margin", "entropy", "random"])
    p.add_argument("--temperature", type=float, default=0.7)
    args = p.parse_args()
    RDLogger.DisableLog("rdApp.*")
    model = tabes.load(args.checkpoint)
    held_out = random.Random(0).sample(read_smiles(moses_file("test")), args.number)
    canvases = [[BOS] + [MASK] * len(re.findall(ATOM, s)) + [EOS] for s in held_out]
    for policy in args.policies:
        for steps in args.steps:
            out = tabes.generate(
                model, canvases, steps=steps, policy=policy, temperature=args.temperature
            )
            molecules = [Chem.MolFromSmiles(s) for s in out.texts or []]
            valid = [Chem.MolToSmiles(m) for m in molecules if m is not None]
            error = (len(valid) * (args.number - len(valid)) / args.number**3) ** 0.5
            print(
                f"{policy} {steps} steps: valid {len(valid) / args.number:.3f} (se {error:.3f}), "
                f"unique {len(set(valid)) / max(1, len(valid)):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
