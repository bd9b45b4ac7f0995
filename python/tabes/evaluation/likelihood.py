"""Likelihoods of continuations, estimated as LLaDA does.

For a continuation of n tokens the bound of the log-likelihood is the mean, over k uniform in 1..n
and over the sets of k positions, of ``n / k`` times the summed log-probabilities of the k tokens
when those are masked and all others are given.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from tabes.evaluation.decoding import Cost
from tabes.generation import generate
from tabes.model import Model


@dataclass(frozen=True)
class Target:
    """A sequence [L] of which the positions from `start` to before `end` are the continuation."""

    tokens: list[int]
    start: int
    end: int


def log_likelihood(
    model: Model, target: Target, mc_num: int, batch_size: int, seed: int
) -> tuple[float, Cost]:
    """The bound in nats from `mc_num` noised copies, and what it took.

    The sizes k are stratified over the copies. Copies that are the same by chance are run once, so
    a continuation of one token is exact after one forward pass. The result depends on the tokens
    and the seed, not on the batch size.
    """
    patterns = list(_patterns(target, mc_num, seed).items())
    length = target.end - target.start
    truth = torch.tensor(target.tokens, device="cpu")
    total, cost = 0.0, Cost()
    for first in range(0, len(patterns), batch_size):
        batch = patterns[first : first + batch_size]
        sequences = []
        for masked, _ in batch:
            noised = truth.clone()
            noised[list(masked)] = model.info.mask_token_id
            sequences.append(noised)
        logits = model.core.logits(sequences)
        cost.add(Cost(len(logits), 0, len(logits), len(logits), 0.0))
        for i, (masked, times) in enumerate(batch):
            rows = torch.tensor(masked, device="cpu") + i * len(truth)
            chosen = torch.log_softmax(logits[rows.to(logits.device)].double(), -1).cpu()
            summed = float(chosen.gather(1, truth[list(masked)][:, None]).sum())
            total += times * summed * length / len(masked)
    return total / mc_num, cost


def _patterns(target: Target, mc_num: int, seed: int) -> Counter[tuple[int, ...]]:
    """The positions that each copy masks, and how many copies do."""
    described = f"{seed} {target.start} {target.end} {target.tokens}"
    digest = hashlib.sha256(described.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    length = target.end - target.start
    shift = rng.random() * length
    patterns: Counter[tuple[int, ...]] = Counter()
    for copy in range(mc_num):
        size = 1 + int(shift + copy * length / mc_num) % length
        masked = target.start + np.sort(rng.permutation(length)[:size])
        patterns[tuple(masked.tolist())] += 1
    return patterns


def is_greedy(model: Model, target: Target) -> tuple[bool, Cost]:
    """Whether filling the masked continuation by confidence, a token a step, gives it back."""
    tokens = torch.tensor(target.tokens, device="cpu")
    canvas = tokens.clone()
    canvas[target.start : target.end] = model.info.mask_token_id
    output = generate(model, canvas, steps=target.end - target.start)
    same = isinstance(output.tokens, torch.Tensor) and torch.equal(output.tokens, tokens)
    cost = Cost(
        output.forward_rows, output.backward_rows, output.head_rows, len(tokens), output.seconds
    )
    return same, cost
