"""Text in and out: tokenizers and chat templates of checkpoint folders.

``tokenizer.json`` is read by the ``tokenizers`` package. A folder that has only ``vocab.txt`` gets
a tokenizer made from it: WordPiece if there are ``##`` pieces, else word-level over the atoms of
SMILES, over single characters or over words, whichever the vocabulary is made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tabes._core import CheckpointError, InputError

MASK_LITERAL = "[MASK]"
_MASK_NAMES = (MASK_LITERAL, "<mask>", "<|mask|>", "<|MASK|>", "<|mdm_mask|>")
_START_NAMES = ("[CLS]", "<cls>", "[BOS]", "<bos>", "<s>")
_END_NAMES = ("[SEP]", "<eos>", "[EOS]", "</s>")
_SPECIAL = re.compile(
    r"\[(PAD|UNK|CLS|SEP|MASK|BOS|EOS|unused\d+)\]|</?s>|<(pad|unk|cls|eos|bos|mask|null_\d+)>"
)
# One token of a SMILES string: a bracketed atom, a two-letter element, the reaction arrow, a ring
# closure of two or three digits, or else a single character.
_SMILES = r"\[[^\]]+\]|Br|Cl|>>|%\([0-9]{3}\)|%[0-9]{2}|."

Message = Mapping[str, Any]


class Prompt(NamedTuple):
    """Token ids of one sequence and where the answer to its prompt starts (0: no prompt)."""

    ids: list[int]
    start: int


class Tokenizer:
    """Text to token ids and back, for one checkpoint.

    The mask token may be written in a text, as ``[MASK]`` or by the model's own name for it.
    Text is framed as the tokenizer's template says ([CLS] text [SEP], say).

    Attributes:
        backend: the ``tokenizers.Tokenizer`` underneath.
        mask_token: what to write in a text for a position to fill.
        mask_token_id: its id, None if neither the caller nor the tokenizer knows one.
        chat_template: source of the jinja2 template, None if the checkpoint has none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        mask_token_id: int | None = None,
        named_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.chat_template = chat_template
        self._named_tokens = dict(named_tokens or {})
        # Batches are ragged and lengths are the caller's affair: no stored setting may cut or pad.
        backend.no_padding()
        backend.no_truncation()
        if mask_token_id is None:
            mask_token_id = self._declared_mask_id()
        self.mask_token_id = mask_token_id
        added = backend.get_added_tokens_decoder()
        # What the config names is special, be it a plain word of tokenizer.json's vocabulary.
        named = {name: backend.token_to_id(name) for name in self._named_tokens.values()}
        backend.add_special_tokens(
            [name for name, i in named.items() if i is not None and i not in added]
        )
        added = backend.get_added_tokens_decoder()
        written = None if mask_token_id is None else backend.id_to_token(mask_token_id)
        self.mask_token = written or MASK_LITERAL
        self._native_mask = mask_token_id is not None and mask_token_id in added
        self._aliased = (
            self.mask_token != MASK_LITERAL and backend.token_to_id(MASK_LITERAL) is None
        )
        self._hidden = {i for i, token in added.items() if token.special} - {mask_token_id}
        self._prefix, self._suffix = self._frame()

    def _declared_mask_id(self) -> int | None:
        for name in (self._named_tokens.get("mask_token"), *_MASK_NAMES):
            if name is not None and (token := self.backend.token_to_id(name)) is not None:
                return token
        return None

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the template puts before and after a text."""
        for probe in ("a", "C", "1", "A", " "):
            try:
                encoding = self.backend.encode(probe)
            except Exception:  # the backend raises plain Exception, here for a token it lacks
                continue
            ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
            if 0 in added:
                first, last = added.index(0), len(added) - added[::-1].index(0)
                return ids[:first], ids[last:]
        return [], []

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the tokenizer knows, added tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of `text` with its frame; frame tokens already written are not doubled.

        Raises InputError for text the tokenizer cannot express.
        """
        return self.encode_prompt(text, None).ids

    def encode_prompt(self, text: str, gen_length: int | None) -> Prompt:
        """`text` and then, unless `gen_length` is None, that many masks, all within the frame.

        A tokenizer that ends every text with a token ([EOS], [SEP]) keeps that token at the end:
        ``[BOS] text masks [EOS]``. Between text and masks it would say that nothing follows.
        """
        body = self._encode_body(text)
        if self._prefix and body[: len(self._prefix)] != self._prefix:
            body = self._prefix + body
        written_end = bool(self._suffix) and body[-len(self._suffix) :] == self._suffix
        if gen_length is None:
            return Prompt(body if written_end else body + self._suffix, 0)
        if written_end:
            body = body[: -len(self._suffix)]
        return Prompt(body + self._masks(gen_length) + self._suffix, len(body))

    def encode_chat(self, messages: Sequence[Message], gen_length: int | None) -> Prompt:
        """A conversation through the chat template, followed by `gen_length` masks for the reply.

        With `gen_length` None, masks written in the messages are all there is to fill. The
        template writes the special tokens, so no frame is added.
        """
        return self.encode_rendered(self.render_chat(messages), gen_length)

    def encode_rendered(self, text: str, gen_length: int | None) -> Prompt:
        """Text that brings its special tokens along, as `render_chat` writes it, then masks.

        Like `encode_prompt` but without a frame.
        """
        body = self._encode_body(text)
        if gen_length is None:
            return Prompt(body, 0)
        return Prompt(body + self._masks(gen_length), len(body))

    def _masks(self, count: int) -> list[int]:
        if count and self.mask_token_id is None:
            raise InputError("no mask token is known: pass mask_token_id to tabes.load")
        return [self.mask_token_id] * count if self.mask_token_id is not None else []

    def _encode_body(self, text: str) -> list[int]:
        if self._native_mask:
            if self._aliased:
                text = text.replace(MASK_LITERAL, self.mask_token)
            return self._encode_piece(text)
        if self.mask_token_id is None:
            return self._encode_piece(text)
        names = [self.mask_token, *([MASK_LITERAL] if self._aliased else [])]
        ids: list[int] = []
        for i, piece in enumerate(re.split("|".join(map(re.escape, names)), text)):
            ids += ([self.mask_token_id] if i else []) + self._encode_piece(piece)
        return ids

    def _encode_piece(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except Exception as error:  # the backend raises plain Exception
            raise InputError(f"the tokenizer cannot encode {_shorten(text)}: {error}") from error
        model = self.backend.model
        if isinstance(model, models.WordLevel):
            # A word-level vocabulary has no smaller pieces to fall back to: what it lacks is lost.
            unknown = model.unk_token
            for token, (first, last) in zip(encoding.tokens, encoding.offsets, strict=True):
                if token == unknown and text[first:last] != unknown:
                    raise InputError(
                        f"{text[first:last]!r} at character {first} of {_shorten(text)} is not in "
                        f"the model's vocabulary of {self.vocab_size} tokens"
                    )
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens; masks that are left stay visible."""
        if self._native_mask or self.mask_token_id is None:
            return self._decode_piece(ids)
        pieces: list[list[int]] = [[]]
        for i in ids:
            if i == self.mask_token_id:
                pieces.append([])
            else:
                pieces[-1].append(i)
        return self.mask_token.join(self._decode_piece(piece) for piece in pieces)

    def _decode_piece(self, ids: Sequence[int]) -> str:
        shown = [i for i in ids if i not in self._hidden]
        try:
            return self.backend.decode(shown, skip_special_tokens=False)
        except Exception as error:  # the backend raises plain Exception
            raise InputError(
                f"the tokenizer cannot decode the ids {shown[:8]}...: {error}"
            ) from error

    def piece(self, token: int) -> str:
        """How one token looks on its own, special tokens by name; for displays only."""
        if token == self.mask_token_id:
            return self.mask_token
        name = self.backend.id_to_token(token)
        if name is None:
            return f"<{token}>"
        if token in self._hidden:
            return name
        if isinstance(self.backend.model, models.WordLevel):
            return name
        if isinstance(self.backend.model, models.WordPiece):
            return name[2:] if name.startswith("##") else f" {name}"
        return self.backend.decode([token], skip_special_tokens=False) or name

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text that the checkpoint's chat template makes of `messages`.

        Args:
            messages: dicts with ``role`` and ``content``, oldest first.

        Raises InputError if there is no template, if it refuses the messages, or if it fails.
        """
        if self.chat_template is None:
            raise InputError(
                "this checkpoint has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): give the prompt as a string"
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise InputError(
                    f"message {i} is of type {type(message).__name__}: "
                    "every message is a dict with 'role' and 'content'"
                )
            if "role" not in message or "content" not in message:
                raise InputError(
                    f"message {i} has the keys {sorted(map(str, message))}: "
                    "every message needs 'role' and 'content'"
                )
        return _render(self.chat_template, messages, self._named_tokens)


def _render(source: str, messages: Sequence[Message], tokens: Mapping[str, str]) -> str:
    # The template comes with the checkpoint and is not trusted: it runs in jinja2's sandbox.
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around what the assistant said, which matters only to training."""

        tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    # What templates are given here is what transformers gives them, for which they are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = to_json
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens}
    try:
        return environment.from_string(source).render(messages=list(messages), **given)
    except Exception as error:  # a template can raise anything: its filters are Python functions
        reason = str(error) or type(error).__name__
        raise InputError(f"the chat template failed on these messages: {reason}") from error


def load_tokenizer(directory: Path, mask_token_id: int | None = None) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None if it has none.

    Args:
        directory: the folder.
        mask_token_id: the model's mask token; without it, the one the tokenizer declares.

    Raises CheckpointError for files that are there but cannot be used.
    """
    tokenizer_file, vocabulary_file = directory / "tokenizer.json", directory / "vocab.txt"
    config = _read_json(directory / "tokenizer_config.json")
    if tokenizer_file.is_file():
        backend = _from_tokenizer_json(tokenizer_file)
    elif vocabulary_file.is_file():
        backend = _from_vocabulary(vocabulary_file, _bert_options(directory, config))
    else:
        return None
    named = {
        **_token_names(_read_json(directory / "special_tokens_map.json")),
        **_token_names(config),
    }
    return Tokenizer(
        backend,
        mask_token_id=mask_token_id,
        named_tokens=named,
        chat_template=_chat_template(directory, config),
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if text.startswith("version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
        )
    return text


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _token_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens (``bos_token``, ``mask_token``, ...) of a tokenizer's config."""
    names: dict[str, str] = {}
    for key, value in config.items():
        if key.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                names[key] = text
    return names


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _read_text(path)
    template = config.get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{directory / 'tokenizer_config.json'} has a chat_template that is neither a string "
            "nor a list of objects with name and template"
        )
    return template


def _from_tokenizer_json(path: Path) -> Backend:
    try:
        return Backend.from_str(_read_text(path))
    except CheckpointError:
        raise
    except Exception as error:  # the backend raises plain Exception
        raise CheckpointError(
            f"{path} is not a tokenizer that the installed tokenizers package can read: {error}"
        ) from error


def _bert_options(directory: Path, config: Mapping[str, Any]) -> dict[str, bool]:
    """The arguments of BertNormalizer that the config sets."""
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    options: dict[str, bool] = {}
    for key, name in names.items():
        value = config.get(key)
        if isinstance(value, bool):
            options[name] = value
        elif value is not None:
            path = directory / "tokenizer_config.json"
            raise CheckpointError(f"{path} has {key}={value!r}: it must be true or false")
    return options


def _from_vocabulary(path: Path, bert_options: dict[str, bool]) -> Backend:
    # Lines end at line feeds only, and blanks of any kind may be tokens: ids are line numbers.
    lines = _read_text(path).removesuffix("\n").split("\n")
    vocabulary = {line.strip() or line: i for i, line in enumerate(lines)}
    special = [token for token in vocabulary if _SPECIAL.fullmatch(token)]
    plain = [token for token in vocabulary if token and not _SPECIAL.fullmatch(token)]
    if not plain:
        raise CheckpointError(f"{path} lists no tokens: one token a line is expected")
    unknown = next((t for t in ("[UNK]", "<unk>") if t in vocabulary), None)
    if unknown is None:
        raise CheckpointError(f"{path} has neither [UNK] nor <unk>, so it cannot encode free text")

    backend: Backend
    if any(token.startswith("##") for token in plain):
        cased = any(c.isupper() for token in plain for c in token)
        backend = Backend(models.WordPiece(vocab=vocabulary, unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(**{"lowercase": not cased, **bert_options})
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    else:
        backend = Backend(models.WordLevel(vocab=vocabulary, unk_token=unknown))
        pattern = _word_pattern(plain)
        if pattern is None:
            backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            if not any(token.isspace() for token in plain):
                backend.normalizer = normalizers.Strip()
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
            backend.decoder = decoders.Fuse()
    # Their names in a text are then the tokens themselves; the ids stay those of the file.
    backend.add_special_tokens(special)
    start = next((t for t in _START_NAMES if t in vocabulary), None)
    end = next((t for t in _END_NAMES if t in vocabulary), None)
    frame = [t for t in (start, end) if t is not None]
    if frame:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*([start] if start else []), "$A", *([end] if end else [])]),
            special_tokens=[(t, vocabulary[t]) for t in frame],
        )
    return backend


def _word_pattern(plain: Sequence[str]) -> str | None:
    """The pattern of one token of a word-level vocabulary, None if words are split at spaces."""
    if {"C", "c", "(", ")", "="} <= set(plain):
        return _SMILES
    return "." if all(len(token) == 1 for token in plain) else None


def _shorten(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def visible_ids(ids: Sequence[int], filled: Sequence[bool], ends: Sequence[int]) -> list[int]:
    """`ids` without what follows an end token in the same run of filled positions.

    Args:
        ids: tokens of one sequence.
        filled: for each, whether the model wrote it; the prompt's own tokens are never dropped.
        ends: ids of the end tokens; those that the model wrote are dropped too.
    """
    return list(_visible(ids, filled, frozenset(ends)))


def _visible(ids: Sequence[int], filled: Sequence[bool], ends: frozenset[int]) -> Iterator[int]:
    ended = False
    for token, written in zip(ids, filled, strict=True):
        ended = written and (ended or token in ends)
        if not ended:
            yield token
