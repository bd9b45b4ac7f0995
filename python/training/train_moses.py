"""Train the bundled SMILES model: a masked diffusion model in the LLaDA layout on MOSES.

    pip install --no-deps molsets==0.3.1        # the data; see the model card for its licence
    python python/training/train_moses.py --out runs/moses --steps 8000
    python python/training/train_moses.py --out runs/moses --steps 9500 --cooldown 1500   # resumes

See trainer.py for what a run does. Validity of the samples: evaluate_moses.py.
"""

from __future__ import annotations

import re

from by_length import ByLength
from llada_torch import LLaDAConfig
from tabes.tasks.molecules import ATOM, moses_file, read_smiles
from torch import Tensor
from trainer import BOS, EOS, Task, parser, train, vocabulary_of


def maskable(x: Tensor) -> Tensor:
    return (x != BOS) & (x != EOS)


def main() -> None:
    args = parser(__doc__).parse_args()
    smiles = read_smiles(moses_file("train"))
    vocabulary = vocabulary_of(sorted({t for s in smiles for t in re.findall(ATOM, s)}))

    def corpus(molecules: list[str]) -> ByLength:
        return ByLength(
            [[BOS, *(vocabulary[t] for t in re.findall(ATOM, s)), EOS] for s in molecules], maskable
        )

    config = LLaDAConfig(256, 6, 8, 8, 768, len(vocabulary), rope_theta=10_000.0)
    held_out = corpus(read_smiles(moses_file("test"))[:20000])
    train(Task(config, vocabulary, ATOM, 256, corpus(smiles), held_out), args)


if __name__ == "__main__":
    main()
