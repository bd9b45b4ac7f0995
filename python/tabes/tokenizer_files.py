"""The tokenizer of a checkpoint folder.

``tokenizer.json`` is read by the ``tokenizers`` package. A folder that has only ``vocab.txt`` gets
a tokenizer made from it: WordPiece if there are ``##`` pieces, else word-level over the atoms of
SMILES, over single characters or over words, whichever the vocabulary is made of. What
tokenizer_config.json and the files beside it say applies to both, as in transformers.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tabes import _core
from tabes._core import CheckpointError, TokenizerSettings, names_special_token
from tabes.foreign import guarded
from tabes.spelling import spelled, split_words, token_pattern
from tabes.text import Tokenizer

_FILES = ("tokenizer.json", "vocab.txt")  # in the order of their authority
_START_NAMES = ("[CLS]", "<cls>", "[BOS]", "<bos>", "<s>")
_END_NAMES = ("[SEP]", "<eos>", "[EOS]", "</s>")
# Classes of transformers that put BERT's normalizer, as the config sets it, in the file's place.
_BERT_CLASSES = {
    f"{name}Tokenizer"
    for name in ("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "ConvBert")
}
# A cased vocabulary has capitals by the thousand; a few are symbols or added by hand.
_CASED_SHARE = 0.01
_BRACKETED = re.compile(r"\[.+\]|<.+>")
# The order in which transformers numbers those that the vocabulary lacks.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


def load_tokenizer(
    directory: Path, mask_token_id: int | None = None, size: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None if it has none.

    Args:
        directory: the folder.
        mask_token_id: the model's mask token; without it, the one the tokenizer declares.
        size: the number of tokens that the model knows, if that is known.

    Raises CheckpointError for files that are there but cannot be used.
    """
    settings = _core.read_tokenizer_settings(os.fsencode(directory))
    path = next((p for p in (directory / name for name in _FILES) if p.is_file()), None)
    if path is None:
        return None
    template = _chat_template(directory, settings)
    try:
        tokenizer: Tokenizer = guarded(_build, path, settings, mask_token_id, template, size)
        return tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # the backend raises plain Exception
        raise CheckpointError(
            f"{path} is not a tokenizer that the installed tokenizers package can read: {error}"
        ) from error


def _build(
    path: Path,
    settings: TokenizerSettings,
    mask_token_id: int | None,
    template: str | None,
    size: int | None,
) -> Tokenizer:
    if path.name == _FILES[0]:
        backend = Backend.from_str(_read_text(path))
        _patch_normalizer(backend, settings)
        backend = spelled(backend, list(settings.named_tokens.values()))
    else:
        backend = _from_vocabulary(path, settings)
    backend = _with_added_tokens(backend, path, settings)
    _add_missing(backend, settings, size)
    return Tokenizer(
        backend,
        mask_token_id=mask_token_id,
        named_tokens=settings.named_tokens,
        special_tokens=settings.additional_special_tokens,
        chat_template=template,
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if text.startswith("version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
        )
    return text


def _chat_template(directory: Path, settings: TokenizerSettings) -> str | None:
    path = directory / "chat_template.jinja"
    return _read_text(path) if path.is_file() else settings.chat_template


def _bert_options(settings: TokenizerSettings) -> dict[str, bool]:
    """The arguments of BertNormalizer that the config sets."""
    options = {
        "lowercase": settings.do_lower_case,
        "strip_accents": settings.strip_accents,
        "handle_chinese_chars": settings.tokenize_chinese_chars,
    }
    return {name: value for name, value in options.items() if value is not None}


def _is_bert(settings: TokenizerSettings) -> bool:
    return settings.tokenizer_class.removesuffix("Fast") in _BERT_CLASSES


def _patch_normalizer(backend: Backend, settings: TokenizerSettings) -> None:
    """Puts the config's casing and accents in the place of those of tokenizer.json.

    As transformers does for BERT's classes, whatever normalizer the file has; what the config
    leaves out is their default. A config that names no class and none of these settings leaves the
    file as it is.
    """
    options = _bert_options(settings)
    of_bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
    if _is_bert(settings) and isinstance(backend.model, models.WordPiece):
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif not (of_bert and (_is_bert(settings) or (options and not settings.tokenizer_class))):
        return
    backend.normalizer = normalizers.BertNormalizer(**{"lowercase": True, **options})


def _from_vocabulary(path: Path, settings: TokenizerSettings) -> Backend:
    # Lines end at line feeds only, and blanks of any kind may be tokens: ids are line numbers.
    lines = _read_text(path).removesuffix("\n").split("\n")
    vocabulary = {line.strip() or line: i for i, line in enumerate(lines)}
    names = settings.named_tokens
    named = [t for t in vocabulary if names_special_token(t) or t in names.values()]
    plain = [token for token in vocabulary if token and token not in set(named)]
    # [unused7] in a text is no token of BERT's, unless the config names it.
    special = [t for t in named if t in names.values() or not t.startswith("[unused")]
    if not plain:
        raise CheckpointError(f"{path} lists no tokens: one token a line is expected")
    unknown = _first((names.get("unk_token"), "[UNK]", "<unk>"), vocabulary)
    if unknown is None:
        raise CheckpointError(f"{path} has neither [UNK] nor <unk>, so it cannot encode free text")

    backend: Backend
    whole = token_pattern(plain) is None and _is_bert(settings)
    if whole or any(token.startswith("##") for token in plain):
        added = (token.content for token in settings.added_tokens)
        options = {"lowercase": not _is_cased(plain, added), **_bert_options(settings)}
        backend = Backend(models.WordPiece(vocab=vocabulary, unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(**options)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    else:
        backend = Backend(models.WordLevel(vocab=vocabulary, unk_token=unknown))
        split_words(backend, plain, bool(settings.do_lower_case))
    # Their names in a text are then the tokens themselves; the ids stay those of the file.
    backend.add_special_tokens(special)
    start = _first((names.get("cls_token"), names.get("bos_token"), *_START_NAMES), vocabulary)
    end = _first((names.get("sep_token"), names.get("eos_token"), *_END_NAMES), vocabulary)
    frame = [t for t in (start, end) if t is not None]
    if frame:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*([start] if start else []), "$A", *([end] if end else [])]),
            special_tokens=[(t, vocabulary[t]) for t in frame],
        )
    return backend


def _first(names: Sequence[str | None], vocabulary: Mapping[str, int]) -> str | None:
    return next((name for name in names if name is not None and name in vocabulary), None)


def _is_cased(plain: Sequence[str], added: Iterable[str]) -> bool:
    """Whether a vocabulary has capitals, of which lower-casing would leave nothing.

    Names in brackets ([ENT]) and tokens that were added say nothing, nor do symbols: U+211D has no
    small letter, and U+2167, a numeral, is none.
    """
    words = set(plain) - set(added)
    capitals = sum(
        any(unicodedata.category(c) == "Lu" and c.lower() != c for c in word)
        for word in words
        if not _BRACKETED.fullmatch(word)
    )
    return capitals > _CASED_SHARE * len(plain)


def _with_added_tokens(backend: Backend, path: Path, settings: TokenizerSettings) -> Backend:
    """`backend` with the tokens that were added to the vocabulary, under the ids given to them."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in settings.added_tokens if token.content not in known]
    if not missing:
        return backend
    vocabulary = backend.get_vocab(with_added_tokens=True)
    owners = {i: token for token, i in vocabulary.items()}
    for token in missing:
        found = vocabulary.get(token.content)
        if found not in (None, token.id) or owners.get(token.id, token.content) != token.content:
            has = f"{token.id} is {owners.get(token.id)!r}"
            if found is not None:
                has = f"{token.content!r} is {found}"
            raise CheckpointError(
                f"{path.parent}: the added token {token.content!r} has the id {token.id}, but in "
                f"{path.name} {has}: take the files of one and the same tokenizer"
            )
    new = {token.content: token.id for token in missing if token.content not in vocabulary}
    # The backend numbers new tokens itself, from here on.
    following = max([*backend.get_added_tokens_decoder(), -1]) + 1
    following = max(following, backend.get_vocab_size(with_added_tokens=False))
    if list(new.values()) != list(range(following, following + len(new))):
        backend = _with_words(backend, path, new)
    for token in missing:
        added = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        (backend.add_special_tokens if token.special else backend.add_tokens)([added])
    return backend


def _add_missing(backend: Backend, settings: TokenizerSettings, size: int | None) -> None:
    """Numbers the tokens that the files name and give no id, behind all others, as transformers.

    The mask is the model's to know. So are the tokens: what it has no row for stays text.
    """
    named = settings.named_tokens
    names = [*(named.get(role) for role in _NAMED), *named.values()]
    missing = [
        name
        for name in dict.fromkeys([*names, *settings.additional_special_tokens])
        if name and name != named.get("mask_token") and backend.token_to_id(name) is None
    ]
    if not missing:
        return
    following = max([*backend.get_vocab(with_added_tokens=True).values(), -1]) + 1
    following = max(following, backend.get_vocab_size())
    room = len(missing) if size is None else max(0, size - following)
    backend.add_special_tokens(missing[:room])


def _with_words(backend: Backend, path: Path, words: Mapping[str, int]) -> Backend:
    """`backend` with words in its vocabulary under ids that leave a gap behind the others."""
    described: dict[str, Any] = json.loads(backend.to_str())
    vocabulary = described["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise CheckpointError(
            f"{path.parent}: the added tokens {', '.join(words)} have ids that do not follow those "
            f"of {path.name}"
        )
    vocabulary.update(words)
    return Backend.from_str(json.dumps(described))
