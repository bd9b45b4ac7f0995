"""A random model of LLaDA's layout made where it runs, and a BoE step on its weights as one would
write it in PyTorch: autograd through everything, input gradients only."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

MASK = 100
SHARD_LAYERS = 4


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.hidden)
        return matrices + 2 * self.width * self.vocabulary + (2 * self.layers + 1) * self.width


LLADA_8B = Shape(4096, 32, 32, 12288, 126464)
TINY = Shape(64, 2, 2, 256, 1000)


def roomy_folder(needed: int, folders: Sequence[Path] | None = None) -> Path:
    """The first folder with so many bytes free: memory, or else where temporary files go."""
    if folders is None:
        folders = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    seen = []
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        free = shutil.disk_usage(folder).free
        # Some for whatever else writes there meanwhile.
        if free >= 1.05 * needed:
            return folder
        seen.append(f"{folder} {free / 1e9:.1f} GB")
    raise RuntimeError(
        f"the random checkpoint takes {needed / 1e9:.1f} GB, more than is free in any of: "
        f"{', '.join(seen) or 'no folder'}; set TMPDIR to a folder with room, or give --layers less"
    )


def write_checkpoint(shape: Shape, folder: Path, device: str) -> dict[str, Tensor]:
    """Writes the folder, a few layers a file; returns the weights on the device."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    weights: dict[str, Tensor] = {}
    files: dict[str, str] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        drawn = torch.randn(rows, columns, device=device, dtype=dtype, generator=generator)
        weights[f"model.transformer.{name}.weight"] = drawn.mul_(columns**-0.5)

    def ones(name: str) -> None:
        weights[f"model.transformer.{name}.weight"] = torch.ones(
            shape.width, device=device, dtype=dtype
        )

    def close_shard() -> None:
        name = f"model-{len(set(files.values())) + 1:05}.safetensors"
        fresh = {key: tensor.cpu() for key, tensor in weights.items() if key not in files}
        save_file(fresh, folder / name)
        files.update(dict.fromkeys(fresh, name))

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
        if i % SHARD_LAYERS == 0:
            close_shard()
    ones("ln_f")
    matrix("ff_out", shape.vocabulary, shape.width)
    close_shard()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, L, d]; cos and sin [L, d / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def features(shape: Shape, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """x [B, L, D] -> [B, L, D], before the head."""

    def weight(name: str) -> Tensor:
        return weights[f"model.transformer.{name}.weight"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (shape.width,), weight(name), 1e-5)

    half = shape.width // shape.heads // 2
    numbers = torch.arange(max(half, x.shape[1]), device=x.device, dtype=torch.float32)
    angle = torch.outer(numbers[: x.shape[1]], 500000.0 ** (-numbers[:half] / half))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    heads = (*x.shape[:2], shape.heads, 2 * half)
    for i in range(shape.layers):
        block = f"blocks.{i}"
        h = norm(x, f"{block}.attn_norm")
        q, k, v = (
            F.linear(h, weight(f"{block}.{n}_proj")).view(*heads).transpose(1, 2) for n in "qkv"
        )
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), weight(f"{block}.attn_out"))
        h = norm(x, f"{block}.ff_norm")
        gate = F.silu(F.linear(h, weight(f"{block}.ff_proj")))
        h = gate * F.linear(h, weight(f"{block}.up_proj"))
        x = x + F.linear(h, weight(f"{block}.ff_out"))
    return norm(x, "ln_f")


class NaiveSteps:
    """Steps on canvases [B, L] that have the same number of masks each."""

    def __init__(self, shape: Shape, weights: dict[str, Tensor], tokens: Tensor) -> None:
        self.shape, self.weights = shape, weights
        self.tokens = tokens
        self.table = weights["model.transformer.wte.weight"]
        self.head = weights["model.transformer.ff_out.weight"]

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """x [B, L, D] -> [B, n, V] float32 at rows [B, n] of the B * L."""
        chosen = features(self.shape, self.weights, x).flatten(0, 1)[rows]
        return F.linear(chosen, self.head).float()

    @staticmethod
    def entropy(logits: Tensor) -> Tensor:
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    def plain(self) -> Tensor:
        """The order of the masked rows [B, M] by confidence."""
        return self.look()[2]

    @torch.no_grad()
    def look(self) -> tuple[Tensor, Tensor, Tensor]:
        """The masked rows [B, M], their logits and their order."""
        batch = len(self.tokens)
        masked = (self.tokens == MASK).flatten().nonzero()[:, 0].view(batch, -1)
        logits = self.logits(self.table[self.tokens], masked)
        return masked, logits, logits.softmax(-1).amax(-1).argsort(1, descending=True)

    def steered(self, candidates: int, probes: int) -> Tensor:
        """Influence [B, candidates] of the most confident rows on the least entropic others."""
        masked, logits, order = self.look()
        chosen, rest = order[:, :candidates], order[:, candidates:]
        with torch.no_grad():
            spread = self.entropy(logits).gather(1, rest).argsort(1)[:, :probes]
            probed = masked.gather(1, rest.gather(1, spread))
            wide = chosen[..., None].expand(-1, -1, logits.shape[-1])
            expected = logits.gather(1, wide).softmax(-1).to(self.table.dtype)
            delta = expected @ self.table - self.table[MASK]
            x = self.table[self.tokens]
        del logits
        rows = masked.gather(1, chosen).flatten()
        leaf = (x.flatten(0, 1)[rows] + 0.5 * delta.flatten(0, 1)).requires_grad_()
        changed = x.flatten(0, 1).index_copy(0, rows, leaf).view_as(x)
        total = self.entropy(self.logits(changed, probed)).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        return -(gradient.view_as(delta).float() * delta.float()).sum(-1).cpu()
