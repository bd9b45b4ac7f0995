"""RDKit validity of a SMILES model's unconditional samples, by policy and number of steps.

    python python/training/evaluate_moses.py runs/moses/checkpoint --number 1000

Each molecule gets the length of a held-out MOSES molecule and is sampled at temperature 0.7.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import dataclass
from pathlib import Path

import tabes
from rdkit import Chem, rdBase
from tabes.tasks.molecules import ATOM, moses_file, read_smiles
from trainer import BOS, EOS, MASK


@dataclass(frozen=True)
class Validity:
    """What RDKit says of samples, and what they cost: forward passes over the whole batch."""

    number: int
    valid: int
    distinct: int  # different molecules among the valid
    forward_equivalents: float

    def __str__(self) -> str:
        error = (self.valid * (self.number - self.valid) / self.number**3) ** 0.5
        return (
            f"valid {self.valid / self.number:.3f} (se {error:.3f}), "
            f"unique {self.distinct / max(1, self.valid):.3f}, "
            f"{self.forward_equivalents:.1f} forward-equivalents"
        )


def held_out(number: int) -> list[str]:
    return random.Random(0).sample(read_smiles(moses_file("test")), number)


def validity(
    model: tabes.Model,
    molecules: list[str],
    *,
    steps: int,
    policy: str = "confidence",
    temperature: float = 0.7,
    seed: int = 0,
) -> Validity:
    """Samples one molecule of the length of each of `molecules`."""
    canvases = [[BOS] + [MASK] * len(re.findall(ATOM, s)) + [EOS] for s in molecules]
    out = tabes.generate(
        model, canvases, steps=steps, policy=policy, temperature=temperature, seed=seed
    )
    with rdBase.BlockLogs():
        read = [Chem.MolFromSmiles(s) for s in out.texts or []]
    valid = [Chem.MolToSmiles(m) for m in read if m is not None]
    return Validity(len(molecules), len(valid), len(set(valid)), out.forward_equivalents)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--number", type=int, default=1000, help="molecules for every figure")
    p.add_argument("--steps", type=int, nargs="*", default=[8, 12, 24, 48, 64])
    p.add_argument("--policies", nargs="*", default=["confidence", "margin", "entropy", "random"])
    p.add_argument("--temperature", type=float, default=0.7)
    p.add_argument("--seed", type=int, default=0, help="of the sampling")
    args = p.parse_args()
    model = tabes.load(args.checkpoint)
    molecules = held_out(args.number)
    for policy in args.policies:
        for steps in args.steps:
            found = validity(
                model,
                molecules,
                steps=steps,
                policy=policy,
                temperature=args.temperature,
                seed=args.seed,
            )
            print(f"{policy} {steps} steps: {found}", flush=True)


if __name__ == "__main__":
    main()
