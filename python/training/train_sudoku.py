"""Train the Sudoku model: a masked diffusion model in the LLaDA layout on boards without limit.

    python python/training/train_sudoku.py --out runs/sudoku --steps 8000
    python python/training/train_sudoku.py --out runs/sudoku --steps 9500 --cooldown 1500

Every batch is made anew: solved grids drawn by a solver, each under a random symmetry. The model
learns 4x4 and 6x6 boards together (`--sizes`). See trainer.py for what a run does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from llada_torch import LLaDAConfig
from tabes.tasks import sudoku
from torch import Tensor
from trainer import BOS, EOS, Task, parser, train, vocabulary_of

DIGITS = [str(d) for d in range(1, 10)]
VOCABULARY = vocabulary_of([*DIGITS, *"".join(b.labels for b in sudoku.BOARDS.values())])
FIRST_DIGIT = VOCABULARY["1"]


class Boards:
    """A corpus (see trainer.Corpus) made from `number` grids a size and their symmetries."""

    def __init__(self, sizes: dict[int, float], number: int, seed: int) -> None:
        self.sizes = sizes
        self.grids = {n: sudoku.random_grids(sudoku.BOARDS[n], number, seed) for n in sizes}

    def batches(self, tokens: int, seed: int, start: int) -> Iterator[Tensor]:
        while True:
            rng = np.random.default_rng([seed, start])
            size = int(rng.choice(list(self.sizes), p=list(self.sizes.values())))
            board, grids = sudoku.BOARDS[size], self.grids[size]
            count = max(1, tokens // (size * (size + 1) + 2))
            cells = sudoku.shuffled(board, grids[rng.integers(len(grids), size=count)], rng)
            square = cells.reshape(count, size, size) + (FIRST_DIGIT - 1)
            labels = np.array([VOCABULARY[label] for label in board.labels])
            rows = np.concatenate(
                [np.broadcast_to(labels[None, :, None], (count, size, 1)), square], 2
            )
            x = np.pad(rows.reshape(count, -1), ((0, 0), (1, 1)), constant_values=(BOS, EOS))
            yield torch.from_numpy(x)
            start += 1

    def maskable(self, x: Tensor) -> Tensor:
        return (x >= FIRST_DIGIT) & (x < FIRST_DIGIT + len(DIGITS))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--sizes", nargs="*", default=["4:0.1", "6:0.9"], metavar="SIZE:SHARE")
    p.add_argument("--hidden", type=int, default=192)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--grids", type=int, default=20000, help="grids drawn by the solver, a size")
    args = p.parse_args()
    sizes = {int(s): float(share) for s, share in (part.split(":") for part in args.sizes)}
    config = LLaDAConfig(
        args.hidden,
        args.layers,
        6,
        6,
        args.hidden * 8 // 3 // 64 * 64,
        len(VOCABULARY),
        rope_theta=1000.0,
    )
    task = Task(
        config,
        VOCABULARY,
        ".",
        128,
        Boards(sizes, args.grids, args.seed),
        Boards(sizes, 500, 10**6),
    )
    train(task, args)


if __name__ == "__main__":
    main()
