"""``generate``: prompts in, tokens and texts out, the C++ loop in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, overload

import torch
from typing_extensions import Unpack

from tabes import _core
from tabes._core import Error, InputError, Policy, StepRecord
from tabes.arguments import flag, integer, integers, number, optional_integer, seed_of_draws
from tabes.chat import Message
from tabes.inputs import Batch, Prompts, prepare, token_ids
from tabes.model import Model
from tabes.output import GenerateOutput
from tabes.policies import make_policy
from tabes.suggest import unknown_argument

Callback = Callable[[StepRecord, list[torch.Tensor]], bool | None]

# The names that other decoders use for the same thing.
_ALIASES = {
    "max_new_tokens": "gen_length",
    "block_size": "block_length",
    "alg": "policy",
    "remasking": "policy",
}


class _Unset(str):
    """A default that can be told from the same text given by the caller."""


_CONFIDENCE = _Unset("confidence")


class GenerateArguments(TypedDict, total=False):
    """The keyword arguments of `generate`, for type checkers; its help says what they mean."""

    steps: int
    gen_length: int | None
    block_length: int | None
    refresh_every: int
    policy: str | Policy
    temperature: float
    top_p: float
    top_k: int
    cfg_scale: float
    seed: int
    sequence_ids: Iterable[int]
    forbidden: Iterable[int | str]
    allow_special: bool
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool
    on_device: bool | None
    cuda_graphs: bool
    callback: Callback | None
    attention_mask: Any
    max_new_tokens: int | None
    block_size: int | None
    alg: str | Policy | None
    remasking: str | Policy | None


@overload
def generate(
    model: Model,
    tokens_or_prompt: str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]],
    **arguments: Unpack[GenerateArguments],
) -> GenerateOutput[list[str]]: ...
@overload
def generate(
    model: Model, tokens_or_prompt: Prompts, **arguments: Unpack[GenerateArguments]
) -> GenerateOutput: ...
def generate(
    model: Model,
    tokens_or_prompt: Prompts,
    *,
    steps: int = 64,
    gen_length: int | None = None,
    block_length: int | None = None,
    refresh_every: int = 1,
    policy: str | Policy = _CONFIDENCE,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    cfg_scale: float = 0.0,
    seed: int = 0,
    sequence_ids: Iterable[int] = (),
    forbidden: Iterable[int | str] = (),
    allow_special: bool = False,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    on_device: bool | None = None,
    cuda_graphs: bool = False,
    callback: Callback | None = None,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    block_size: int | None = None,
    alg: str | Policy | None = None,
    remasking: str | Policy | None = None,
    **unknown: Any,
) -> GenerateOutput[Any]:
    """Fills the masked positions of one sequence or a batch.

    Args:
        model: from `tabes.load` or `tabes.wrap`.
        tokens_or_prompt: one sequence or a batch: token ids (tensor or array [L] or [B, L], list,
            or list of lists of any lengths) with the mask id wherever something is to be filled;
            text, or a list of texts, with ``[MASK]`` at such places; or chat messages (dicts with
            ``role`` and ``content``), or a list of conversations. Lists may be arrays, columns or
            iterators. What a tokenizer of transformers returns is taken too (``input_ids`` with
            ``attention_mask``). Token ids that look padded bring a `PaddingWarning`.
        steps: denoising steps; the masks are divided evenly over them, the rest to the early ones.
        gen_length: appends this many masks to every prompt. Text keeps the token with which its
            tokenizer ends every text behind them: ``[BOS] prompt masks [EOS]``. In texts and chats
            these masks alone are filled: ``[MASK]`` in a prompt is then text. (Masks among token
            ids are filled too.) In chats, names of special tokens in messages are always text.
        block_length: fills blocks of this many positions one after the other; None: all at once.
        refresh_every: 1: every step is a full forward pass; n: only every n-th is, and the steps
            between compute the masked positions alone while all others keep their attention keys
            and values (a dual cache; an approximation); 0: only the first is full. Models from
            `tabes.wrap` always take full passes.
        policy: which positions to reveal first: a name of `tabes.policy_names`, or a policy object,
            such as `tabes.BoE` or `tabes.make_policy` with settings of your own.
        temperature: 0 takes the most likely token; otherwise tokens are drawn at this temperature.
        top_p: draws from the smallest set of tokens with at least this probability.
        top_k: draws from this many most likely tokens; 0: no limit.
        cfg_scale: classifier-free guidance against the same sequence with its prompt masked.
        seed: of all draws, from 0 to 2^64 - 1.
        sequence_ids: the number by which each sequence's draws are keyed, from 0 to 2^63 - 1, all
            of whose bits count; 0, 1, 2, ... if empty. With the same seed and number a sequence is
            decoded the same way in any batch.
        forbidden: tokens never to write, as ids or by name; the mask token always is.
        allow_special: write ``model.info.special_token_ids`` too: [UNK], [PAD], [CLS], [SEP] and
            the like of BERT-like models, which are no text.
        logits_eos_inf: never write end tokens.
        confidence_eos_eot_inf: reveal end tokens last, at any temperature.
        on_device: where positions are chosen. True: on the model's device, the host a step ahead,
            so that a GPU never waits for it; under policies that choose how many to reveal this
            costs rows. Not with a callback, guidance, Python policies, policies that look ahead,
            mask again or remember, or BoE with a halo or with probes other than its candidates in
            blocks or beside a factor. None: on a GPU, where it can be and changes nothing.
        cuda_graphs: record forward passes and gradients as CUDA graphs when a shape comes back, in
            this call or a later one, and replay them from then on. This costs memory and, where
            positions are chosen on the device, rows (multiples of 32 are computed). For models
            from `tabes.load` on a GPU.
        callback: called after every step with its record and the B sequences [L_b] as they stand;
            return False to stop.
        attention_mask: of padded token ids, in their shape: 1 for a token, 0 for padding in front
            or behind, which is taken out before anything is computed and does not come back.
        max_new_tokens: other decoders' name of gen_length.
        block_size: other decoders' name of block_length.
        alg: other decoders' name of policy; so is `remasking`. "low_confidence" and "maskgit_plus"
            mean confidence, "topk_margin" margin and "eb" entropy_bound.
        remasking: see `alg`.

    Raises:
        InputError: an argument is unknown or out of range, the prompt is too long for the model, or
            there is nothing to fill.
        NumericsError: the model computed NaN.
        CheckpointError: the tokenizer's files are damaged.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}: pass what tabes.load returns")
    for name in unknown:
        raise InputError(unknown_argument(name, GenerateArguments.__annotations__))
    given = _resolve_aliases(
        {"gen_length": gen_length, "block_length": block_length, "policy": policy},
        {
            "max_new_tokens": max_new_tokens,
            "block_size": block_size,
            "alg": alg,
            "remasking": remasking,
        },
    )
    options = _core.GenerateOptions()
    options.steps = integer(steps, "steps")
    options.block_length = optional_integer(given["block_length"], "block_length")
    options.refresh_every = integer(refresh_every, "refresh_every")
    options.policy = _policy(given["policy"])
    options.temperature = number(temperature, "temperature")
    options.top_p = number(top_p, "top_p")
    options.top_k = integer(top_k, "top_k")
    options.cfg_scale = number(cfg_scale, "cfg_scale")
    options.seed = seed_of_draws(seed)
    options.sequence_ids = integers(sequence_ids, "sequence_ids", minimum=0)
    options.forbidden = token_ids(model, forbidden, "forbidden")
    options.allow_special = flag(allow_special, "allow_special")
    options.logits_eos_inf = flag(logits_eos_inf, "logits_eos_inf")
    options.confidence_eos_eot_inf = flag(confidence_eos_eot_inf, "confidence_eos_eot_inf")
    options.on_device = None if on_device is None else flag(on_device, "on_device")
    options.cuda_graphs = flag(cuda_graphs, "cuda_graphs")
    if callback is not None and not callable(callback):
        raise InputError(f"callback is a {type(callback).__name__}, which cannot be called")

    batch = prepare(model, tokens_or_prompt, given["gen_length"], attention_mask)
    check_something_to_fill(model, batch)
    result = _core.generate(model.core, batch.sequences, options, callback)
    return GenerateOutput(
        tokens=batch.nest(result.tokens),
        texts=_texts(model, batch, result.tokens),
        trace=result.trace,
        forward_equivalents=result.forward_equivalents,
        finished=result.finished,
        seconds=result.seconds,
        forward_rows=result.forward_rows,
        backward_rows=result.backward_rows,
        head_rows=result.head_rows,
        replayed_passes=result.replayed_passes,
        policy=options.policy.name(),
        policy_settings=options.policy.settings(),
    )


def check_something_to_fill(model: Model, batch: Batch) -> None:
    """Raises InputError where no mask is; the C++ loop does not know that the input was text."""
    mask = model.info.mask_token_id
    if batch.kind == "tokens" or any(bool((s == mask).any()) for s in batch.sequences):
        return
    tokenizer = model.tokenizer
    name = "[MASK]" if tokenizer is None else tokenizer.mask_token
    how = "" if batch.kind == "chat" else f"write {name} where something is to be filled, or "
    raise InputError(f"there is nothing to fill: {how}give gen_length to continue the prompt")


def _texts(model: Model, batch: Batch, sequences: list[torch.Tensor]) -> list[str] | None:
    try:
        tokenizer = model.tokenizer
    except Error:
        if batch.kind != "tokens":
            raise
        return None  # who passes token ids may do without a tokenizer
    if tokenizer is None:
        return None
    mask, ends = model.info.mask_token_id, model.info.eos_token_ids
    texts = []
    for before, after, start in zip(batch.sequences, sequences, batch.starts, strict=True):
        first = start if batch.kind == "chat" else 0
        filled = (before == mask).tolist()
        texts.append(tokenizer.decode_filled(after.tolist()[first:], filled[first:], ends))
    return texts


def _resolve_aliases(given: dict[str, Any], aliases: dict[str, Any]) -> dict[str, Any]:
    """`given` with the values of `aliases` under their canonical names."""
    source: dict[str, str] = {
        name: name
        for name, value in given.items()
        if value is not None and not isinstance(value, _Unset)
    }
    for name, value in aliases.items():
        if value is None:
            continue
        canonical = _ALIASES[name]
        if canonical in source:
            raise InputError(f"{source[canonical]} and {name} mean the same: give one of them")
        source[canonical] = name
        given[canonical] = value
    return given


def _policy(value: Any) -> Policy:
    if isinstance(value, Policy):
        return value
    if not isinstance(value, str):
        raise InputError(f"policy is a {type(value).__name__}: give its name or a policy object")
    return make_policy(str(value))
