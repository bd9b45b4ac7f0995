"""BoE steering written out in plain PyTorch float64 with autograd, from the method's definition
(TABES, arXiv 2602.00250): what the tests compare the C++ core with. Slow and simple on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tabes import BoE

Embed = Callable[..., torch.Tensor]


@dataclass
class Reference:
    """A model as a function: logits [L, V] of input embeddings [L, D].

    Attributes:
        table: input embeddings [V, D].
        logits: of (embeddings, active, context): the attention outputs of rows outside the boolean
            [L] `active` are constants to autograd, which is ActiveQueryAttention's definition.
        mask: the mask token.
    """

    table: torch.Tensor
    logits: Embed
    mask: int


class Context:
    """A frozen context: notes every layer's keys and values in a base pass; in every later pass
    the rows outside the boolean [L] `active` get those back."""

    def __init__(self) -> None:
        self.active: torch.Tensor | None = None
        self._base: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.active is None:
            self._base.append((k.detach(), v.detach()))
            return k, v
        keep = self.active[None, :, None]
        base_k, base_v = self._base[layer]
        return torch.where(keep, k, base_k), torch.where(keep, v, base_v)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, active: torch.Tensor | None
) -> torch.Tensor:
    """q [H, L, d], k and v [Hkv, L, d] -> [L, H * d]."""
    repeat = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    mixed = mixed.transpose(0, 1).reshape(q.shape[1], -1)
    return mixed if active is None else torch.where(active[:, None], mixed, mixed.detach())


def bert(folder: Path, heads: int, mask: int) -> Reference:
    """BERT's masked LM (Devlin et al., arXiv 1810.04805)."""
    w = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    e = "bert.embeddings."
    table = w[e + "word_embeddings.weight"]
    layers = 1 + max(int(k.split(".")[3]) for k in w if k.startswith("bert.encoder.layer."))

    def logits(
        x: torch.Tensor, active: torch.Tensor | None = None, context: Context | None = None
    ) -> torch.Tensor:
        length = len(x)
        x = x + w[e + "position_embeddings.weight"][:length]
        x = norm(x + w[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
        for i in range(layers):
            at = f"bert.encoder.layer.{i}."
            q, k, v = (
                dense(x, f"{at}attention.self.{n}").view(length, heads, -1).transpose(0, 1)
                for n in ("query", "key", "value")
            )
            if context is not None:
                k, v = context(i, k, v)
            h = dense(attend(q, k, v, active), f"{at}attention.output.dense")
            x = norm(x + h, f"{at}attention.output.LayerNorm")
            h = dense(F.gelu(dense(x, f"{at}intermediate.dense")), f"{at}output.dense")
            x = norm(x + h, f"{at}output.LayerNorm")
        h = F.gelu(dense(x, "cls.predictions.transform.dense"))
        h = norm(h, "cls.predictions.transform.LayerNorm")
        return h @ table.T + w["cls.predictions.bias"]

    return Reference(table, logits, mask)


def llada(
    weights: dict[str, torch.Tensor],
    heads: int,
    kv_heads: int,
    mask: int,
    theta: float,
    eps: float = 1e-5,
) -> Reference:
    """LLaDA's blocks: RMSNorm, rotary positions, SwiGLU (Nie et al., arXiv 2502.09992)."""
    w = {k.removeprefix("model.transformer."): v.double() for k, v in weights.items()}
    table = w["wte.weight"]
    width = table.shape[1] // heads
    layers = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * w[f"{name}.weight"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def logits(
        x: torch.Tensor, active: torch.Tensor | None = None, context: Context | None = None
    ) -> torch.Tensor:
        length = len(x)
        for i in range(layers):
            at = f"blocks.{i}."
            n = norm(x, f"{at}attn_norm")
            q, k, v = (
                (n @ w[f"{at}{name}_proj.weight"].T).view(length, count, width).transpose(0, 1)
                for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            k = rotate(k)
            if context is not None:
                k, v = context(i, k, v)
            x = x + attend(rotate(q), k, v, active) @ w[f"{at}attn_out.weight"].T
            n = norm(x, f"{at}ff_norm")
            gate, up = n @ w[f"{at}ff_proj.weight"].T, n @ w[f"{at}up_proj.weight"].T
            x = x + (F.silu(gate) * up) @ w[f"{at}ff_out.weight"].T
        return norm(x, "ln_f") @ w["ff_out.weight"].T

    return Reference(table, logits, mask)


def distribution(logits: torch.Tensor, forbidden: list[int]) -> torch.Tensor:
    logits = logits.clone()
    logits[..., forbidden] = -torch.inf
    return logits


def entropy(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(-1)


def influence(
    model: Reference,
    tokens: torch.Tensor,
    candidates: list[int],
    probes: list[int],
    *,
    alpha: list[float],
    tau: float = 1.0,
    active: list[int] | None = None,
    forbidden: list[int] = (),
    frozen: bool = False,
) -> torch.Tensor:
    """TIS [candidates]; `active` None is the dense adjoint. `frozen`: inactive rows keep the keys
    and values of the base pass, and are constants with that."""
    banned = [*forbidden, model.mask]
    base = model.table[tokens]
    context = (Context(),) if frozen else ()
    with torch.no_grad():
        logits = distribution(model.logits(base, None, *context)[candidates], banned)
        if tau == 0:
            soft = model.table[logits.argmax(-1)]
        else:
            soft = (logits / tau).softmax(-1) @ model.table
    delta = soft - model.table[model.mask]
    is_active = None
    if active is not None:
        is_active = torch.zeros(len(tokens), dtype=torch.bool)
        is_active[active] = True
    if frozen:
        context[0].active, is_active = is_active, None
    total = torch.zeros_like(delta)
    for a in alpha:
        leaf = (base[candidates] + a * delta).requires_grad_()
        x = base.clone().index_copy(0, torch.tensor(candidates), leaf)
        phi = entropy(distribution(model.logits(x, is_active, *context)[probes], banned)).sum()
        total += torch.autograd.grad(phi, leaf)[0]
    return -(total / len(alpha) * delta).sum(-1)


def factor_rule(falling: list[float], f: float) -> int:
    """Fast-dLLM's: the largest n whose ranks r = 2..n all have c_(r) >= 1 - f / (r + 1)."""
    n = 1
    while n < len(falling) and falling[n] >= 1 - f / (n + 2):
        n += 1
    return n


def spread_out(
    score: dict[int, float], at: list[int], sure: list[int], count: int, weight: float, width: float
) -> list[int]:
    """`count` of the scored rows one by one, each the best after what those before it cost; `at`
    are positions by row."""
    picked = list(sure)
    while len(picked) < count:

        def value(i: int) -> float:
            near = sum(math.exp(-abs(at[i] - at[j]) / width) for j in picked)
            return score[i] - weight * near

        picked.append(max((i for i in score if i not in picked), key=value))
    return picked


def decode(model: Reference, tokens: torch.Tensor, steps: int, policy: BoE) -> torch.Tensor:
    """A whole greedy BoE decode of one sequence with the active adjoint."""
    tokens = tokens.clone()
    masked = (tokens == model.mask).nonzero()[:, 0].tolist()
    total = len(masked) if policy.factor > 0 else min(steps, len(masked))
    for step in range(total):
        if not masked:
            break
        with torch.no_grad():
            logits = distribution(model.logits(model.table[tokens], None)[masked], [model.mask])
        c, guess = logits.softmax(-1).max(-1)
        h = entropy(logits)
        # Stable sorts keep the lowest position first among equals.
        order = sorted(range(len(masked)), key=lambda i: -c[i].item())
        sure = []
        if policy.factor > 0:
            sure = order[: factor_rule([c[i].item() for i in order], policy.factor)]
        count = max(len(sure), math.ceil(len(masked) / max(1, steps - step)))
        wanted = policy.n_candidates
        if isinstance(wanted, str):
            wanted = math.ceil(float(wanted.removesuffix("x")) * count)
        chosen = sorted(order[:wanted])
        rest = [i for i in range(len(masked)) if i not in chosen]
        if policy.probes == "candidates":
            rest = chosen
        else:
            sign = -1 if policy.probes == "most_entropic" else 1
            most = math.ceil(policy.rho * len(tokens))
            rest = sorted(rest, key=lambda i: sign * h[i].item())[:most]
        reveal = order[:count]
        if rest and len(chosen) > count > len(sure):
            at, probes = [masked[i] for i in chosen], sorted(masked[i] for i in rest)
            tis = influence(
                model, tokens, at, probes, alpha=policy.alpha,
                tau=0.0 if policy.draft == "token" else policy.tau,
                active=sorted({*at, *probes}), frozen=policy.context == "frozen",
            )  # fmt: skip
            if policy.rule == "nats":
                # Falls cannot add up to more than the entropy that there is.
                rising = tis.clamp_min(0).sum()
                tis = tis * (h[rest].sum() / rising).clamp(max=1) if rising > 0 else tis
                score = policy.gamma * c[chosen].log() + policy.weight * tis
            else:
                span = tis.max() - tis.min()
                scaled = (tis - tis.min()) / span if span > 0 else torch.ones_like(tis)
                score = c[chosen] ** policy.gamma * scaled
            floor = policy.h_max * (total - step) / total
            score -= policy.anti_collapse * (floor - h[chosen]).clamp_min(0) ** 2
            reveal = spread_out(
                dict(zip(chosen, score.tolist(), strict=True)), masked, sure, count,
                policy.spread, policy.spread_width,
            )  # fmt: skip
        for i in reveal:
            tokens[masked[i]] = guess[i]
        masked = [p for i, p in enumerate(masked) if i not in reveal]
    return tokens
