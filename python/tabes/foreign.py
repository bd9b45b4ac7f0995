"""Tokenizers of transformers, fast ones and those written in Python, behind one interface."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken

from tabes.errors import InputError

_MOST_LETTERS = 100  # fewer than bytes, which are no letters


def guarded(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A call of the ``tokenizers`` package, where damaged files make it panic.

    Raises what the call raises, and RuntimeError for a panic, which is no Exception in Python.
    """
    try:
        return function(*arguments, **options)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the tokenizers package gave up: {error}") from error


class Encoded(NamedTuple):
    """What `Foreign.encode` returns; the names are those of ``tokenizers.Encoding``."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


class Foreign:
    """A tokenizer of transformers that has no ``tokenizers.Tokenizer`` underneath (ESM's, say).

    It answers to the part of that class which `tabes.text.Tokenizer` uses.
    """

    model = None

    def __init__(self, tokenizer: Any, marker: str = "") -> None:
        self._tokenizer = tokenizer
        self._marker = marker
        self.name = type(tokenizer).__name__
        self._vocabulary = dict(tokenizer.get_vocab())
        self._special = [t for t in tokenizer.all_special_tokens if t]
        # A vocabulary of letters: transformers would write blanks between them, and say nothing
        # of those that it lacks.
        named = {*self._special, *(t for t in self._vocabulary if re.fullmatch(r"<\w+>", t))}
        plain = set(self._vocabulary) - named
        letters = all(len(t) == 1 and t.isascii() and t.isprintable() for t in plain - {" "})
        self._letters = plain if letters and len(plain) < _MOST_LETTERS else set()

    def literal(self, marker: str) -> Foreign:
        """The same for texts in which names broken by `marker` are text."""
        return Foreign(self._tokenizer, marker)

    def no_padding(self) -> None:
        """Nothing is padded unless asked for."""

    def no_truncation(self) -> None:
        """Nothing is cut unless asked for."""

    def add_special_tokens(self, tokens: list[str]) -> int:
        """What the tokenizer's own names are is special already."""
        return 0

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return dict(self._vocabulary)

    def get_vocab_size(self) -> int:
        return len(self._tokenizer)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        special = dict(zip(self._tokenizer.all_special_ids, self._special, strict=False))
        added = dict(getattr(self._tokenizer, "added_tokens_decoder", {}))
        return added | {i: AddedToken(t, special=True) for i, t in special.items()}

    def token_to_id(self, token: str) -> int | None:
        return self._vocabulary.get(token)

    def id_to_token(self, token: int) -> str | None:
        if not 0 <= token < len(self._tokenizer):
            return None
        name: str | None = self._tokenizer.convert_ids_to_tokens(token)
        return name

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        if self._marker:
            ids = self._encode_marked(text)
        else:
            self._check_letters(text)
            ids = self._ids(text, add_special_tokens=add_special_tokens)
        framed = self._tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        tokens = self._tokenizer.convert_ids_to_tokens(ids)
        return Encoded(ids, tokens, [(0, 0)] * len(ids), [int(bool(f)) for f in framed])

    def _ids(self, text: str, **options: Any) -> list[int]:
        return [int(i) for i in self._tokenizer(text, verbose=False, **options)["input_ids"]]

    def _encode_marked(self, text: str) -> list[int]:
        names = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        ids: list[int] = []
        for piece in re.split(f"({names})", text):
            if piece in self._special:
                ids.append(self._tokenizer.convert_tokens_to_ids(piece))
                continue
            plain = piece.replace(self._marker, "")
            self._check_letters(plain, literal=True)
            if plain:
                ids += self._ids(plain, add_special_tokens=False, split_special_tokens=True)
        return ids

    def _check_letters(self, text: str, literal: bool = False) -> None:
        if not self._letters:
            return
        names = [] if literal else sorted(self._vocabulary, key=len, reverse=True)
        names = [name for name in names if len(name) > 1]
        pattern = re.compile("|".join([*map(re.escape, names), "."]), re.DOTALL)
        for found in pattern.finditer(text):
            token = found[0]
            if len(token) == 1 and not token.isspace() and token not in self._letters:
                raise InputError(
                    f"{token!r} at character {found.start()} is not in the vocabulary of "
                    f"{self.name}"
                )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        if self._letters:
            return "".join(self._tokenizer.convert_ids_to_tokens(list(ids)))
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


def is_tokenizer(given: Any) -> bool:
    """Whether `given` does what the tokenizers of transformers do."""
    names = ("get_vocab", "convert_ids_to_tokens", "decode", "all_special_tokens")
    return callable(given) and all(hasattr(given, name) for name in names)
