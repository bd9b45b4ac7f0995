"""A random model of LLaDA's layout made where it runs, and a BoE step on its weights as one would
write it in PyTorch: autograd through everything, input gradients only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

MASK = 100


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int

    def floor(self, batch: int, length: int, bytes_per_second: float, flops: float) -> float:
        """Seconds of a plain forward pass, logits at half of the rows, at those ceilings."""
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.hidden)
        head = self.width * self.vocabulary
        rows = batch * length
        work = 2 * rows * matrices + rows * head  # half of the rows
        work += 4 * rows * length * self.width * self.layers
        return max(2 * (matrices + head) / bytes_per_second, work / flops)


def write_checkpoint(shape: Shape, folder: Path, device: str) -> dict[str, Tensor]:
    """Writes the folder; returns the weights on the device."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    weights: dict[str, Tensor] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        drawn = torch.randn(rows, columns, device=device, dtype=dtype, generator=generator)
        weights[f"model.transformer.{name}.weight"] = drawn.mul_(columns**-0.5)

    def ones(name: str) -> None:
        weights[f"model.transformer.{name}.weight"] = torch.ones(
            shape.width, device=device, dtype=dtype
        )

    matrix("wte", shape.vocabulary, shape.width)
    for i in range(shape.layers):
        block = f"blocks.{i}"
        ones(f"{block}.attn_norm")
        ones(f"{block}.ff_norm")
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            matrix(f"{block}.{name}", shape.width, shape.width)
        matrix(f"{block}.ff_proj", shape.hidden, shape.width)
        matrix(f"{block}.up_proj", shape.hidden, shape.width)
        matrix(f"{block}.ff_out", shape.width, shape.hidden)
    ones("ln_f")
    matrix("ff_out", shape.vocabulary, shape.width)
    save_file({k: v.cpu() for k, v in weights.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": shape.width,
        "n_layers": shape.layers, "n_heads": shape.heads, "n_kv_heads": shape.heads,
        "mlp_hidden_size": shape.hidden, "vocab_size": shape.vocabulary,
        "embedding_size": shape.vocabulary, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope": True, "rope_full_precision": True, "activation_type": "silu",
        "block_type": "llama", "layer_norm_type": "rms", "weight_tying": False,
        "include_bias": False, "include_qkv_bias": False, "max_sequence_length": 4096,
        "mask_token_id": MASK, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def rotate(x: Tensor) -> Tensor:
    """x [H, L, d]."""
    half = x.shape[2] // 2
    inverse = 500000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(x.shape[1], device=x.device, dtype=torch.float32), inverse)
    c, s = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def features(shape: Shape, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """x [L, D] -> [L, D], before the head."""

    def weight(name: str) -> Tensor:
        return weights[f"model.transformer.{name}.weight"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (shape.width,), weight(name), 1e-5)

    for i in range(shape.layers):
        block = f"blocks.{i}"
        h = norm(x, f"{block}.attn_norm")
        q, k, v = (
            F.linear(h, weight(f"{block}.{n}_proj")).unflatten(1, (shape.heads, -1)).transpose(0, 1)
            for n in "qkv"
        )
        mixed = F.scaled_dot_product_attention(rotate(q)[None], rotate(k)[None], v[None])[0]
        x = x + F.linear(mixed.transpose(0, 1).flatten(1), weight(f"{block}.attn_out"))
        h = norm(x, f"{block}.ff_norm")
        gate = F.silu(F.linear(h, weight(f"{block}.ff_proj")))
        h = gate * F.linear(h, weight(f"{block}.up_proj"))
        x = x + F.linear(h, weight(f"{block}.ff_out"))
    return norm(x, "ln_f")


def naive_step(
    shape: Shape, weights: dict[str, Tensor], tokens: Tensor, candidates: int, probes: int
) -> Tensor:
    table = weights["model.transformer.wte.weight"]
    head = weights["model.transformer.ff_out.weight"]

    def entropies(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(features(shape, weights, x)[rows], head).float()
        p = logits.softmax(1)
        return -(p * logits.log_softmax(1)).sum(1), p

    masked = (tokens == MASK).nonzero()[:, 0]
    with torch.no_grad():
        x = table[tokens]
        entropy, p = entropies(x, masked)
        order = p.max(1).values.argsort(descending=True)
        chosen, rest = order[:candidates], order[candidates:]
        others = masked[rest[entropy[rest].argsort()[:probes]]]
        delta = p[chosen].to(table.dtype) @ table - table[MASK]
    leaf = (x[masked[chosen]] + 0.5 * delta).requires_grad_()
    total = entropies(x.index_copy(0, masked[chosen], leaf), others)[0].sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return (gradient.float() * delta.float()).sum(1).cpu()
