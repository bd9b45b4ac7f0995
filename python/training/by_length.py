"""Sequences in memory, grouped by length so that no batch needs padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor


class ByLength:
    """A corpus (see trainer.Corpus) of token lists; ids below 256."""

    def __init__(self, sequences: list[list[int]], maskable: Callable[[Tensor], Tensor]) -> None:
        groups: dict[int, list[list[int]]] = {}
        for ids in sequences:
            groups.setdefault(len(ids), []).append(ids)
        self.by_length = {n: np.array(v, dtype=np.uint8) for n, v in sorted(groups.items())}
        self.maskable = maskable

    def batches(self, tokens: int, seed: int, start: int) -> Iterator[Tensor]:
        epoch = 0
        while True:
            rng = np.random.default_rng([seed, epoch])
            plan: list[tuple[int, np.ndarray]] = []
            for length, rows in self.by_length.items():
                size = max(1, tokens // length)
                order = rng.permutation(len(rows))
                plan += [(length, order[i : i + size]) for i in range(0, len(order), size)]
            # A batch far smaller than the rest would be a noisy step: leave each length's rest out.
            plan = [p for p in plan if len(p[1]) * p[0] > tokens // 2]
            if not plan:
                raise ValueError(f"no length fills half a batch of {tokens} tokens")
            shuffled = rng.permutation(len(plan))
            for i in shuffled[start:]:
                length, rows = plan[i]
                yield torch.from_numpy(self.by_length[length][rows].astype(np.int64))
            start, epoch = max(0, start - len(plan)), epoch + 1
