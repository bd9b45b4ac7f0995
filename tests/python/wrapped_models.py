"""Random models for `tabes.wrap`, and what their scores are by autograd."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from reference import Reference
from torch import nn

MASK = 3
SIZES: dict[str, Any] = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=40, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model, its weights large enough that rows matter to each other."""
    torch.manual_seed(7)
    sizes = SIZES | changes
    if name == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
    elif name == "modernbert":
        ends = dict.fromkeys(("bos_token_id", "cls_token_id"), 1)
        ends |= dict.fromkeys(("eos_token_id", "sep_token_id"), 2)
        config = transformers.ModernBertConfig(**sizes, **ends, local_attention=8)
        model = transformers.ModernBertForMaskedLM(config)
    elif name in ("esm", "esm_positions"):
        config = transformers.EsmConfig(
            **sizes, token_dropout=True, mask_token_id=MASK, emb_layer_norm_before=False,
            position_embedding_type="rotary" if name == "esm" else "absolute",
        )  # fmt: skip
        model = transformers.EsmForMaskedLM(config)
    else:
        config = transformers.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16)
        config.is_causal = False
        model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(6)
    return model.to(dtype).eval()


# These rotate or normalise in float32 whatever their dtype.
ROUNDS = ["modernbert", "qwen3", "esm"]
TINY = ["bert", "modernbert", "esm", "esm_positions", "qwen3"]


def canvas(length: int, seed: int, vocab: int = 50, masks: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, vocab, (length,), generator=generator)
    tokens[torch.randperm(length, generator=generator)[: int(masks * length)]] = MASK
    return tokens


def split(tokens: torch.Tensor, mask: int = MASK, count: int = 4) -> tuple[list[int], list[int]]:
    masked = (tokens == mask).nonzero()[:, 0].tolist()
    return masked[::2][:count][::-1], masked[1::2][:count]


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# ---- The reference: stopped attention written out, in a copy of the model ------------------------

_kept: list[torch.Tensor | None] = [None]


def stopped(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    if _kept[0] is not None:
        out = torch.where(_kept[0][None, :, None, None], out, out.detach())
    return out, None


def reference_of(model: Any, tokens: torch.Tensor) -> Reference:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    transformers.AttentionInterface.register("stopped", stopped)
    transformers.AttentionMaskInterface.register("stopped", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = copy.deepcopy(model)
    model.set_attn_implementation("stopped")
    table = model.get_input_embeddings().weight.detach().clone()
    share = None
    if getattr(model.config, "token_dropout", False):
        table[MASK] = 0
        share = 1 - (tokens == MASK).float().mean()  # in float32, as transformers computes it

    def logits(x: torch.Tensor, active: torch.Tensor | None = None) -> torch.Tensor:
        _kept[0] = active
        try:
            x = (x if share is None else x * 0.88 / share)[None]
            if model.config.model_type == "esm":
                x = model.esm.embeddings(inputs_embeds=x)
            return model(inputs_embeds=x).logits[0]
        finally:
            _kept[0] = None

    return Reference(table, logits, MASK)


# ---- Of no library ----


class Mixer(nn.Module):
    """A model that no library knows: attention of its own, then a projection."""

    def __init__(self, vocab: int = 20, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(vocab, width)
        self.out = nn.Linear(width, vocab)
        self.double().eval()

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        x = inputs_embeds
        return self.out(x + (x @ x.transpose(1, 2)).softmax(-1) @ x.tanh())


class Known(Mixer):
    def get_input_embeddings(self) -> nn.Module:
        return self.table
