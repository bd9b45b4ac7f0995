"""The rival policies once more, as plain Python over one sequence: what the C++ ones must equal.

Each is written from its definition, one sequence, argmax tokens, no packing. A model is a function
from tokens [L] to float64 logits [L, V] in which the mask has probability 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

MASK = 3
Logits = Callable[[torch.Tensor], torch.Tensor]
TOKEN, ORDER, PROBE, REMASK, PROPOSAL, PATH = range(6)


def philox_uniform(seed: int, stream: int, sequence: int, position: int, step: int) -> float:
    """The uniform number in (0, 1) that this draw has (Philox-4x32-10)."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c = [step & 0xFFFFFFFF, position & 0xFFFFFFFF, sequence & 0xFFFFFFFF, stream]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (b >> 32) ^ c[1] ^ k0,
            b & 0xFFFFFFFF,
            (a >> 32) ^ c[3] ^ k1,
            a & 0xFFFFFFFF,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (((c[0] << 32 | c[1]) >> 12) + 0.5) * 2.0**-52


def gumbel(u: float) -> float:
    return -math.log(-math.log(u))


class Look:
    """What a forward pass shows at the masked positions."""

    def __init__(self, logits: Logits, x: torch.Tensor) -> None:
        self.where = [int(i) for i in (x == MASK).nonzero().squeeze(1)]
        raw = logits(x)[self.where]
        self.log_p = raw.log_softmax(-1)
        self.p = self.log_p.exp()
        self.token = self.p.argmax(-1)
        self.c = self.p.max(-1).values.tolist()
        self.h = (-(self.p * self.log_p.nan_to_num(neginf=0.0))).sum(-1).tolist()


def first(values: list[float], count: int) -> list[int]:
    """Numbers of the `count` largest, ties to the lowest, in order of number."""
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def reveal(x: torch.Tensor, look: Look, chosen: list[int]) -> torch.Tensor:
    x = x.clone()
    for i in chosen:
        x[look.where[i]] = look.token[i]
    return x


def quota(masks: int, step: int, steps: int) -> int:
    return -(-masks // max(1, steps - step))


def adaptive(
    logits: Logits, x: torch.Tensor, take: Callable[[Look], list[int]]
) -> tuple[torch.Tensor, int]:
    """Decodes with `take` saying what is revealed; the tokens and the number of passes."""
    passes = 0
    while bool((x == MASK).any()):
        look = Look(logits, x)
        x = reveal(x, look, take(look))
        passes += 1
    return x, passes


def threshold(tau: float) -> Callable[[Look], list[int]]:
    def take(look: Look) -> list[int]:
        return [i for i, c in enumerate(look.c) if c >= tau] or first(look.c, 1)

    return take


def factor(f: float) -> Callable[[Look], list[int]]:
    def take(look: Look) -> list[int]:
        ranked = sorted(look.c, reverse=True)
        n = 1
        for r in range(2, len(ranked) + 1):
            if ranked[r - 1] < 1 - f / (r + 1):
                break
            n = r
        return first(look.c, n)

    return take


def entropy_bound(gamma: float) -> Callable[[Look], list[int]]:
    def take(look: Look) -> list[int]:
        ranked = sorted(look.h)
        k = max(k for k in range(1, len(ranked) + 1) if sum(ranked[: k - 1]) <= gamma or k == 1)
        return first([-h for h in look.h], k)

    return take


def klass(
    logits: Logits, x: torch.Tensor, steps: int, tau: float, epsilon: float, history: int
) -> torch.Tensor:
    before: dict[int, torch.Tensor] = {}
    changes: dict[int, list[float]] = {}
    step = 0
    while bool((x == MASK).any()):
        look = Look(logits, x)
        for i, position in enumerate(look.where):
            if position in before:
                terms = look.p[i] * (look.log_p[i] - before[position])
                kl = float(terms[look.p[i] > 0].sum())
                changes.setdefault(position, []).append(kl)
            before[position] = look.log_p[i]
        ready = [
            i
            for i, position in enumerate(look.where)
            if look.c[i] > tau
            and len(changes.get(position, [])) >= history
            and all(kl < epsilon for kl in changes[position][-history:])
        ]
        x = reveal(x, look, ready or first(look.c, quota(len(look.c), step, steps)))
        step += 1
    return x


def info_gain(
    logits: Logits,
    x: torch.Tensor,
    steps: int,
    number: int,
    temperature: float,
    sure: float,
    seed: int,
    sequence: int,
) -> torch.Tensor:
    step = 0
    while bool((x == MASK).any()):
        look = Look(logits, x)
        n = len(look.c)
        count = n if min(look.c) >= sure else quota(n, step, steps)
        if count == n:
            return reveal(x, look, list(range(n)))
        best, best_value = [], -math.inf
        for k in range(number):
            score = list(look.c)
            if k > 0:
                score = [
                    c / temperature
                    + gumbel(philox_uniform(seed, PROPOSAL, sequence, p, step * number + k))
                    for c, p in zip(look.c, look.where, strict=True)
                ]
            chosen = first(score, count)
            after = Look(logits, reveal(x, look, chosen))
            value = -sum(look.h[i] for i in chosen) - sum(after.h) / len(after.h)
            if value > best_value:
                best, best_value = chosen, value
        x = reveal(x, look, best)
        step += 1
    return x


def lookum(
    logits: Logits, x: torch.Tensor, steps: int, pool: int, paths: int, seed: int, sequence: int
) -> torch.Tensor:
    step = 0
    while bool((x == MASK).any()):
        look = Look(logits, x)
        n = len(look.c)
        count = quota(n, step, steps)
        if count == n:
            return reveal(x, look, list(range(n)))
        ranked = sorted(range(n), key=lambda i: (-look.c[i], i))
        sets = [
            sorted([*ranked[: count - 1], ranked[count - 1 + k]])
            for k in range(min(pool, n - count + 1))
        ]
        lots = [philox_uniform(seed, PROPOSAL, sequence, k, step) for k in range(len(sets))]
        drawn = [sets[k] for k in first(lots, paths)]
        values = []
        for k, chosen in enumerate(drawn):
            after = Look(logits, reveal(x, look, chosen))
            noise = gumbel(philox_uniform(seed, PATH, sequence, k, step))
            values.append(-sum(after.h) / len(after.h) + noise)
        x = reveal(x, look, drawn[values.index(max(values))])
        step += 1
    return x


def remdm(
    logits: Logits,
    x: torch.Tensor,
    steps: int,
    strategy: str,
    seed: int,
    sequence: int,
    eta: float = 0.0,
    t_on: float = 0.55,
    t_off: float = 0.05,
    alpha_on: float = 0.9,
) -> torch.Tensor:
    psi: dict[int, float] = {}

    def alpha(t: float) -> float:
        if strategy != "loop":
            return 1 - t
        if t > t_on:
            return (1 - t) * alpha_on / (1 - t_on)
        return alpha_on if t > t_off else 1 - t * (1 - alpha_on) / t_off

    for step in range(steps):
        t, s = 1 - step / steps, max(0.0, 1 - (step + 1) / steps)
        a_t, a_s = alpha(t), alpha(s)
        most = min(1.0, (1 - a_s) / a_t) if a_t > 0 else 1.0
        last = step + 1 == steps
        sigma = {
            "cap": min(eta, most),
            "rescale": eta * most,
            "loop": min(eta, most) if t_off < t <= t_on else 0.0,
            "conf": 0.0,
        }[strategy]
        again = []
        total = sum(math.exp(-c) for c in psi.values())
        for position, c in psi.items():
            own = math.exp(-c) / total * most if strategy == "conf" else sigma
            drawn = philox_uniform(seed, REMASK, sequence, position, step)
            if not last and drawn < own:
                again.append(position)
        if bool((x == MASK).any()):
            look = Look(logits, x)
            p = min(1.0, max(0.0, (a_s - (1 - sigma) * a_t) / (1 - a_t))) if a_t < 1 else 1.0
            chosen = [
                i
                for i, position in enumerate(look.where)
                if last or philox_uniform(seed, ORDER, sequence, position, step) < p
            ]
            x = reveal(x, look, chosen)
            psi.update({look.where[i]: look.c[i] for i in chosen})
        for position in again:
            x[position] = MASK
            del psi[position]
    return x


def oracle(
    logits: Logits, x: torch.Tensor, steps: int, candidates: float, gamma: float
) -> torch.Tensor:
    step = 0
    while bool((x == MASK).any()):
        look = Look(logits, x)
        n = len(look.c)
        count = quota(n, step, steps)
        r = math.ceil(candidates * count)
        if not count < r < n:
            x = reveal(x, look, first(look.c, count))
            step += 1
            continue
        own = first(look.c, r)
        falls = []
        for i in own:
            after = Look(logits, reveal(x, look, [i]))
            left = dict(zip(after.where, after.h, strict=True))
            falls.append(sum(look.h[j] - left[look.where[j]] for j in range(n) if j not in own))
        low, width = min(falls), max(falls) - min(falls)
        score = [-1.0] * n
        for i, fall in zip(own, falls, strict=True):
            score[i] = look.c[i] ** gamma * ((fall - low) / width if width else 1.0)
        x = reveal(x, look, first(score, count))
        step += 1
    return x
