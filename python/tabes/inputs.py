"""What callers may pass as tokens or prompts, turned into what the C++ loop takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch

from tabes import _core, arguments
from tabes._core import InputError
from tabes.arguments import integer, optional_integer
from tabes.chat import Message, check_text
from tabes.text import Prompt, Tokenizer
from tabes.token_rows import encoded, encoded_rows, listed, rows_of, unpadded, warn_of_padding

if TYPE_CHECKING:
    import numpy as np

    from tabes.model import Model

# One sequence or a batch of them: text, a conversation, or token ids.
Prompts: TypeAlias = Union[  # a quoted part cannot follow |
    str,
    Sequence[str],
    Sequence[Message],
    Sequence[Sequence[Message]],
    torch.Tensor,
    "np.ndarray[Any, Any]",
    Sequence[int],
    Sequence[Sequence[int]],
    Sequence[torch.Tensor],
    "Sequence[np.ndarray[Any, Any]]",
]


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


def prepare(
    model: Model,
    prompts: Prompts,
    gen_length: int | None = None,
    attention_mask: Any = None,
) -> Batch:
    """Token sequences of `prompts`, each followed by `gen_length` masks unless that is None.

    Args:
        model: whose tokenizer encodes texts.
        prompts: what `tabes.generate` takes.
        gen_length: masks to append.
        attention_mask: of token ids: 1 for a token and 0 for padding, which is taken out.

    Raises InputError if `prompts` is none of the documented kinds, is empty, or is text and the
    model has no tokenizer. Warns (PaddingWarning) of token ids that look padded.
    """
    value: Any = prompts
    gen_length = optional_integer(gen_length, "gen_length")
    if isinstance(value, Mapping):
        value, attention_mask = encoded(value, attention_mask)
    value = listed(value)
    if isinstance(value, list) and value and all(_is_encoding(v) for v in value):
        value, attention_mask = encoded_rows(value, attention_mask)
    if attention_mask is not None:
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, (str, Mapping)) or _is_chat(first):
            raise InputError("attention_mask is for token ids: a text has no padding")
        rows, single = rows_of(value)
        return _from_rows(model, unpadded(rows, single, attention_mask), single, gen_length)
    if isinstance(value, str):
        return _from_text(model, [value], True, gen_length)
    if isinstance(value, list):
        if len(value) == 0:
            raise InputError("there are no prompts: the list is empty")
        if all(isinstance(v, str) for v in value):
            return _from_text(model, value, False, gen_length)
        _check_kinds(value)
        if isinstance(value[0], Mapping):
            return _from_chats(model, [value], True, gen_length)
        if _is_chat(value[0]):
            return _from_chats(model, value, False, gen_length)
    rows, single = rows_of(value)
    warn_of_padding(model, rows, single)
    return _from_rows(model, rows, single, gen_length)


def token_ids(model: Model, given: Any, name: str) -> list[int]:
    """Token ids of a list of ids and names; `name` is the argument's. Raises InputError."""
    ids = []
    for i, token in enumerate(arguments.listed(given, name, "a list of token ids or names")):
        if not isinstance(token, str):
            ids.append(integer(token, f"{name}[{i}]"))
            continue
        if model.tokenizer is None:
            raise InputError(f"{name}[{i}]={token!r}: the model has no tokenizer, so give its id")
        ids.append(model.tokenizer.token_id(token))
    return ids


def _is_chat(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping)


def _is_encoding(value: Any) -> bool:
    return isinstance(value, Mapping) and "input_ids" in value


def _check_kinds(values: list[Any]) -> None:
    """Raises InputError for texts or conversations among anything else."""

    named = ("text", "a message", "a conversation")

    def kind(value: Any) -> str:
        is_kind = (isinstance(value, str), isinstance(value, Mapping), _is_chat(value))
        return next((n for n, i in zip(named, is_kind, strict=True) if i), type(value).__name__)

    kinds = [kind(value) for value in values]
    if not set(named) & set(kinds):
        return
    other = next((i for i, found in enumerate(kinds) if found != kinds[0]), None)
    if other is not None:
        raise InputError(
            f"prompt 0 is {kinds[0]} and prompt {other} is {kinds[other]}: texts, conversations "
            "and token ids cannot be mixed"
        )


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
    for i, text in enumerate(texts):
        check_text(text, "the prompt" if single else f"prompt {i}")
    room = None if gen_length is None else 0
    prompts = [tokenizer.encode_prompt(text, room) for text in texts]
    return _from_prompts(model, prompts, single, "text", gen_length)


def _from_chats(model: Model, chats: list[Any], single: bool, gen_length: int | None) -> Batch:
    tokenizer = _tokenizer(model, "chat messages are")
    room = None if gen_length is None else 0
    prompts = [tokenizer.encode_chat(chat, room) for chat in chats]
    return _from_prompts(model, prompts, single, "chat", gen_length)


def _from_prompts(
    model: Model, prompts: list[Prompt], single: bool, kind: str, gen_length: int | None
) -> Batch:
    sequences = []
    for i, prompt in enumerate(prompts):
        _check_known(model, prompt.ids, "the prompt" if single else f"prompt {i}")
        ids = torch.tensor(prompt.ids, dtype=torch.int64, device="cpu")
        if gen_length is not None:  # between what was written and the token that ends every text
            masks = _core.with_masks(model.core, ids, gen_length)[len(ids) :]
            ids = torch.cat((ids[: prompt.start], masks, ids[prompt.start :]))
        sequences.append(ids)
    return Batch(sequences, single, kind, [prompt.start for prompt in prompts])


def _check_known(model: Model, ids: list[int], what: str) -> None:
    """Tokenizers may know more tokens than the model; most texts do without them."""
    size = model.info.vocab_size
    token = next((i for i in ids if i >= size), None)
    if token is not None:
        name = None if model.tokenizer is None else model.tokenizer.piece(token)
        raise InputError(
            f"{what} has the token {name!r} with the id {token}, but the model's tokens are "
            f"0..{size - 1}: the tokenizer's files name tokens that the model was not trained on; "
            "leave it out, or load the folder whose tokenizer belongs to the model"
        )


def _from_rows(
    model: Model, rows: list[torch.Tensor], single: bool, gen_length: int | None
) -> Batch:
    starts = [0] * len(rows)
    if gen_length is not None:
        starts = [len(row) for row in rows]
        rows = [_core.with_masks(model.core, row, gen_length) for row in rows]
    return Batch(rows, single, "tokens", starts)
