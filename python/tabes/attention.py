"""An attention for models of transformers: it computes what their own "sdpa" does, and leaves
inactive rows out of a gradient of ours (ActiveQueryAttention, arXiv 2602.00250)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from tabes._core import InputError

NAME = "tabes"  # among the attentions of transformers


class Active(NamedTuple):
    """The rows of [B * L] whose attention outputs stay in the graph; the others are constants."""

    rows: torch.Tensor
    offsets: list[int]
    sequences: int
    length: int


_active: ContextVar[Active | None] = ContextVar("tabes_active", default=None)
_attended: ContextVar[list[str] | None] = ContextVar("tabes_attended", default=None)


@contextmanager
def limited_to(rows: Active | None) -> Iterator[None]:
    """Leaves all other rows out of the graph; None: no row is left out."""
    before = _active.set(rows)
    try:
        yield
    finally:
        _active.reset(before)


@contextmanager
def noted() -> Iterator[list[str]]:
    """The names of the modules that attend through `attend` meanwhile."""
    calls: list[str] = []
    before = _attended.set(calls)
    try:
        yield calls
    finally:
        _attended.reset(before)


def install(model: Any) -> None:
    """Puts our attention into the model; without effect where its layers do not take another."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if getattr(model, "_supports_sdpa", False):
        AttentionInterface.register(NAME, attend)
        # Without masks of its own name a model drops them all: windows, padding, causality.
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)


def check(model: Any) -> None:
    """Raises InputError if the model was given another attention after `install`."""
    name = model.config._attn_implementation
    if getattr(model, "_supports_sdpa", False) and name != NAME:
        raise InputError(
            f"the attention of {type(model).__name__} was switched to {name!r}, which cannot leave "
            "rows out of a gradient: call tabes.wrap again, or use adjoint='dense'"
        )


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """query [B, H, L, d], key and value [B, Hkv, L, d] -> [B, L, H, d]: "sdpa", but for inactive
    rows a constant to autograd. Outside a gradient of ours it is "sdpa" and nothing else."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if (calls := _attended.get()) is not None:
        calls.append(type(module).__name__)
    active = _active.get()
    b, heads, length, width = query.shape
    ours = active is not None and (b, length) == (active.sequences, active.length)
    if active is not None and ours and _fits(module, query, key, value, attention_mask, options):

        def packed(t: torch.Tensor) -> torch.Tensor:
            return t.transpose(1, 2).flatten(0, 1)

        bias = None
        if attention_mask is not None:
            bias = (
                _bias(attention_mask, query.dtype).expand(b, 1, length, length).reshape(-1, length)
            )
        out = torch.ops.tabes.active_query_attention(
            packed(query),
            packed(key),
            packed(value),
            active.rows,
            active.offsets,
            list(range(0, b * length + 1, length)),
            width**-0.5 if scaling is None else scaling,
            bias,
        )
        return out.view(b, length, heads, width), None

    out, weights = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    if active is not None and ours:
        # The definition of ActiveQueryAttention, for whatever our operator does not compute.
        kept = torch.zeros(b * length, dtype=torch.bool, device=out.device)
        kept[active.rows] = True
        out = torch.where(kept.view(b, length, 1, 1), out, out.detach())
    return out, weights


def _fits(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> bool:
    """Whether our operator computes this attention: on the CPU, one mask for all heads."""
    if query.device.type != "cpu" or key.shape != value.shape or key.shape[2:] != query.shape[2:]:
        return False
    if any(
        options.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache")
    ):
        return False
    if mask is not None:
        return mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2:] == (query.shape[2],) * 2
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return not causal or query.shape[2] == 1


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    # Not -inf: a query that may see nothing would become NaN.
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )
