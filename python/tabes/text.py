"""Text to token ids and back: tokenizers, what they make special, and what stays text."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers

from tabes._core import InputError, names_special_token
from tabes.chat import (
    MASK_LITERAL,
    Marked,
    Message,
    Names,
    Rendered,
    check_text,
    free_marker,
    render,
)
from tabes.foreign import Foreign, guarded, is_tokenizer
from tabes.spelling import spelled

# LLaDA's own name goes first: its vocabulary may have [MASK] as a word.
_MASK_NAMES = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>", MASK_LITERAL, "<mask>")


class Prompt(NamedTuple):
    """Token ids of one sequence and where the answer to its prompt starts (0: no prompt)."""

    ids: list[int]
    start: int


class Tokenizer:
    """Text to token ids and back, for one checkpoint.

    The mask token may be written in a text that is to be filled in place, as ``[MASK]`` or by the
    model's own name for it. Where masks are appended (`gen_length`), the prompt is data: there the
    names are text like any other. In chats all names of special tokens that stand in a message are
    text; what the template writes is special. Text is framed as the tokenizer's template says
    ([CLS] text [SEP], say).

    Attributes:
        backend: the ``tokenizers.Tokenizer`` underneath, or what stands in for it.
        mask_token: what to write in a text for a position to fill.
        mask_token_id: its id, None if neither the caller nor the tokenizer knows one.
        chat_template: source of the jinja2 template, None if the checkpoint has none.
    """

    def __init__(
        self,
        backend: Backend | Foreign,
        *,
        mask_token_id: int | None = None,
        named_tokens: Mapping[str, str] | None = None,
        special_tokens: Sequence[str] = (),
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
        names = [*self._named_tokens.values(), *special_tokens]
        named = {name: backend.token_to_id(name) for name in names}
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
        special = {i: token.content for i, token in added.items() if token.special}
        self._hidden = set(special) - {mask_token_id}
        self._mask_names = Names([self.mask_token, *([MASK_LITERAL] if self._aliased else [])])
        self._special_names = Names(
            name for i, name in special.items() if i != mask_token_id and not name.isspace()
        )
        self._literal: dict[str, Backend | Foreign] = {}
        self._prefix, self._suffix = self._frame()

    @classmethod
    def adapt(cls, given: Any, mask_token_id: int | None = None) -> Tokenizer:
        """A tokenizer of transformers or a ``tokenizers.Tokenizer``, which stays as it is.

        Args:
            given: fast ones serve by what is underneath, others (ESM's) as they are.
            mask_token_id: the model's mask token; without it, the one `given` names.

        Raises InputError for anything else.
        """
        if isinstance(given, Tokenizer):
            return given
        fast = given if isinstance(given, Backend) else getattr(given, "backend_tokenizer", None)
        backend: Backend | Foreign
        if isinstance(fast, Backend):
            backend = fast
        elif is_tokenizer(given):
            backend = Foreign(given)
        else:
            raise InputError(
                f"tokenizer is a {type(given).__name__}: give one of transformers or of tokenizers,"
                " or none and token ids"
            )
        if mask_token_id is None:
            mask_token_id = getattr(given, "mask_token_id", None)
        template = getattr(given, "chat_template", None)
        named: dict[str, str] = {}
        extra: list[str] = []
        for key, value in getattr(given, "special_tokens_map", {}).items():
            if isinstance(value, (list, tuple)):
                extra += map(str, value)
            else:
                named[key] = str(value)
        if isinstance(backend, Backend):
            backend = Backend.from_str(backend.to_str())  # a copy: ours changes its settings
            backend = spelled(backend, [*named.values(), *extra])
        return cls(
            backend,
            mask_token_id=mask_token_id,
            named_tokens=named,
            special_tokens=extra,
            chat_template=template if isinstance(template, str) else None,
        )

    def _declared_mask_id(self) -> int | None:
        for name in (self._named_tokens.get("mask_token"), *_MASK_NAMES):
            if name is not None and (token := self.backend.token_to_id(name)) is not None:
                return token
        return None

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the template puts before and after a text."""
        for probe in ("a", "C", "1", "A", " "):
            try:
                encoding = guarded(self.backend.encode, probe)
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
        ``[BOS] text masks [EOS]``. Between text and masks it would say that nothing follows. Before
        appended masks the mask's names are text; those of other special tokens are special.

        Raises InputError for text the tokenizer cannot express.
        """
        body = self._encode_body(text, gen_length is None)
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

        With `gen_length` None, masks written in the messages are all there is to fill, and the
        template is not asked to begin a reply. It writes the special tokens: no frame is added.
        """
        return self.encode_rendered(self.render_chat(messages, gen_length is not None), gen_length)

    def encode_rendered(self, text: str, gen_length: int | None) -> Prompt:
        """Text that brings its special tokens along, as `render_chat` writes it, then masks.

        Like `encode_prompt` but without a frame. What `render_chat` returns remembers which names
        of special tokens came from messages; in a plain string all but the mask's are special.
        """
        body = self._encode_body(text, gen_length is None)
        if gen_length is None:
            return Prompt(body, 0)
        return Prompt(body + self._masks(gen_length), len(body))

    def _masks(self, count: int) -> list[int]:
        if count and self.mask_token_id is None:
            raise InputError("no mask token is known: pass mask_token_id to tabes.load")
        return [self.mask_token_id] * count if self.mask_token_id is not None else []

    def _encode_body(self, text: str, in_place: bool) -> list[int]:
        """The ids of a text without frame; its masks are masks if it is to be filled in place."""
        check_text(text, "the text")
        marked = text.marked if isinstance(text, Rendered) else None
        if marked is None:
            marked = Marked(str(text), "")
        if in_place:
            return self._encode_with_masks(marked)
        ids = self._encode_piece(marked)
        if self.mask_token_id not in ids:
            return ids
        marker = marked.marker or free_marker([text])
        try:
            ids = self._encode_piece(Marked(self._mask_names.mark(marked.text, marker), marker))
        except InputError:  # a vocabulary of letters or words has nothing to spell it with
            ids = [self.mask_token_id] if self.mask_token_id is not None else []
        if self.mask_token_id in ids:
            raise InputError(
                f"{_shorten(text)} spells the mask token, {self.mask_token!r}, which this "
                "vocabulary has only as a position to fill: leave out gen_length to fill it in "
                "place, or give token ids"
            )
        return ids

    def _encode_with_masks(self, marked: Marked) -> list[int]:
        text, marker = marked
        if self._native_mask:
            if self._aliased:
                text = text.replace(MASK_LITERAL, self.mask_token)
            return self._encode_piece(Marked(text, marker))
        if self.mask_token_id is None:
            return self._encode_piece(marked)
        names = [self.mask_token, *([MASK_LITERAL] if self._aliased else [])]
        ids: list[int] = []
        for i, piece in enumerate(re.split("|".join(map(re.escape, names)), text)):
            ids += [self.mask_token_id] if i else []
            ids += self._encode_piece(Marked(piece, marker))
        return ids

    def _encode_piece(self, marked: Marked) -> list[int]:
        text, marker = marked
        if not text:
            return []
        backend = self._literal_backend(marker) if marker in text else self.backend
        try:
            encoding = guarded(backend.encode, text, add_special_tokens=False)
        except InputError:
            raise
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

    def _literal_backend(self, marker: str) -> Backend | Foreign:
        """The backend for marked texts: what is broken by `marker` is no special token."""
        if not marker:
            return self.backend
        if marker not in self._literal:
            if isinstance(self.backend, Foreign):
                self._literal[marker] = self.backend.literal(marker)
            else:
                self._literal[marker] = _literal_copy(self.backend, marker)
        return self._literal[marker]

    def decode(self, ids: Sequence[int], filled: Sequence[bool] | None = None) -> str:
        """The text of token ids, without special tokens; masks that are left stay visible.

        Args:
            ids: the tokens.
            filled: for each, whether the model wrote it; what it wrote is shown even if special.
        """
        given = [True] * len(ids) if filled is None else [not f for f in filled]
        hidden = self._hidden
        shown = [i for i, g in zip(ids, given, strict=True) if not (g and i in hidden)]
        if self._native_mask or self.mask_token_id is None:
            return self._decode_piece(shown)
        pieces: list[list[int]] = [[]]
        for i in shown:
            if i == self.mask_token_id:
                pieces.append([])
            else:
                pieces[-1].append(i)
        return self.mask_token.join(self._decode_piece(piece) for piece in pieces)

    def decode_filled(self, ids: Sequence[int], filled: Sequence[bool], ends: Sequence[int]) -> str:
        """The text of a finished sequence, cut where the model ended it.

        Args:
            ids: tokens of one sequence.
            filled: for each, whether the model wrote it; given tokens are never cut off, and
                special ones among them are left out.
            ends: ids of the end tokens. What follows one that the model wrote, in the same run of
                filled positions, is left out, and so is the end token itself.
        """
        kept = list(_visible(ids, filled, frozenset(ends)))
        return self.decode([i for i, _ in kept], [written for _, written in kept])

    def _decode_piece(self, ids: Sequence[int]) -> str:
        try:
            text: str = guarded(self.backend.decode, list(ids), skip_special_tokens=False)
            return text
        except Exception as error:  # the backend raises plain Exception
            raise InputError(
                f"the tokenizer cannot decode the ids {list(ids[:8])}...: {error}"
            ) from error

    def token_id(self, name: str) -> int:
        """The id of the token with this name, or of a text that is a single token.

        Raises InputError if there is none; the message names the nearest ones.
        """
        check_text(name, "the name of a token")
        token = self.backend.token_to_id(name)
        if token is None and name == MASK_LITERAL and self._aliased:
            token = self.mask_token_id
        if token is not None:
            return token
        try:
            ids = self._encode_piece(Marked(name, ""))
        except InputError:
            ids = []
        if len(ids) == 1 and self.decode(ids, [True]) == name:
            return ids[0]
        lower = {known.lower(): known for known in self._vocabulary}
        nearest = [
            lower[n] for n in difflib.get_close_matches(name.lower(), self._comparable(name), n=3)
        ]
        counted = f", which it writes with {len(ids)}" if len(ids) > 1 else ""
        hint = f": did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        raise InputError(f"the tokenizer has no token {name!r}{counted}{hint}")

    @cached_property
    def _vocabulary(self) -> list[str]:
        return sorted(self.backend.get_vocab(with_added_tokens=True))

    def _comparable(self, name: str) -> list[str]:
        """Names in lower case that can be near: vocabularies of 100,000 are slow to search."""
        start = name.lower().lstrip("[<|")[:1]
        return [
            low
            for low in dict.fromkeys(known.lower() for known in self._vocabulary)
            if abs(len(low) - len(name)) <= 3 and start in low[:3]
        ]

    @cached_property
    def special_token_ids(self) -> list[int]:
        """Ids of all special tokens but the mask, in order: those that the tokenizer makes special,
        and those of the usual names ([unused1], <null_1>)."""
        return sorted((self._hidden | set(self._usual)) - {self.mask_token_id})

    @property
    def unwritten_token_ids(self) -> list[int]:
        """Of these the ones that are no text by their names or as the tokenizer's unknown, padding,
        class and separator token; a language model's own markers (<|im_end|>) may be part of what
        it writes."""
        roles = ("unk_token", "pad_token", "cls_token", "sep_token")
        named = (self.backend.token_to_id(self._named_tokens.get(role, "")) for role in roles)
        return sorted({*self._usual, *(i for i in named if i is not None)} - {self.mask_token_id})

    @cached_property
    def _usual(self) -> list[int]:
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return [i for name, i in vocabulary.items() if names_special_token(name)]

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

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> Rendered:
        """The text that the checkpoint's chat template makes of `messages`.

        Args:
            messages: dicts with ``role`` and ``content``, oldest first. The content may be a list
                of parts (``{"type": "text", "text": ...}``), and an assistant's may be missing.
            add_generation_prompt: whether the template is to begin the reply.

        Raises InputError if there is no template, if it refuses the messages, or if it fails.
        """
        if self.chat_template is None:
            raise InputError(
                "this checkpoint has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): give the prompt as a string"
            )
        return render(
            self.chat_template,
            messages,
            self._named_tokens,
            self._special_names,
            add_generation_prompt,
        )

    def __repr__(self) -> str:
        backend = self.backend
        kind = backend.name if isinstance(backend, Foreign) else type(backend.model).__name__
        mask = "no mask" if self.mask_token_id is None else f"mask {self.mask_token!r}"
        if self.mask_token_id is not None:
            mask += f" = {self.mask_token_id}"
        chat = "" if self.chat_template is None else ", chat template"
        return f"Tokenizer({kind}, {self.vocab_size:,} tokens, {mask}{chat})"


def _literal_copy(backend: Backend, marker: str) -> Backend:
    described = json.loads(backend.to_str())
    for token in described["added_tokens"]:
        if token["special"]:
            token["normalized"] = False  # looked for before the normalizer takes the marker out
    copy = Backend.from_str(json.dumps(described))
    remove = normalizers.Replace(marker, "")
    copy.normalizer = (
        remove if copy.normalizer is None else normalizers.Sequence([remove, copy.normalizer])
    )
    return copy


def _shorten(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def visible_ids(ids: Sequence[int], filled: Sequence[bool], ends: Sequence[int]) -> list[int]:
    """`ids` without what follows an end token in the same run of filled positions.

    Args:
        ids: tokens of one sequence.
        filled: for each, whether the model wrote it; the prompt's own tokens are never dropped.
        ends: ids of the end tokens; those that the model wrote are dropped too.
    """
    return [token for token, _ in _visible(ids, filled, frozenset(ends))]


def _visible(
    ids: Sequence[int], filled: Sequence[bool], ends: frozenset[int]
) -> Iterator[tuple[int, bool]]:
    ended = False
    for token, written in zip(ids, filled, strict=True):
        ended = written and (ended or token in ends)
        if not ended:
            yield token, written
