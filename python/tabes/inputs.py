"""What callers may pass as tokens or prompts, turned into what the C++ loop takes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from tabes._core import InputError
from tabes.text import Message, Prompt, Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from tabes.model import Model

# One sequence or a batch of them: text, a conversation, or token ids.
Prompts: TypeAlias = (
    "str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | torch.Tensor"
    " | np.ndarray[Any, Any] | Sequence[int] | Sequence[Sequence[int]] | Sequence[torch.Tensor]"
    " | Sequence[np.ndarray[Any, Any]]"
)


@dataclass(frozen=True)
class Batch:
    """Sequences ready for the C++ loop.

    Attributes:
        sequences: B tensors [L_b], int64 on the CPU, mask ids where something is to be filled.
        single: whether the caller gave one sequence rather than a batch.
        kind: "text", "chat" or "tokens".
        starts: per sequence, the position after its prompt; 0 if it is to be filled in place.
    """

    sequences: list[torch.Tensor]
    single: bool
    kind: str
    starts: list[int]

    def nest(self, sequences: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """`sequences` the way the input was: [L]; [B, L] if rectangular; else a list of [L_b]."""
        if self.single:
            return sequences[0]
        if len({len(sequence) for sequence in sequences}) == 1:
            return torch.stack(sequences)
        return sequences


def prepare(model: Model, prompts: Prompts, gen_length: int | None = None) -> Batch:
    """Token sequences of `prompts`, each followed by `gen_length` masks unless that is None.

    Raises InputError if `prompts` is none of the documented kinds, is empty, or is text and the
    model has no tokenizer.
    """
    value: Any = prompts
    if isinstance(value, str):
        return _from_text(model, [value], True, gen_length)
    if isinstance(value, Mapping):
        raise InputError("a single message is not a conversation: put it in a list")
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        return _from_array(model, value, gen_length)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise InputError(
            f"prompts of type {type(value).__name__}: give text, chat messages, or token ids as a "
            "tensor, array or list"
        )
    if len(value) == 0:
        raise InputError("there are no prompts: the list is empty")
    if all(isinstance(v, str) for v in value):
        return _from_text(model, list(value), False, gen_length)
    if all(isinstance(v, Mapping) for v in value):
        return _from_chats(model, [value], True, gen_length)
    if all(_is_chat(v) for v in value):
        return _from_chats(model, list(value), False, gen_length)
    if any(_is_collection(v) for v in value):
        rows = [_row(v, f"sequence {i}") for i, v in enumerate(value)]
        return _from_rows(model, rows, False, gen_length)
    return _from_rows(model, [_row(value, "the sequence")], True, gen_length)


def _is_collection(value: Any) -> bool:
    """Whether `value` is itself a sequence of token ids; numbers of numpy and torch are not."""
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        return len(value.shape) > 0
    return isinstance(value, (Sequence, Mapping))


def _is_chat(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping)


def _tokenizer(model: Model, what: str) -> Tokenizer:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            f"{what} given, but {model.path or 'this model'} has no tokenizer (tokenizer.json or "
            "vocab.txt): give token ids"
        )
    return tokenizer


def _from_text(model: Model, texts: list[str], single: bool, gen_length: int | None) -> Batch:
    tokenizer = _tokenizer(model, "text is")
    prompts = [tokenizer.encode_prompt(text, gen_length) for text in texts]
    return _from_prompts(prompts, single, "text")


def _from_chats(model: Model, chats: list[Any], single: bool, gen_length: int | None) -> Batch:
    tokenizer = _tokenizer(model, "chat messages are")
    prompts = [tokenizer.encode_chat(chat, gen_length) for chat in chats]
    return _from_prompts(prompts, single, "chat")


def _from_prompts(prompts: list[Prompt], single: bool, kind: str) -> Batch:
    sequences = [torch.tensor(prompt.ids, dtype=torch.int64) for prompt in prompts]
    return Batch(sequences, single, kind, [prompt.start for prompt in prompts])


def _from_array(model: Model, value: Any, gen_length: int | None) -> Batch:
    tensor = _tensor(value, "the token array")
    if tensor.dim() not in (1, 2):
        raise InputError(
            f"the token array has shape {list(tensor.shape)}: give [L] or [B, L] token ids"
        )
    rows = list(tensor.unbind(0)) if tensor.dim() == 2 else [tensor]
    if not rows:
        raise InputError("there are no prompts: the token array has no rows")
    return _from_rows(model, rows, tensor.dim() == 1, gen_length)


def _from_rows(
    model: Model, rows: list[torch.Tensor], single: bool, gen_length: int | None
) -> Batch:
    starts = [0] * len(rows)
    if gen_length is not None:
        starts = [len(row) for row in rows]
        masks = torch.full((gen_length,), model.info.mask_token_id, dtype=torch.int64)
        rows = [torch.cat((row, masks)) for row in rows]
    return Batch(rows, single, "tokens", starts)


def _tensor(value: Any, what: str) -> torch.Tensor:
    """An int64 CPU tensor of an array; writable contiguous int64 arrays share their memory."""
    if not isinstance(value, torch.Tensor):
        flags = getattr(value, "flags", None)
        if flags is not None and not (flags.writeable and flags.c_contiguous):
            value = value.copy()  # torch takes neither negative strides nor read-only memory
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{what} does not hold token ids: {error}") from error
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"{what} has dtype {value.dtype}: token ids are integers")
    result: torch.Tensor = value.detach().to(device="cpu", dtype=torch.int64).contiguous()
    return result


def _row(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        row = _tensor(value, what)
        if row.dim() != 1:
            raise InputError(f"{what} has shape {list(row.shape)}: give a list of [L] token ids")
        return row
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise InputError(f"{what} is a {type(value).__name__}: text and token ids cannot be mixed")
    ids = []
    for position, token in enumerate(value):
        if isinstance(token, bool):
            raise InputError(f"{what} holds {token} at position {position}: not a token id")
        try:
            ids.append(operator.index(token))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{what} holds {token!r} at position {position}: token ids are integers"
            ) from error
    try:
        return torch.tensor(ids, dtype=torch.int64)
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"{what} holds a token id that does not fit 64 bits") from error
