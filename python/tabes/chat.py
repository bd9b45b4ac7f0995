"""Chat templates: messages in, the text that the model was trained on out.

What a template writes may be special tokens; what stands in a message is text, even where it spells
one. Names of special tokens in messages are therefore broken by a *marker*, a character that no
text has, before the template sees them, and the marker is taken out again when the text is encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tabes.errors import InputError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
MASK_LITERAL = "[MASK]"  # where something is to be filled, whatever the model calls it

# Unicode reserves these for use inside programs: texts have no business with them.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
# Names that transformers gives a message's reasoning; templates read any of the first two.
_DEEPEST = 100  # lists and dicts within each other in a message
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Marked(NamedTuple):
    """A text in which names of special tokens are broken by `marker`."""

    text: str
    marker: str


class Rendered(str):
    """What a chat template wrote. It knows which names of special tokens came from messages.

    Attributes:
        marked: the same text with such names marked; None if there are none.
    """

    marked: Marked | None

    def __new__(cls, text: str, marked: Marked | None = None) -> Rendered:
        made = super().__new__(cls, text)
        made.marked = marked
        return made

    def __add__(self, other: str) -> Rendered:
        """Text behind it, such as the beginning of the reply, is taken as the template's own."""
        marked = self.marked
        if marked is not None and marked.marker not in other:
            marked = Marked(marked.text + other, marked.marker)
        return Rendered(super().__add__(other), marked)


class Names:
    """Names of special tokens, looked for in texts in upper or lower case.

    Args:
        names: those of one character, which nothing can break, are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._all = sorted({name for name in names if len(name) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._all)) or "(?!)", re.IGNORECASE)

    def found(self, text: str) -> set[str]:
        """Those that `text` spells, as it spells them."""
        return set(self._pattern.findall(text))

    def mark(self, text: str, marker: str) -> str:
        """`text` with `marker` in every name, behind its first character."""
        # Names may overlap: what is left of one when another is broken can be a name again.
        while self._pattern.search(text):
            text = self._pattern.sub(lambda m: m[0][0] + marker + m[0][1:], text)
        return text


def free_marker(texts: Iterable[str]) -> str:
    """A marker that is in none of `texts`, neither as it is nor as JSON escapes it."""
    used = "\n".join(texts)
    for marker in _NONCHARACTERS:
        if marker not in used and json.dumps(marker)[1:-1] not in used:
            return marker
    raise InputError("the text holds all of Unicode's noncharacters U+FDD0 to U+FDEF: is it text?")


def check_text(text: str, what: str) -> None:
    """Raises InputError for lone surrogates, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate, {text[error.start]!a}, at character "
            f"{error.start}: it is not text; read files as UTF-8 and keep surrogate pairs together"
        ) from None


def render(
    source: str,
    messages: Sequence[Message],
    given: Mapping[str, Any],
    names: Names,
    add_generation_prompt: bool,
) -> Rendered:
    """The text that a template makes of messages.

    Args:
        source: the template, in jinja2.
        messages: as transformers takes them, oldest first.
        given: what else the template may use, such as the named special tokens.
        names: what is text where it stands in a message.
        add_generation_prompt: whether the template is to begin the reply.

    Raises InputError if the template refuses the messages, or if it fails.
    """
    plain = [_plain_message(message, i) for i, message in enumerate(messages)]

    def write(change: Callable[[str], str] | None = None) -> str:
        given_messages = plain if change is None else [_changed(m, change) for m in plain]
        return _write(source, given_messages, given, add_generation_prompt)

    text = write()
    strings = [s for message in plain for s in _strings(message)]
    found = set().union(*(names.found(s) for s in strings))
    if not found:
        return Rendered(text)
    marker = free_marker([text, source, *strings])
    escaped = json.dumps(marker)[1:-1]

    def mark(wanted: Iterable[str]) -> str | None:
        """The text with these names marked, None if the template then writes another text."""
        chosen = Names(wanted)
        try:
            marked = write(lambda s: chosen.mark(s, marker)).replace(escaped, marker)
        except InputError:
            return None
        return marked if marked.replace(marker, "") == text else None

    marked = mark(found)
    if marked is None:
        # The template looks for some of them itself (Qwen's for </think>): those are its own.
        marked = mark(name for name in found if mark([name]) is not None)
    return Rendered(text, None if marked is None else Marked(marked, marker))


def _write(
    source: str, messages: list[Any], given: Mapping[str, Any], add_generation_prompt: bool
) -> str:
    options = {"tools": None, "documents": None, **given}
    options["add_generation_prompt"] = add_generation_prompt
    parts = [str(m["content"]) for m in messages if isinstance(m.get("content"), list)]
    try:
        text = _template(source).render(messages=messages, **options)
        if not any(part in text for part in parts):
            return text
    except Exception as error:  # a template can raise anything: its filters are Python functions
        if not parts:
            reason = str(error) or type(error).__name__
            raise InputError(f"the chat template failed on these messages: {reason}") from error
    # The template knows contents that are texts only.
    return _write(
        source,
        [_joined(m, i) for i, m in enumerate(messages)],
        given,
        options["add_generation_prompt"],
    )


def _joined(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message whose content, if it is a list of parts, is their text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InputError(
                f"message {number} has a part of type {kind!r}: this chat template takes text only"
            )
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _plain_message(message: Any, number: int) -> dict[str, Any]:
    """A copy made of nothing but dicts, lists, strings and numbers, as transformers makes it.

    Templates come with checkpoints and are not trusted: they are to see no object with methods.
    """
    if not isinstance(message, Mapping):
        raise InputError(
            f"message {number} is of type {type(message).__name__}: "
            "every message is a dict with 'role' and 'content'"
        )
    # Without content is what an assistant says by calling a tool; who asks has something to say.
    lacks = "role" if "role" not in message else "content"
    if lacks not in message and (
        lacks == "role" or len(message) == 1 or message["role"] in ("user", "system")
    ):
        raise InputError(
            f"message {number} has the keys {sorted(map(str, message))}: "
            "every message needs 'role' and 'content'"
        )
    what = f"message {number}"
    plain = {str(k): _plain(v, what) for k, v in message.items() if v is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise InputError(f"{what} is nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        check_text(text, what)
        return text
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(k, what): _plain(v, what, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, what, depth + 1) for v in value]
    raise InputError(
        f"{what} holds a {type(value).__name__}: give texts, numbers, lists and dicts of them"
    )


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_changed(k, change): _changed(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_changed(v, change) for v in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=16)
def _template(source: str) -> jinja2.Template:
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
    return environment.from_string(source)
