"""Tasks of digits: Sudoku and Countdown."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tabes.bench.task import Example, Sources, side_of
from tabes.chat import MASK_LITERAL
from tabes.tasks import countdown, sudoku

_TRAINED_QUESTIONS = (1_500_000, 0)  # number and seed of what train_countdown.py draws
_GENERATED = (60_000, 2_000_000)  # of what the unseen are picked from


@dataclass(frozen=True)
class Sudoku:
    """Puzzles with one solution, by number of clues; the test puzzles of 4x4 are the public ones,
    a quarter of which have several solutions, all of which count."""

    size: int
    clues: tuple[int, ...]
    model: str = "sudoku"
    metrics: tuple[str, ...] = ("solved", "cells")
    keeps_texts: bool = False

    @property
    def name(self) -> str:
        return f"sudoku{self.size}"

    @property
    def title(self) -> str:
        return f"Sudoku {self.size}x{self.size}"

    def missing(self, sources: Sources) -> str | None:
        if self.size == 4 and sources.sudoku_4x4 is None:
            return "the public puzzles: --sudoku-4x4 FILE (CSV with the columns Puzzle, Solution)"
        return None

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        if self.size != 4:
            made = self._made(number, 1_000, lambda cells: side_of(cells.tobytes()) == split)
            return [self._example(p) for p in made][:number]
        # There are too few 4x4 grids to share them out: puzzles are told apart.
        public = [] if sources.sudoku_4x4 is None else sudoku.read_puzzles(sources.sudoku_4x4)
        if split == "test":
            return [self._example(p) for p in public[:number]]
        used = {p.clues.tobytes() for p in public}
        made = self._made(2 * number, 1_001, lambda _: True)
        return [self._example(p) for p in made if p.clues.tobytes() not in used][:number]

    def _made(
        self, number: int, seed: int, accept: Callable[[sudoku.Cells], bool]
    ) -> list[sudoku.Puzzle]:
        each = -(-number // len(self.clues))
        groups = [sudoku.puzzles(self.size, clues, each, seed, accept) for clues in self.clues]
        return list(itertools.chain.from_iterable(zip(*groups, strict=True)))

    def _example(self, one: sudoku.Puzzle) -> Example:
        return Example(
            one.board.text(one.clues),
            one.board.text(one.solution),
            f"{int((one.clues > 0).sum())} clues",
            {"clues": one.clues.tolist(), "solution": one.solution.tolist()},
        )

    def judge(self, example: Example, text: str) -> dict[str, float]:
        puzzle = sudoku.Puzzle(
            sudoku.BOARDS[self.size],
            np.array(example.facts["clues"], dtype=np.int64),
            np.array(example.facts["solution"], dtype=np.int64),
        )
        solved, cells = sudoku.judge(puzzle, text)
        return {"solved": float(solved), "cells": cells}


@functools.cache
def _unseen_questions() -> list[tuple[countdown.Question, str]]:
    """Generated questions that train_countdown.py does not draw."""
    drawn = list(countdown.random_examples(*_GENERATED))
    wanted = {question.key for question, _ in drawn}
    trained = countdown.random_examples(*_TRAINED_QUESTIONS)
    seen = {question.key for question, _ in trained if question.key in wanted}
    return [(question, answer) for question, answer in drawn if question.key not in seen]


@dataclass(frozen=True)
class Countdown:
    """Worked answers: the public questions, then generated ones that the model was not trained
    on."""

    name: str = "countdown"
    title: str = "Countdown"
    model: str = "countdown"
    metrics: tuple[str, ...] = ("right",)
    keeps_texts: bool = False

    def missing(self, sources: Sources) -> str | None:
        if sources.countdown is None:
            return "the public questions: --countdown FILE (JSON lines with input, output)"
        return None

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        public = [] if sources.countdown is None else countdown.read_questions(sources.countdown)
        found = [self._example(q, None, "public") for q in public[:number] if split == "test"]
        used = {q.key for q in public}
        for question, answer in _unseen_questions():
            if len(found) == number:
                break
            if question.key not in used and side_of(repr(question.key).encode()) == split:
                used.add(question.key)
                found.append(self._example(question, answer, "generated"))
        return found

    def _example(self, question: countdown.Question, answer: str | None, group: str) -> Example:
        answer = answer or next(iter(countdown.answers(question)), None)
        truth = None if answer is None else question.prompt + answer
        facts = {"numbers": list(question.numbers), "target": question.target}
        text = question.prompt + MASK_LITERAL * countdown.ANSWER_LENGTH
        return Example(text, truth, group, facts)

    def judge(self, example: Example, text: str) -> dict[str, float]:
        a, b, c = example.facts["numbers"]
        question = countdown.Question((a, b, c), example.facts["target"])
        right = text.startswith(question.prompt) and countdown.is_right(
            question, text.removeprefix(question.prompt)
        )
        return {"right": float(right)}
