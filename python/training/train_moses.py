"""Train the bundled SMILES model: a masked diffusion model in the LLaDA layout on MOSES.

    pip install --no-deps molsets==0.3.1        # the data; see the model card for its licence
    python python/training/train_moses.py --out runs/moses --steps 8000
    python python/training/train_moses.py --out runs/moses --steps 9500 --cooldown 1500   # resumes

See trainer.py for what a run does. With ``--validity 200`` each report also says how many of 200
samples RDKit accepts (lengths of held-out molecules, 24 steps); all about that: evaluate_moses.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import tabes
from by_length import ByLength
from llada_torch import LLaDAConfig
from tabes.tasks.molecules import ATOM, moses_file, read_smiles
from torch import Tensor
from trainer import BOS, EOS, Task, parser, train, vocabulary_of


def maskable(x: Tensor) -> Tensor:
    return (x != BOS) & (x != EOS)


def reporter(number: int) -> Callable[[Path], str]:
    from evaluate_moses import held_out, validity  # RDKit is for those who ask for this

    molecules = held_out(number)

    def report(checkpoint: Path) -> str:
        found = validity(tabes.load(checkpoint), molecules, steps=24)
        return f"held-out lengths, 24 steps: {found}"

    return report


def main() -> None:
    p = parser(__doc__)
    p.add_argument(
        "--validity", type=int, default=0, metavar="N", help="RDKit validity of N samples a report"
    )
    args = p.parse_args()
    smiles = read_smiles(moses_file("train"))
    vocabulary = vocabulary_of(sorted({t for s in smiles for t in re.findall(ATOM, s)}))

    def corpus(molecules: list[str]) -> ByLength:
        return ByLength(
            [[BOS, *(vocabulary[t] for t in re.findall(ATOM, s)), EOS] for s in molecules], maskable
        )

    config = LLaDAConfig(256, 6, 8, 8, 768, len(vocabulary), rope_theta=10_000.0)
    held_out = corpus(read_smiles(moses_file("test"))[:20000])
    report = reporter(args.validity) if args.validity > 0 else None
    train(Task(config, vocabulary, ATOM, 256, corpus(smiles), held_out, report), args)


if __name__ == "__main__":
    main()
