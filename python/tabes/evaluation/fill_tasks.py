"""Sudoku and infilling: masks that are filled where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from tokenizers import models

from tabes._core import InputError
from tabes.evaluation.data import Data, Row, made, text_field
from tabes.evaluation.tasks import Canvas, Outcome, Task, short_hash, tokenizer_of, uses_chat
from tabes.model import Model
from tabes.tasks.sudoku import BOARDS, Board, Cells, puzzles
from tabes.text import Tokenizer

_SHOTS = 5
_SHOTS_SEED = 10**6  # of the worked examples; the default puzzles have seed 0
_NUMBER, _BLANKS = 500, 8

_RULES = (
    "Fill in the {n}x{n} Sudoku grid: every row, every column and every {r}x{c} box holds each "
    "digit from 1 to {n} once. In the puzzle 0 stands for an empty cell."
)


class Sudoku(Task):
    """Boards of 4x4, 6x6 or 9x9, empty cells filled in place; as many cells are always filled.

    A model with a word-level vocabulary gets the board's own text (`tabes.tasks.sudoku`). Any other
    gets rules, worked examples, the puzzle, and the grid with a mask at each empty cell; every cell
    is one token. Worked examples are generated and never come from the data.

    `solved` asks for the rules alone, `cells` is the share of empty cells as in the solution.
    """

    name = "sudoku"
    metrics = ("solved", "cells")
    fields = (("Puzzle", "puzzle"), ("Solution", "solution"))

    def has_shots(self) -> bool:
        return True

    def default_data(self) -> Data:
        made_here = puzzles(4, 16 - _BLANKS, _NUMBER, 0)
        rows = [{"Puzzle": _digits(p.clues), "Solution": _digits(p.solution)} for p in made_here]
        return made(rows, f"generated: 4x4, {_BLANKS} empty cells, one solution, seed 0")

    def protocol(self, model: Model) -> str:
        if _writes_boards(tokenizer_of(model)):
            return "sudoku, in place, board text"
        parts = ["sudoku", "in place", f"{self._shots()}-shot"]
        parts.append("chat" if uses_chat(model, self.prompting) else "plain")
        for what, value in (
            ("template", self.prompting.template),
            ("prefill", self.prompting.prefill),
        ):
            if value is not None:
                parts.append(f"{what} {short_hash(value)}")
        return ", ".join(parts)

    def _shots(self) -> int:
        return _SHOTS if self.prompting.shots is None else self.prompting.shots

    def check(self, row: Row, where: str) -> None:
        board, clues, solution = _board(row, where)
        if not _valid(board, solution) or ((clues != 0) & (clues != solution)).any():
            raise InputError(f"{where}: the solution breaks the rules or differs from the puzzle")

    def canvas(self, model: Model, row: Row, where: str, gen_length: int) -> Canvas:
        board, clues, _ = _board(row, where)
        tokenizer = tokenizer_of(model)
        if _writes_boards(tokenizer):
            return Canvas(tokenizer.encode(board.text(clues)), 0)
        prompt = self._prompt(board, clues)
        if uses_chat(model, self.prompting):
            text = tokenizer.render_chat([{"role": "user", "content": prompt}])
            head = tokenizer.encode_rendered(text + (self.prompting.prefill or ""), 0)
        else:
            head = tokenizer.encode_prompt(prompt + (self.prompting.prefill or "\n"), 0)
        cells = _grid_tokens(tokenizer, board, clues, model.info.mask_token_id)
        # What frames a whole text stays at its end.
        return Canvas(head.ids[: head.start] + cells + head.ids[head.start :], head.start)

    def _prompt(self, board: Board, clues: Cells) -> str:
        parts = [] if self.prompting.template else [
            _RULES.format(n=board.size, r=board.rows, c=board.columns)
        ]  # fmt: skip
        for shot in _worked(board.size, self._shots(), int((clues == 0).sum())):
            parts.append(f"Puzzle:\n{_grid(board, shot[0])}\nSolution:\n{_grid(board, shot[1])}")
        parts.append(f"Puzzle:\n{_grid(board, clues)}\nSolution:")
        asked = "\n\n".join(parts)
        template = self.prompting.template
        return asked if template is None else template.replace("{question}", asked)

    def judge(
        self, model: Model, row: Row, where: str, tokens: Sequence[int], text: str
    ) -> Outcome:
        board, clues, solution = _board(row, where)
        tokenizer = tokenizer_of(model)
        canvas = self.canvas(model, row, where, 0)
        blank = [i for i, t in enumerate(canvas.tokens) if t == model.info.mask_token_id]
        filled = clues.copy()
        for cell, position in zip(np.flatnonzero(clues == 0), blank, strict=True):
            written = tokenizer.piece(tokens[position]).strip()
            right = len(written) == 1 and written.isascii() and written.isdigit()
            filled[cell] = int(written) if right and int(written) <= board.size else 0
        empty = clues == 0
        cells = float((filled == solution)[empty].mean()) if empty.any() else 1.0
        return Outcome({"solved": float(_valid(board, filled)), "cells": cells}, _digits(filled))


def _writes_boards(tokenizer: Tokenizer) -> bool:
    """A language model's subwords could spell a board's text as well, but never learned it."""
    return isinstance(tokenizer.backend.model, models.WordLevel)


def _board(row: Row, where: str) -> tuple[Board, Cells, Cells]:
    """The board of a row, its clues and its solution [size * size]."""
    found = []
    for names in Sudoku.fields:
        text = text_field(row, names, where)
        found.append(text.replace(".", "0"))
    clues, solution = found
    size = {n * n: n for n in BOARDS}.get(len(clues))
    if size is None or len(clues) != len(solution):
        raise InputError(
            f"{where}: puzzle and solution have {len(clues)} and {len(solution)} cells: both need "
            "16, 36 or 81 digits, 0 for an empty cell"
        )
    top = str(size)
    if not all("0" <= c <= top for c in clues) or not all("1" <= c <= top for c in solution):
        raise InputError(f"{where}: cells are digits up to {size}, 0 (empty) in the puzzle only")
    board = BOARDS[size]
    return board, *(np.array([int(c) for c in text], dtype=np.int64) for text in found)  # type: ignore[return-value]


def _digits(cells: Cells) -> str:
    return "".join(str(v) for v in cells)


def _grid(board: Board, cells: Cells) -> str:
    digits = _digits(cells)
    return "\n".join(digits[i : i + board.size] for i in range(0, len(digits), board.size))


def _valid(board: Board, cells: Cells) -> bool:
    wanted = set(range(1, board.size + 1))
    return all({int(cells[i]) for i in unit} == wanted for unit in board.units())


@lru_cache(maxsize=8)
def _worked(size: int, number: int, blanks: int) -> list[tuple[Cells, Cells]]:
    """Worked examples with as many empty cells as the puzzle where one solution allows it."""
    fewest_clues = {4: 4, 6: 10, 9: 28}[size]
    clues = max(size * size - blanks, fewest_clues)
    return [(p.clues, p.solution) for p in puzzles(size, clues, number, _SHOTS_SEED)]


def _grid_tokens(tokenizer: Tokenizer, board: Board, clues: Cells, mask: int) -> list[int]:
    """A grid in lines, one token for every cell whatever the tokenizer would merge."""
    digit = {}
    for value in range(1, board.size + 1):
        ids = tokenizer.encode_rendered(str(value), 0).ids
        if len(ids) != 1:
            raise InputError(f"the tokenizer writes the digit {value} with {len(ids)} tokens")
        digit[value] = ids[0]
    line = tokenizer.encode_rendered("\n", 0).ids
    tokens: list[int] = []
    for i, value in enumerate(clues.tolist()):
        if i and i % board.size == 0:
            tokens += line
        tokens.append(digit[value] if value else mask)
    return tokens


class Infill(Task):
    """Any text with masks: `prompt` with ``[MASK]`` where something is missing, `answer` in full.

    `exact` asks for the whole text as it is.
    """

    name = "infill"
    metrics = ("exact",)
    fields = (("prompt",), ("answer",))

    def default_data(self) -> Data:
        raise InputError("infill has no data of its own: give --data FILE")

    def protocol(self, model: Model) -> str:
        return "infill, in place, exact text"

    def canvas(self, model: Model, row: Row, where: str, gen_length: int) -> Canvas:
        tokens = tokenizer_of(model).encode(text_field(row, ("prompt",), where))
        if model.info.mask_token_id not in tokens:
            raise InputError(f"{where}: the prompt holds no mask")
        return Canvas(tokens, 0)

    def judge(
        self, model: Model, row: Row, where: str, tokens: Sequence[int], text: str
    ) -> Outcome:
        # Special tokens that the model wrote are shown: with one the text is another.
        given = self.canvas(model, row, where, 0).tokens
        filled = [token == model.info.mask_token_id for token in given]
        written = tokenizer_of(model).decode(tokens, filled)
        right = written.strip() == text_field(row, ("answer",), where).strip()
        return Outcome({"exact": float(right)}, written)
