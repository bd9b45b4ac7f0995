"""What a task is: examples, split into tune and test, and a judge.

Hyper-parameters are chosen on `tune` and results reported on `test`; the two share no example.
Examples of different difficulty alternate, so that the first n of a split are a fair sample of it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

SPLITS = ("tune", "test")


@dataclass(frozen=True)
class Example:
    """Something to fill.

    Attributes:
        text: with `[MASK]` wherever something is to be filled.
        truth: one right filling, None if none is known.
        group: examples of a kind, such as "8 clues".
        facts: what the judge needs beside the finished text.
    """

    text: str
    truth: str | None
    group: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sources:
    """Files of public data that the user has."""

    sudoku_4x4: Path | None = None
    countdown: Path | None = None


class Task(Protocol):
    """A task; `metrics` are the names of what its judge returns, the main one first."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def keeps_texts(self) -> bool: ...

    def missing(self, sources: Sources) -> str | None:
        """What the user has to provide first, None if nothing."""
        ...

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        """Up to `number` examples of a split."""
        ...

    def judge(self, example: Example, text: str) -> dict[str, float]:
        """Every metric, from 0 to 1, of one finished text."""
        ...


def side_of(content: bytes) -> str:
    """The split that something made belongs to: a fifth of all is for `tune`."""
    return "tune" if zlib.crc32(content) % 5 == 0 else "test"


def alternate(groups: Sequence[Iterator[Example]], number: int) -> list[Example]:
    """`number` examples, one of each group in turn, until a group has no more."""
    return list(itertools.islice(itertools.chain.from_iterable(zip(*groups, strict=False)), number))
