"""LLaDA's transformer as a plain PyTorch module.

Three users share it: the training script, the parity tests (as the independent reference for the
C++ model) and the benchmark (as the module a PyTorch user would write). Parameter names follow the
published LLaDA checkpoints, so ``state_dict()`` is the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LLaDAConfig:
    """The fields of a LLaDA ``config.json`` that decide the computation."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0


class RMSNorm(nn.Module):
    """Normalises in float32 and casts back before the weight, as LLaDA does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.double() if x.dtype == torch.float64 else x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


def rope_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of shape [length, head_dim] for half-split rotary positions."""
    inv = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), inv)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, L, head_dim]; the rotation is done in float32 (``rope_full_precision``)."""
    h = x if x.dtype == torch.float64 else x.float()
    first, second = h.chunk(2, dim=-1)
    return (h * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c: LLaDAConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = c.n_heads, c.n_kv_heads
        self.head_dim = c.d_model // c.n_heads
        kv = self.kv_heads * self.head_dim
        self.attn_norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.q_proj = nn.Linear(c.d_model, c.d_model, bias=False)
        self.k_proj = nn.Linear(c.d_model, kv, bias=False)
        self.v_proj = nn.Linear(c.d_model, kv, bias=False)
        self.attn_out = nn.Linear(c.d_model, c.d_model, bias=False)
        self.ff_norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.ff_proj = nn.Linear(c.d_model, c.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(c.d_model, c.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(c.mlp_hidden_size, c.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, active: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape

        def heads(t: Tensor, n: int) -> Tensor:
            return t.view(batch, length, n, self.head_dim).transpose(1, 2)

        h = self.attn_norm(x)
        q = apply_rope(heads(self.q_proj(h), self.heads), cos, sin)
        k = apply_rope(heads(self.k_proj(h), self.kv_heads), cos, sin)
        v = heads(self.v_proj(h), self.kv_heads)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        # Plain matrix products: the flash backward of CPU builds is far slower at these lengths.
        score = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        mix = score.softmax(-1).to(v.dtype) @ v
        mix = mix.transpose(1, 2).reshape(batch, length, -1)
        if active is not None:
            mix = torch.where(active[:, None], mix, mix.detach())
        x = x + self.attn_out(mix)
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class LLaDA(nn.Module):
    """tokens [B, L] int64 -> logits [B, L, vocab_size]."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        t = self.model.transformer = nn.Module()
        t.wte = nn.Embedding(config.vocab_size, config.d_model)
        t.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        t.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        t.ff_out = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.from_embeddings(self.model.transformer.wte(tokens))

    def from_embeddings(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, L, d_model], the input embeddings, -> logits [B, L, vocab_size].

        `active` [L] bool: the attention outputs of all other rows are constants to autograd
        (ActiveQueryAttention by stopped gradients).
        """
        c, t = self.config, self.model.transformer
        cos, sin = rope_table(x.shape[1], c.d_model // c.n_heads, c.rope_theta)
        for block in t.blocks:
            x = block(x, cos, sin, active)
        return t.ff_out(t.ln_f(x))
