"""``wrap``: models of other libraries, decoded and steered like those `tabes.load` reads."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tabes import _core, attention
from tabes._core import DeviceError, Error, InputError
from tabes.arguments import flag, integer, integers, optional_integer
from tabes.embeddings import Embeddings, given_embeddings, own_embeddings, plain
from tabes.model import Model
from tabes.text import Tokenizer

_NO_LIMIT = 2**31 - 1
# ESM was trained with 15% of its tokens hidden, 80% of those behind the mask token.
_ESM_SHOWN = 1 - 0.15 * 0.8
_WANTED = (
    "tabes.wrap takes masked language models that are called as model(input_ids=...) or "
    "model(inputs_embeds=...) and return .logits [B, L, V]"
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# What the functions below call: (embeddings [B, L, D], tokens [B, L], active rows of [B * L] or
# None, their offsets) -> logits [B, L, V].
_Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, list[int]], torch.Tensor]


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
    ``requires_grad`` and never receive a ``.grad``. Weights may be trained or loaded in place. When
    the input embeddings are replaced, moved or cast, the next call says so: `wrap` again.

    ESM's token dropout: a masked position's embedding is zero and all others are scaled by
    ``0.88 / (1 - masks / L)``. Here the mask's row of the embedding table is zero, and the scale is
    that of the tokens as they stand: a candidate counts as masked while its embedding is moved
    towards the prediction. Scores are unchanged by where the scale is applied.

    Args:
        model: the model, in eval mode, in float32, bfloat16, float16 (on a GPU) or float64.
        mask_token_id: the mask token; by default config.mask_token_id, then the tokenizer's.
        tokenizer: one of transformers, a ``tokenizers.Tokenizer`` or a `tabes.text.Tokenizer`;
            without one `generate` takes token ids only. What is no text by its name ([UNK], <pad>)
            is not written unless `generate` is told to (``allow_special``).
        embedding_table: input embeddings [V, D]; by default model.get_input_embeddings().
        max_length: longest sequence; by default what the config says, else no limit.
        eos_token_ids: tokens that end a text; by default what config, generation_config and
            tokenizer name, and none of an ESM.
        logit_shift: position i is predicted by the output at i - 1.

    Raises:
        InputError: the model is in training mode, an encoder-decoder model or causal, its
            embeddings cannot be reached, it returns no logits or of another shape, no mask token is
            known, or (transformers models) its logits for embeddings differ from those for the same
            tokens. So do later calls if its embeddings, its mode or its attention are others then.
        DeviceError: the dtype is not one of the above, or the device neither CPU nor CUDA.
    """
    if not callable(model):
        raise InputError(f"model is a {type(model).__name__}, which cannot be called")
    name = _name(model)
    pretrained = _pretrained(model)
    config = None if pretrained is None else _config(pretrained)
    mask = optional_integer(mask_token_id, "mask_token_id")
    if mask is None:
        mask = _id(config, "mask_token_id")
    text = None if tokenizer is None else Tokenizer.adapt(tokenizer, mask)
    if mask is None and text is not None:
        mask = text.mask_token_id
    if mask is None:
        raise InputError("no mask token is known: give mask_token_id, or a tokenizer that has one")

    module = _module(model)
    if module is not None:
        _check_module(module)
    source = (
        own_embeddings(model if pretrained is None else pretrained, name)
        if embedding_table is None
        else given_embeddings(embedding_table, module, name)
    )
    if source.table.dtype not in _DTYPES:
        raise DeviceError(
            f"the model is {source.table.dtype}: use float32, bfloat16, float16 or float64"
        )
    size = len(source.table)
    embed: _Esm | None = None
    if pretrained is not None and getattr(config, "model_type", None) == "esm":
        embed = _Esm(pretrained, mask)
        if embed.drops_tokens and 0 <= mask < size:
            source.writable()[mask] = 0

    said = [config, getattr(pretrained, "generation_config", None), tokenizer]
    # ESM's <eos> stands behind every protein; one that it wrote within would be no residue.
    ends = [] if embed is not None else _ends(said, tokenizer, size)
    special = [] if text is None else [i for i in text.unwritten_token_ids if i < size]
    function = _function(model, module, pretrained, source, embed)
    core = _core.module_denoiser(
        function,
        source.table,
        family=str(getattr(config, "model_type", "module")),
        mask_token_id=mask,
        max_length=_max_length(module, config)
        if max_length is None
        else integer(max_length, "max_length"),
        num_layers=_id(config, "num_hidden_layers") or 0,
        parameters=0 if module is None else sum(p.numel() for p in module.parameters()),
        eos_token_ids=ends if eos_token_ids is None else integers(eos_token_ids, "eos_token_ids"),
        bos_token_id=next(iter(_ids(said, "bos_token_id", size)), None),
        pad_token_id=next(iter(_ids(said, "pad_token_id", size)), None),
        special_token_ids=special,
        logit_shift=flag(logit_shift, "logit_shift"),
    )
    wrapped = Model(core, tokenizer=text)
    if pretrained is not None:
        before = pretrained.config._attn_implementation
        try:
            attention.install(pretrained)
            _probe(model, name, function, wrapped)
        except BaseException:
            pretrained.set_attn_implementation(before)
            raise
    return wrapped


# ---- What the model is ---------------------------------------------------------------------------


def _name(model: Any) -> str:
    return str(getattr(model, "__name__", type(model).__name__))


def _module(model: Any) -> torch.nn.Module | None:
    """The module that is called: itself, or through one of its methods."""
    if isinstance(model, functools.partial):
        return _module(model.func)
    owner = model if isinstance(model, torch.nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, torch.nn.Module) else None


def _pretrained(model: Any) -> Any:
    """The model of transformers that `model` is, or that it only wraps; else None."""
    # Whoever has such a model has imported transformers; nobody else needs to.
    library = sys.modules.get("transformers")
    if library is None:
        return None
    while isinstance(model, torch.nn.Module) and not isinstance(model, library.PreTrainedModel):
        if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif callable(get := getattr(model, "get_base_model", None)):  # peft
            model = get()
        else:
            return None
    return model if isinstance(model, library.PreTrainedModel) else None


def _config(model: Any) -> Any:
    """The config of its text part."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder model, whose decoder writes from left to right. "
            f"{_WANTED}"
        )
    try:
        return model.config.get_text_config()
    except Exception as error:  # of models with several text parts
        raise InputError(f"{name} has no config of one text model ({error}). {_WANTED}") from error


def _id(source: Any, name: str) -> int | None:
    value = getattr(source, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ids(sources: Iterable[Any], name: str, size: int) -> list[int]:
    """What the sources say, each a number or a list of them, as far as the vocabulary has it."""
    found: list[int] = []
    for source in sources:
        value = getattr(source, name, None)
        for i in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < size and i not in found:
                found.append(i)
    return found


def _ends(sources: Iterable[Any], tokenizer: Any, size: int) -> list[int]:
    ends = _ids(sources, "eos_token_id", size)
    # RoBERTa's tokenizer calls its separator so, behind which a text may go on.
    by_model = _ids([s for s in sources if s is not tokenizer], "eos_token_id", size)
    separators = {i for n in ("sep_token_id", "cls_token_id") for i in _ids([tokenizer], n, size)}
    return [i for i in ends if i in by_model or i not in separators]


def _max_length(module: torch.nn.Module | None, config: Any) -> int:
    limit = _id(config, "max_position_embeddings") or _NO_LIMIT
    for part in () if module is None else module.modules():
        # RoBERTa and the first ESM count positions from behind the padding token's id.
        table = getattr(part, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    return limit


def _check_module(module: torch.nn.Module) -> None:
    name = type(module).__name__
    if _trains(module):
        raise InputError(
            f"{name} is in training mode, where dropout and the like make it another function at "
            "every call: call its eval() first"
        )
    if any(p.is_inference() for p in module.parameters()):
        raise InputError(
            f"{name} was made under torch.inference_mode(), so autograd cannot use its weights: "
            "build it outside"
        )


def _trains(module: torch.nn.Module) -> bool:
    return any(part.training for part in module.modules())


# ---- The function from embeddings to logits ------------------------------------------------------


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
    module: torch.nn.Module | None,
    pretrained: Any,
    source: Embeddings,
    embed: _Esm | None,
) -> _Function:
    """What the C++ model calls. `embed` comes before the model, if anything does."""
    options = {}
    if pretrained is not None and "use_cache" in inspect.signature(pretrained.forward).parameters:
        options["use_cache"] = False

    def logits(
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor | None,
        offsets: list[int],
    ) -> torch.Tensor:
        source.check()
        if module is not None and _trains(module):
            raise InputError(f"{type(module).__name__} was put in training mode: call its eval()")
        if embed is not None:
            embeddings = embed(embeddings, tokens)
        active = None
        if rows is not None:
            active = attention.Active(rows, offsets, *tokens.shape)
            if pretrained is not None:
                attention.check(pretrained)
        with attention.limited_to(active):
            return _logits(model, model(inputs_embeds=embeddings, **options))

    return logits


def _logits(model: Any, out: Any) -> torch.Tensor:
    found = getattr(out, "logits", out)
    if isinstance(out, dict):
        found = out.get("logits")
    if isinstance(found, tuple) and found and not hasattr(out, "logits"):
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise InputError(
            f"{_name(model)} returned {type(out).__name__}, not logits [B, L, V] or an output with "
            ".logits; wrap a model with a language-model head"
        )
    return found


def _probe(model: Any, name: str, function: _Function, wrapped: Model) -> None:
    """Compares three tokens' logits by embeddings with those by ids, and looks for causality."""
    info = wrapped.info
    shown = next(
        i for i in range(info.vocab_size) if i not in (info.mask_token_id, info.pad_token_id)
    )
    table = wrapped.core.embedding_table()
    ids = torch.tensor([shown, info.mask_token_id, shown], device=table.device)[: info.max_length]
    other = ids.clone()
    other[1:2] = shown
    with attention.noted() as calls:
        try:
            wrapped.core.logits([ids])  # checks their shape
            with plain(table.device):
                own = _logits(model, model(input_ids=ids[None]))[0]
                # Not shifted, whatever logit_shift says: as the model itself gives them.
                got, changed = (
                    function(table[i][None], i[None], None, [])[0] for i in (ids, other)
                )
        except (Error, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the code of others raises
            raise InputError(
                f"{name} cannot be called with inputs_embeds ({type(error).__name__}: {error}). "
                f"{_WANTED}"
            ) from error
    wanted = own.to(got.dtype)
    rounding = {torch.bfloat16: 0.05, torch.float16: 0.01}.get(table.dtype, 1e-3)
    if got.shape != wanted.shape or not torch.allclose(
        got, wanted, rtol=rounding, atol=rounding * float(wanted.abs().max())
    ):
        apart = "in shape"
        if got.shape == wanted.shape:
            apart = f"by up to {float((got - wanted).abs().max()):.3g}"
        raise InputError(
            f"{name} computes other logits from embeddings than from the same tokens (they differ "
            f"{apart}): it uses the token ids beside the embedding table, which cannot be steered"
        )
    if len(ids) > 1 and torch.equal(got[0], changed[0]) and not torch.equal(got, changed):
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
