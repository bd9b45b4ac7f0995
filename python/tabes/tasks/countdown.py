"""Countdown: reach a target from three numbers, each used once, by +, -, * and /.

An example is one line of text, question and worked answer:
``030,100,093=023:0093+0030=0123,0123-0100=0023``. Numbers and targets are those of the public test
set (1 to 100); every intermediate result is a whole number from 0 to 9999, and of two summands or
factors the larger stands first. All numbers are written at a fixed width, so that a digit's place
in the text is its place value: a small model learns carries far sooner from it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tabes.errors import InputError
from tabes.files import text_lines

MOST = 9999  # of an intermediate result
ANSWER_LENGTH = 29  # characters of an answer
_ORDERS = list(itertools.permutations(range(3)))
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@dataclass(frozen=True)
class Question:
    numbers: tuple[int, int, int]
    target: int

    @property
    def prompt(self) -> str:
        return f"{','.join(f'{n:03}' for n in self.numbers)}={self.target:03}:"

    @property
    def key(self) -> tuple[int, ...]:
        """The same for questions that differ in the order of their numbers only."""
        return (*sorted(self.numbers), self.target)


def apply(a: int, op: str, b: int) -> int | None:
    """The result of one step, None where it is not allowed."""
    if op == "+":
        value = a + b
    elif op == "-":
        value = a - b
    elif op == "*":
        value = a * b
    elif b and a % b == 0:
        value = a // b
    else:
        return None
    return value if 0 <= value <= MOST else None


def _step(a: int, op: str, b: int) -> tuple[str, int] | None:
    if op in "+*" and a < b:
        a, b = b, a
    value = apply(a, op, b)
    return None if value is None else (f"{a:04}{op}{b:04}={value:04}", value)


def answers(question: Question) -> list[str]:
    """Every worked answer, without repeats."""
    found = []
    for a, b, c in itertools.permutations(question.numbers):
        for op in "+-*/":
            first = _step(a, op, b)
            if first is None:
                continue
            for x, y in ((first[1], c), (c, first[1])):
                for second_op in "+-*/":
                    second = _step(x, second_op, y)
                    if second is not None and second[1] == question.target:
                        found.append(f"{first[0]},{second[0]}")
    return sorted(set(found))


def random_examples(number: int, seed: int) -> Iterator[tuple[Question, str]]:
    """Questions, each with one of its answers: numbers, order and operations are drawn at random
    until the result is a whole number from 1 to 100."""
    rng = np.random.default_rng(seed)
    found = 0
    while found < number:
        drawn = rng.integers(1, 101, (4096, 3)).tolist()
        ops = rng.integers(0, 4, (4096, 2)).tolist()
        swaps = rng.integers(0, 2, 4096).tolist()
        for numbers, (one, two), swap in zip(drawn, ops, swaps, strict=True):
            first = _step(numbers[0], "+-*/"[one], numbers[1])
            if first is None:
                continue
            x, y = (numbers[2], first[1]) if swap else (first[1], numbers[2])
            second = _step(x, "+-*/"[two], y)
            if second is None or not 1 <= second[1] <= 100:
                continue
            a, b, c = (numbers[i] for i in _ORDERS[found % len(_ORDERS)])
            yield Question((a, b, c), second[1]), f"{first[0]},{second[0]}"
            found += 1
            if found == number:
                return


def is_right(question: Question, answer: str) -> bool:
    """Whether the two steps are true, use each number once and end at the target."""
    parts = answer.split(",")
    if len(parts) != 2:
        return False
    left = sorted(question.numbers)
    result = -1
    for number, part in enumerate(parts):
        match = _STEP.fullmatch(part)
        if match is None:
            return False
        a, op, b, stated = int(match[1]), match[2], int(match[3]), int(match[4])
        for operand in (a, b):
            if operand not in left:
                return False
            left.remove(operand)
        if apply(a, op, b) != stated:
            return False
        result = stated
        if number == 0:
            left.append(stated)
    return not left and result == question.target


def read_questions(path: Path) -> list[Question]:
    """The questions of a public file: JSON lines such as
    ``{"input": "30,100,93", "output": "23"}``."""
    found = []
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            a, b, c = (int(part) for part in row["input"].split(","))
            found.append(Question((a, b, c), int(row["output"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path}: line {number} is no question: write it as "
                '{"input": "30,100,93", "output": "23"}'
            ) from None
    if not found:
        raise InputError(f"{path}: it holds no questions")
    return found
