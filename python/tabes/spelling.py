"""Vocabularies that spell a text: over the atoms of SMILES, over single letters, or over words."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tabes._core import names_special_token

# One token of a SMILES string: a bracketed atom, a two-letter element, the reaction arrow, a ring
# closure of two or three digits, or else a single character.
_SMILES = r"\[[^\]]+\]|Br|Cl|>>|%\([0-9]{3}\)|%[0-9]{2}|."
_LETTER = "."


def token_pattern(plain: Collection[str]) -> str | None:
    """The pattern of one token of a word-level vocabulary, None if words are split at spaces."""
    if {"C", "c", "(", ")", "="} <= set(plain):
        return _SMILES
    return _LETTER if all(len(token) == 1 for token in plain) else None


def split_words(backend: Backend, plain: Collection[str], lower: bool) -> None:
    """Makes `backend`, which is word-level, split at spaces or into tokens of its pattern.

    Args:
        backend: what is changed.
        plain: its tokens without the special ones.
        lower: whether text is to be in lower case, where the vocabulary is.
    """
    pattern, blanks = token_pattern(plain), any(token.isspace() for token in plain)
    steps: list[normalizers.Normalizer] = []
    if pattern is not None and not blanks:
        steps.append(normalizers.Strip())
    if lower and not any(token != token.lower() for token in plain):
        steps.append(normalizers.Lowercase())
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return
    tokens = pre_tokenizers.Split(Regex(pattern), "isolated")
    if pattern == _LETTER and not blanks:  # residues may be written with blanks, and in lines
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tokens])
    else:
        backend.pre_tokenizer = tokens
    backend.decoder = decoders.Fuse()


def spelled(backend: Backend, names: Sequence[str] = ()) -> Backend:
    """`backend`, or one that spells with its vocabulary where that is of letters or atoms.

    ProtBERT's vocabulary in BERT's tokenizer takes "M K T" and makes [UNK] of "MKT". One that
    spells makes the same of both, and names a letter that it lacks.

    Args:
        backend: it stays as it is.
        names: of tokens that are special beside those that say so.
    """
    if not isinstance(backend.model, models.WordPiece):
        return backend
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    special = {*names, *added, *filter(names_special_token, vocabulary)}
    plain = [token for token in vocabulary if token and token not in special]
    pattern = token_pattern(plain) if all(token.isascii() for token in plain) else None
    if not plain or pattern is None or any(token.startswith("##") for token in plain):
        return backend
    described: dict[str, Any] = json.loads(backend.to_str())
    unknown = described["model"]["unk_token"]
    described["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}
    described["normalizer"] = described["pre_tokenizer"] = described["decoder"] = None
    made = Backend.from_str(json.dumps(described))
    lower = getattr(backend.normalizer, "lowercase", False)
    split_words(made, plain, bool(lower))
    return made
