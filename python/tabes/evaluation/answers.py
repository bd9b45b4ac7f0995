"""Answers in free text: where they stand.

Everything here takes any text that a model may write, of any length, in time that grows with the
length and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-\s?)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"[^\s$\\{}]+")


def boxes(text: str) -> list[slice]:
    r"""Where the contents of every ``\boxed{...}`` stand, in the order in which they are opened.

    Braces within are balanced. A box that is never closed is left out: its answer may have been
    cut. ``\boxed 5`` counts too.
    """
    closed = _closing_braces(text)
    found = []
    for match in _BOX.finditer(text):
        start = match.end()
        if not text.startswith("{", start):
            bare = _BARE.match(text, start)
            if bare:
                found.append(slice(start, start + len(bare[0].rstrip(".,"))))
        elif start in closed:
            found.append(slice(start + 1, closed[start]))
    return found


def _closing_braces(text: str) -> dict[int, int]:
    r"""The closing brace of every opening one that has one; ``\{`` and ``\}`` are no braces."""
    closed: dict[int, int] = {}
    opened: list[int] = []
    # A backslash takes the character behind it along.
    for match in re.finditer(r"\\.|[{}]", text, re.S):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.start()
    return closed


def last_box(text: str) -> str | None:
    """What stands in the box that is opened last, None if there is no box."""
    found = boxes(text)
    return text[found[-1]].strip() if found else None


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in order; thousands may be separated, a minus between words is none.

    ``$1,200.50`` is one number and ``3,4`` are two; a percent sign is passed over.
    """
    return list(_numbers(text))


def _numbers(text: str) -> Iterator[Decimal]:
    plain = text.replace("\u2212", "-").replace("{,}", ",").replace(r"\$", "$")
    plain = re.sub(r"(?<=[\d,])\\[,!;: ]\s*(?=\d{3}(?!\d))", "", plain)
    # Not int or Fraction: these take no more than 4,300 digits, and their time grows as the square.
    return (Decimal(re.sub(r"[$,\s]", "", m[0])) for m in _NUMBER.finditer(plain))


def arithmetic_answer(text: str) -> Decimal | None:
    r"""The answer to a word problem as d1 looks for it, None if there is none.

    That is the first number within the first ``\boxed{}`` that holds one, else the last number
    within the first ``<answer>...</answer>``.
    """
    read = 0  # a box within one that holds no number holds none either
    for box in boxes(text):
        if box.start < read:
            continue
        found = next(_numbers(text[box]), None)
        if found is not None:
            return found
        read = box.stop
    _, opened, rest = text.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return next(reversed(numbers(content if opened and closed else "")), None)
