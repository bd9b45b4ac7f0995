"""Train the Countdown model: a character-level masked diffusion model in the LLaDA layout.

    python python/training/train_countdown.py --out run --steps 7500 --tokens 4096
    python python/training/train_countdown.py --out run --steps 8700 --cooldown 1200 --tokens 4096

Questions with a worked answer are drawn at random (tabes/tasks/countdown.py); the public test
questions are left out. Only the answer is masked.
See trainer.py for what a run does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from by_length import ByLength
from llada_torch import LLaDAConfig
from tabes.tasks import countdown
from torch import Tensor
from trainer import BOS, EOS, Task, parser, train, vocabulary_of

VOCABULARY = vocabulary_of([*"0123456789+-*/=,:"])


def maskable(x: Tensor) -> Tensor:
    """The answer: what stands before the closing [EOS]."""
    answer = torch.zeros_like(x, dtype=torch.bool)
    answer[:, -1 - countdown.ANSWER_LENGTH : -1] = True
    return answer


def corpus(number: int, seed: int, without: set[tuple[int, ...]]) -> ByLength:
    sequences = []
    for question, answer in countdown.random_examples(number, seed):
        if (*sorted(question.numbers), question.target) in without:
            continue
        sequences.append([BOS, *(VOCABULARY[c] for c in question.prompt + answer), EOS])
    return ByLength(sequences, maskable)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--number", type=int, default=1_500_000, help="examples drawn")
    p.add_argument("--test", type=Path, help="JSON lines whose questions are left out")
    args = p.parse_args()
    without = set()
    if args.test:
        for line in args.test.read_text().splitlines():
            row = json.loads(line)
            without.add((*sorted(map(int, row["input"].split(","))), int(row["output"])))
    config = LLaDAConfig(192, 6, 6, 6, 512, len(VOCABULARY), rope_theta=1000.0)
    task = Task(
        config,
        VOCABULARY,
        ".",
        64,
        corpus(args.number, args.seed, without),
        corpus(20000, 10**6, without),
    )
    train(task, args)


if __name__ == "__main__":
    main()
