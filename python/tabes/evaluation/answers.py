"""Answers in free text: where they stand and when two of them say the same."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-\s?)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.S)


def boxed(text: str) -> list[str]:
    r"""The contents of every ``\boxed{...}`` in order; braces within are balanced.

    A box that is never closed is left out: its answer may have been cut. ``\boxed 5`` counts too.
    """
    found = []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            bare = re.match(r"[^\s$\\{}]+", rest)
            if bare:
                found.append(bare[0].rstrip(".,"))
            continue
        depth = 0
        for i, character in enumerate(rest):
            escaped = i > 0 and rest[i - 1] == "\\"
            depth += 0 if escaped else (character == "{") - (character == "}")
            if depth == 0:
                found.append(rest[1:i].strip())
                break
    return found


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, in order; thousands may be separated, a minus between words is none.

    ``$1,200.50`` is one number and ``3,4`` are two; a percent sign is passed over.
    """
    plain = text.replace("\u2212", "-").replace("{,}", ",").replace(r"\$", "$")
    plain = re.sub(r"(?<=\d)\\[,!](?=\d)", "", plain)
    return [Fraction(re.sub(r"[$,\s]", "", m)) for m in _NUMBER.findall(plain)]


def arithmetic_answer(text: str) -> Fraction | None:
    r"""The answer to a word problem as d1 looks for it, None if there is none.

    That is the first number within the first ``\boxed{}`` that holds one, else the last number
    within the first ``<answer>...</answer>``.
    """
    for content in boxed(text):
        found = numbers(content)
        if found:
            return found[0]
    match = _ANSWER.search(text)
    found = numbers(match[1]) if match else []
    return found[-1] if found else None


def code_blocks(text: str) -> list[str]:
    """The contents of fenced blocks in order, the last one also if its fence is not closed."""
    return [match[2] for match in _FENCE.finditer(text)]


def code_defining(text: str, names: set[str]) -> str:
    """The first fenced block that defines a function or class of `names`, else the first block;
    without any block the text as it is."""
    blocks = code_blocks(text)
    for block in blocks:
        if set(re.findall(r"^(?:async\s+def|def|class)\s+(\w+)", block, re.M)) & names:
            return block
    return blocks[0] if blocks else text


def equivalent(one: str, other: str) -> bool:
    r"""Whether two answers of mathematics say the same, after `normalise`.

    Numbers are compared by value (``0.5``, ``\frac12`` and ``1/2``), sequences and points part by
    part and in order. Algebra is not done: ``x+1`` and ``1+x`` differ.
    """
    return _same(normalise(one), normalise(other))


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    x, y = _value(a), _value(b)
    if x is not None or y is not None:
        return x == y
    brackets = _brackets(a)
    if brackets != _brackets(b):
        return False
    if brackets:
        a, b = a[1:-1], b[1:-1]
    parts_a, parts_b = _split(a), _split(b)
    if len(parts_a) != len(parts_b) or (len(parts_a) == 1 and not brackets):
        return False
    return all(_same(p, q) for p, q in zip(parts_a, parts_b, strict=True))


def _brackets(text: str) -> str:
    """The round or square brackets around a text, which tell open from closed intervals."""
    ends = text[:1] + text[-1:]
    return ends if ends in ("()", "[]", "(]", "[)") else ""


def _split(text: str) -> list[str]:
    """`text` at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


_DROPPED = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|quad|qquad)(?![a-zA-Z])")
_SPACES = re.compile(r"(?<!\\)\\[!,;: ]|~|\s+")
_DEGREES = re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_UNIT = re.compile(_TEXT.pattern + r"(?:\s*\^\s*(?:\d|\{\d\}))?\s*$")
_SYMBOLS = {
    "\u2212": "-",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "\u00d7": r"\cdot ",
    "·": r"\cdot ",
    r"\times": r"\cdot",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\$": "",
    "$": "",
    r"\%": "",
    "%": "",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
}


def normalise(answer: str) -> str:
    r"""One spelling for answers that look different and mean the same.

    Goes: spacing and sizing commands, currency, percent and degree signs, units in ``\text{}``
    behind a number, the left side of ``x = ...``, separators of thousands, a final full stop.
    ``\frac12``, ``\frac{1}2`` and ``1/2`` become ``\frac{1}{2}``, ``\sqrt3`` becomes ``\sqrt{3}``.
    """
    text = answer.strip()
    for old, new in _SYMBOLS.items():
        text = text.replace(old, new)
    text = _DEGREES.sub("", _DROPPED.sub("", text))
    unit = _UNIT.search(text)
    if unit and re.search(r"\d", text[: unit.start()]):
        text = text[: unit.start()]
    text = _TEXT.sub(r"\1", text).strip().removesuffix(".").strip()
    if re.fullmatch(r"[A-Za-z ]{2,}", text):
        return " ".join(text.lower().split())
    # \pi r is not \pir; the arguments of roots and fractions get their braces further down.
    text = re.sub(r"(\\(?!sqrt|frac)[a-zA-Z]+)\s+(?=[a-zA-Z])", r"\1{}", text)
    text = _SPACES.sub("", text)
    text = re.sub(r"^[A-Za-z]\w?(?:=|\\in(?![a-zA-Z])(?:\{\})?)", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\w)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", text)
    text = re.sub(r"(?<![\w}.])(\d+)/(\d+)(?![\w{.])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{-([^{}]*)\}", r"-\\frac{\1}", text)
    text = re.sub(r"^\(([A-Z])\)$", r"\1", text)  # a choice
    return re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)


def _value(text: str) -> Fraction | None:
    """The number that a normalised answer is: an integer, a decimal, a fraction or a mixed one."""
    if re.fullmatch(r"-?\d+(\.\d*)?", text):
        return Fraction(text.removesuffix("."))
    match = re.fullmatch(r"(-?)(\d*)\\frac\{(\d+)\}\{(\d+)\}", text)
    if match is None or int(match[4]) == 0:
        return None
    size = int(match[2] or 0) + Fraction(int(match[3]), int(match[4]))
    return -size if match[1] else size
