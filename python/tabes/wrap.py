"""``wrap``: models of other libraries, decoded and steered like those `tabes.load` reads."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from tabes import _core
from tabes._core import DeviceError, InputError
from tabes.arguments import flag, integer, integers, optional_integer
from tabes.model import Model
from tabes.text import Tokenizer

_NAME = "tabes"  # of our attention among those of transformers
_NO_LIMIT = 2**31 - 1
# ESM was trained with 15% of its tokens hidden, 80% of those behind the mask token.
_ESM_SHOWN = 1 - 0.15 * 0.8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Active(NamedTuple):
    """The rows of [B * L] whose attention outputs stay in the graph; the others are constants."""

    rows: torch.Tensor
    offsets: list[int]
    sequences: int
    length: int


_active: ContextVar[_Active | None] = ContextVar("tabes_active", default=None)
_attended: ContextVar[list[str] | None] = ContextVar("tabes_attended", default=None)


def wrap(
    model: Callable[..., Any],
    *,
    mask_token_id: int | None = None,
    tokenizer: Any = None,
    embedding_table: torch.Tensor | None = None,
    max_length: int | None = None,
    eos_token_ids: Iterable[int] | None = None,
    logit_shift: bool = False,
) -> Model:
    """Makes a model of `tabes` out of a PyTorch one, for `generate`, `influence` and the policies.

    Takes masked language models of transformers as they are (BERT, ModernBERT, ESM, and causal
    architectures made bidirectional with ``config.is_causal = False``), and any module or function
    that is called as ``model(inputs_embeds=x)`` with x [B, L, D] and returns logits [B, L, V] or
    something with ``.logits``. Sequences of one length are one call; nothing is ever padded.

    A transformers model is switched to an attention of ours that computes what its own "sdpa" does
    and leaves inactive rows out of the gradient (ActiveQueryAttention); a model that mixes
    positions elsewhere as well, by convolutions say, needs ``adjoint="dense"``. Other modules get
    the ordinary gradient, whatever `adjoint` says. Frozen contexts are to be had from `tabes.load`
    only: `tabes.BoE` replaces them by exact ones, and `tabes.influence` refuses them.

    The model is used as it is, not copied: it must stay in eval mode. Parameters keep their
    ``requires_grad`` and never receive a ``.grad``.

    ESM's token dropout: a masked position's embedding is zero and all others are scaled by
    ``0.88 / (1 - masks / L)``. Here the mask's row of the embedding table is zero, and the scale is
    that of the tokens as they stand: a candidate counts as masked while its embedding is moved
    towards the prediction. Scores are unchanged by where the scale is applied.

    Args:
        model: the model, in eval mode, in float32, bfloat16, float16 (on a GPU) or float64.
        mask_token_id: the mask token; by default config.mask_token_id, then the tokenizer's.
        tokenizer: a fast tokenizer of transformers, a ``tokenizers.Tokenizer`` or a
            `tabes.text.Tokenizer`; without one `generate` takes token ids only.
        embedding_table: input embeddings [V, D]; by default model.get_input_embeddings().
        max_length: longest sequence; by default what the config says, else no limit.
        eos_token_ids: tokens that end a text; by default what the config says.
        logit_shift: position i is predicted by the output at i - 1.

    Raises:
        InputError: the model is in training mode, its embeddings cannot be reached, it returns no
            logits or of another shape, it is causal, no mask token is known, or (transformers
            models) its logits for embeddings differ from those for the same tokens.
        DeviceError: the dtype is not one of the above, or the device neither CPU nor CUDA.
    """
    if not callable(model):
        raise InputError(f"model is a {type(model).__name__}, which cannot be called")
    config = _config(model)
    text = _tokenizer(tokenizer, mask_token_id, config)
    mask = optional_integer(mask_token_id, "mask_token_id")
    if mask is None:
        mask = _id(config, "mask_token_id")
    if mask is None and text is not None:
        mask = text.mask_token_id
    if mask is None:
        raise InputError("no mask token is known: give mask_token_id, or a tokenizer that has one")

    if isinstance(model, torch.nn.Module):
        _check_module(model)
    table = _table(model) if embedding_table is None else embedding_table
    if not isinstance(table, torch.Tensor) or table.dim() != 2:
        raise InputError("embedding_table: give the input embeddings as a tensor [V, D]")
    if table.dtype not in _DTYPES:
        raise DeviceError(f"the model is {table.dtype}: use float32, bfloat16, float16 or float64")
    table = table.detach()
    embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    if getattr(config, "model_type", None) == "esm":
        embed = _Esm(model, mask)
        if embed.drops_tokens and 0 <= mask < len(table):
            table = table.clone()
            table[mask] = 0

    core = _core.module_denoiser(
        _function(model, embed),
        table,
        family=str(getattr(config, "model_type", "module")),
        mask_token_id=mask,
        max_length=_max_length(model, config)
        if max_length is None
        else integer(max_length, "max_length"),
        num_layers=_id(config, "num_hidden_layers") or 0,
        parameters=_count(model),
        eos_token_ids=_eos(config)
        if eos_token_ids is None
        else integers(eos_token_ids, "eos_token_ids"),
        bos_token_id=_id(config, "bos_token_id"),
        pad_token_id=_id(config, "pad_token_id"),
        logit_shift=flag(logit_shift, "logit_shift"),
    )
    wrapped = Model(core, tokenizer=text)
    if _is_pretrained(model):
        before = model.config._attn_implementation  # type: ignore[attr-defined]
        try:
            _install(model)
            _probe(model, wrapped)
        except BaseException:
            model.set_attn_implementation(before)  # type: ignore[attr-defined]
            raise
    return wrapped


# ---- What the model is ---------------------------------------------------------------------------


def _is_pretrained(model: Any) -> bool:
    # Whoever has such a model has imported transformers; nobody else needs to.
    library = sys.modules.get("transformers")
    return library is not None and isinstance(model, library.PreTrainedModel)


def _config(model: Any) -> Any:
    if not _is_pretrained(model):
        return None
    return model.config.get_text_config()


def _id(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _eos(config: Any) -> list[int]:
    ids = getattr(config, "eos_token_id", None)
    ids = ids if isinstance(ids, (list, tuple)) else [ids]
    size = _id(config, "vocab_size") or 0
    return [i for i in ids if isinstance(i, int) and 0 <= i < size]


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _max_length(model: Any, config: Any) -> int:
    limit = _id(config, "max_position_embeddings") or _NO_LIMIT
    if isinstance(model, torch.nn.Module):
        for module in model.modules():
            # RoBERTa and the first ESM count positions from behind the padding token's id.
            table = getattr(module, "position_embeddings", None)
            if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
                limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    return limit


def _check_module(model: torch.nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} is in training mode, where dropout and the like make it "
            "another function at every call: call its eval() first"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise InputError(
            f"{type(model).__name__} was made under torch.inference_mode(), so autograd cannot "
            "use its weights: build it outside"
        )


def _table(model: Any) -> torch.Tensor:
    get = getattr(model, "get_input_embeddings", None)
    try:
        module = None if get is None else get()
    except (NotImplementedError, AttributeError):
        module = None
    weight = getattr(module, "weight", None)
    if not isinstance(module, torch.nn.Module) or not isinstance(weight, torch.Tensor):
        raise InputError(
            f"the input embeddings of {type(model).__name__} cannot be reached: pass them as "
            "embedding_table [V, D]"
        )
    if type(module) is torch.nn.Embedding:
        return weight
    # A table that does more than look up (Gemma scales) is taken as it answers.
    with _plain(weight.device):
        ids = torch.arange(weight.shape[0], device=weight.device)
        table: torch.Tensor = module(ids)
    return table


def _tokenizer(given: Any, mask_token_id: int | None, config: Any) -> Tokenizer | None:
    if given is None or isinstance(given, Tokenizer):
        return given
    from tokenizers import Tokenizer as Backend

    backend = given if isinstance(given, Backend) else getattr(given, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise InputError(
            f"tokenizer is a {type(given).__name__}, which has no backend_tokenizer: give a fast "
            "tokenizer of transformers, or none and token ids"
        )
    if mask_token_id is None:
        mask_token_id = _id(config, "mask_token_id")
    if mask_token_id is None:
        mask_token_id = getattr(given, "mask_token_id", None)
    named = getattr(given, "special_tokens_map", {})
    template = getattr(given, "chat_template", None)
    return Tokenizer(
        Backend.from_str(backend.to_str()),  # a copy: ours changes its settings
        mask_token_id=mask_token_id,
        named_tokens={k: str(v) for k, v in named.items() if not isinstance(v, (list, tuple))},
        chat_template=template if isinstance(template, str) else None,
    )


# ---- The function from embeddings to logits ------------------------------------------------------


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """Neither gradients nor inference mode nor autocast, whatever the caller has set."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


class _Esm:
    """What transformers leaves out when it gives an ESM embeddings instead of ids: the scale of
    token dropout, and the embedding layer's positions and norm."""

    def __init__(self, model: Any, mask_token_id: int) -> None:
        self.drops_tokens = bool(model.config.token_dropout)
        self._layer = model.base_model.embeddings
        self._mask = mask_token_id

    def __call__(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self.drops_tokens:
            length = tokens.shape[1]
            hidden = (tokens == self._mask).sum(1).float() / length
            # Where all is masked, transformers divides zero by zero.
            shown = (1 - hidden).clamp(min=1 / length)[:, None, None]
            embeddings = (embeddings * _ESM_SHOWN / shown).to(embeddings.dtype)
        layer: torch.Tensor = self._layer(inputs_embeds=embeddings)
        return layer


def _function(
    model: Callable[..., Any],
    embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, list[int]], torch.Tensor]:
    """What the C++ model calls. `embed` comes before the model, if anything does."""
    options = {}
    if _is_pretrained(model) and "use_cache" in inspect.signature(model.forward).parameters:  # type: ignore[attr-defined]
        options["use_cache"] = False

    def logits(
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor | None,
        offsets: list[int],
    ) -> torch.Tensor:
        if isinstance(model, torch.nn.Module) and model.training:
            raise InputError(f"{type(model).__name__} was put in training mode: call its eval()")
        if embed is not None:
            embeddings = embed(embeddings, tokens)
        active = None if rows is None else _Active(rows, offsets, *tokens.shape)
        before = _active.set(active)
        try:
            return _logits(model, model(inputs_embeds=embeddings, **options))
        finally:
            _active.reset(before)

    return logits


def _logits(model: Any, out: Any) -> torch.Tensor:
    found = getattr(out, "logits", out)
    if isinstance(out, dict):
        found = out.get("logits")
    if isinstance(found, tuple) and found and not hasattr(out, "logits"):
        found = found[0]
    if not isinstance(found, torch.Tensor):
        name = getattr(model, "__name__", type(model).__name__)
        raise InputError(
            f"{name} returned {type(out).__name__}, not logits [B, L, V] or an output with .logits;"
            " wrap a model with a language-model head"
        )
    return found


# ---- Attention of transformers -------------------------------------------------------------------


def _install(model: Any) -> None:
    """Puts our attention into the model; without effect where its layers do not take another."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if getattr(model, "_supports_sdpa", False):
        AttentionInterface.register(_NAME, _attention)
        # Without masks of its own name a model drops them all: windows, padding, causality.
        AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(_NAME)


def _attention(
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


def _probe(model: Any, wrapped: Model) -> None:
    """Compares three tokens' logits by embeddings with those by ids, and looks for causality."""
    info = wrapped.info
    shown = next(
        i for i in range(info.vocab_size) if i not in (info.mask_token_id, info.pad_token_id)
    )
    name = type(model).__name__
    table = wrapped.core.embedding_table()
    ids = torch.tensor([[shown, info.mask_token_id, shown]])[:, : info.max_length]
    calls: list[str] = []
    token = _attended.set(calls)
    try:
        with _plain(table.device):
            own = _logits(model, model(input_ids=ids.to(table.device)))
        got = wrapped.core.logits([ids[0]])
        other = ids[0].clone()
        other[-1] = info.mask_token_id
        changed = wrapped.core.logits([other])
    except (TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be called with inputs_embeds: {error}") from error
    finally:
        _attended.reset(token)
    wanted = own[0].to(got.dtype)
    rounding = {torch.bfloat16: 0.05, torch.float16: 0.01}.get(table.dtype, 1e-3)
    if not torch.allclose(got, wanted, rtol=rounding, atol=rounding * float(wanted.abs().max())):
        raise InputError(
            f"{name} computes other logits from embeddings than from the same tokens (they differ "
            f"by up to {float((got - wanted).abs().max()):.3g}): it uses the token ids beside the "
            "embedding table, which cannot be steered"
        )
    if len(other) > 1 and torch.equal(got[0], changed[0]) and not torch.equal(got, changed):
        raise InputError(
            f"{name} is causal: a position's logits do not depend on later ones. Set "
            "config.is_causal = False where the architecture knows it, or wrap a masked model"
        )
    if not calls:
        warnings.warn(
            f"the attention of {name} cannot be replaced through transformers' AttentionInterface: "
            "influence scores will have the gradient of all rows (adjoint='dense')",
            stacklevel=3,
        )
