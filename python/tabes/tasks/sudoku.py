"""Sudoku boards of 4x4, 6x6 and 9x9: grids, puzzles with one solution, their text, their judge.

A board is written row by row, every row behind a letter of its own (``a1243b3...``), so that a
model with relative positions knows where a cell lies; the letters also tell the sizes apart.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tabes.chat import MASK_LITERAL
from tabes.errors import InputError
from tabes.files import read_text

Cells = NDArray[np.int64]  # [size * size], row by row, 0 where empty


@dataclass(frozen=True)
class Board:
    """A size of board: `rows` x `columns` is the shape of its boxes, their product its side."""

    rows: int
    columns: int
    labels: str

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def units(self) -> list[list[int]]:
        """The cells of every row, column and box."""
        n, box = self.size, range(self.size)
        lines = [[r * n + c for c in box] for r in box] + [[r * n + c for r in box] for c in box]
        boxes = [
            [(top + i // self.columns) * n + left + i % self.columns for i in range(self.size)]
            for top in range(0, n, self.rows)
            for left in range(0, n, self.columns)
        ]
        return lines + boxes

    def text(self, cells: Cells) -> str:
        """The board with `[MASK]` at empty cells."""
        n = self.size
        return "".join(
            self.labels[r]
            + "".join(str(v) if v else MASK_LITERAL for v in cells[r * n : r * n + n])
            for r in range(n)
        )

    def cells(self, text: str) -> Cells | None:
        """The digits of a finished text, None if it is no such board."""
        n = self.size
        if len(text) != n * (n + 1) or any(text[r * (n + 1)] != self.labels[r] for r in range(n)):
            return None
        digits = [text[r * (n + 1) + 1 : (r + 1) * (n + 1)] for r in range(n)]
        if not all(d.isdigit() for d in digits):
            return None
        return np.array([int(v) for d in digits for v in d], dtype=np.int64)


BOARDS = {4: Board(2, 2, "abcd"), 6: Board(2, 3, "ghijkl"), 9: Board(3, 3, "ABCDEFGHI")}


class Solver:
    """Depth-first search over the emptiest cell, with one bit a digit."""

    def __init__(self, board: Board) -> None:
        n = board.size
        self.n = n
        self.full = (1 << n) - 1
        self.unit_of = [
            (i // n, i % n, i // n // board.rows * board.rows + i % n // board.columns)
            for i in range(n * n)
        ]

    def solutions(
        self, cells: Cells, most: int, rng: np.random.Generator | None = None
    ) -> list[Cells]:
        """Up to `most` solutions; with `rng` digits are tried in random order."""
        n = self.n
        row, column, box = [0] * n, [0] * n, [0] * n
        grid = [int(v) for v in cells]
        empty = []
        for i, v in enumerate(grid):
            if not v:
                empty.append(i)
                continue
            r, c, b = self.unit_of[i]
            bit = 1 << (v - 1)
            if (row[r] | column[c] | box[b]) & bit:
                return []
            row[r] |= bit
            column[c] |= bit
            box[b] |= bit
        found: list[Cells] = []

        def search() -> None:
            if not empty:
                found.append(np.array(grid, dtype=np.int64))
                return
            best, options, fewest = -1, 0, n + 1
            for k, i in enumerate(empty):
                r, c, b = self.unit_of[i]
                free = self.full & ~(row[r] | column[c] | box[b])
                count = free.bit_count()
                if count < fewest:
                    best, options, fewest = k, free, count
                    if count <= 1:
                        break
            if fewest == 0:
                return
            i = empty[best]
            empty[best] = empty[-1]
            empty.pop()
            r, c, b = self.unit_of[i]
            digits = [d for d in range(n) if options >> d & 1]
            if rng is not None and len(digits) > 1:
                rng.shuffle(digits)
            for d in digits:
                bit = 1 << d
                row[r] |= bit
                column[c] |= bit
                box[b] |= bit
                grid[i] = d + 1
                search()
                row[r] ^= bit
                column[c] ^= bit
                box[b] ^= bit
                if len(found) >= most:
                    break
            grid[i] = 0
            empty.append(i)
            empty[best], empty[-1] = empty[-1], empty[best]

        search()
        return found


def random_grids(board: Board, number: int, seed: int) -> Cells:
    """Solved grids [number, size * size]."""
    rng = np.random.default_rng([seed, board.size])
    solver = Solver(board)
    nothing = np.zeros(board.size**2, dtype=np.int64)
    return np.stack([solver.solutions(nothing, 1, rng)[0] for _ in range(number)])


def shuffled(board: Board, grids: Cells, rng: np.random.Generator) -> Cells:
    """Each grid under a random symmetry: digits renamed, rows and columns permuted within their
    bands, bands permuted. All are as likely, so few grids stand for very many."""
    n, count = board.size, len(grids)

    def lines(width: int) -> Cells:
        bands = rng.random((count, n // width)).argsort(1)
        inner = rng.random((count, n // width, width)).argsort(2)
        return (bands[:, :, None] * width + inner).reshape(count, n)

    rows, columns = lines(board.rows), lines(board.columns)
    square = grids.reshape(count, n, n)
    square = np.take_along_axis(square, rows[:, :, None], 1)
    square = np.take_along_axis(square, columns[:, None, :], 2)
    names = rng.random((count, n)).argsort(1) + 1
    return np.take_along_axis(names, square.reshape(count, -1) - 1, 1)


@dataclass(frozen=True)
class Puzzle:
    board: Board
    clues: Cells
    solution: Cells


def puzzle(board: Board, solution: Cells, clues: int, rng: np.random.Generator) -> Puzzle | None:
    """A puzzle with this one solution and `clues` given cells, found by taking cells away at
    random; None if it cannot be thinned so far along this order."""
    solver = Solver(board)
    cells = solution.copy()
    left = len(cells)
    for i in rng.permutation(len(cells)):
        if left == clues:
            break
        kept, cells[i] = cells[i], 0
        if len(solver.solutions(cells, 2)) > 1:
            cells[i] = kept
        else:
            left -= 1
    return Puzzle(board, cells, solution) if left == clues else None


def puzzles(
    size: int,
    clues: int,
    number: int,
    seed: int,
    accept: Callable[[Cells], bool] = lambda _: True,
) -> list[Puzzle]:
    """`number` puzzles with one solution each, a function of the seed; of solved grids only those
    that `accept` says yes to."""
    board = BOARDS[size]
    rng = np.random.default_rng([seed, size, clues])
    solver, nothing = Solver(board), np.zeros(size * size, dtype=np.int64)
    found: list[Puzzle] = []
    while len(found) < number:
        solution = solver.solutions(nothing, 1, rng)[0]
        one = puzzle(board, solution, clues, rng) if accept(solution) else None
        if one is not None:
            found.append(one)
    return found


def read_puzzles(path: Path) -> list[Puzzle]:
    """The puzzles of a public file: CSV with the columns ``Puzzle`` and ``Solution``, the digits of
    a board row by row, 0 where empty. Such puzzles may have more than one solution."""
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    found = []
    for number, row in enumerate(rows, 1):
        clues, solution = row.get("Puzzle") or "", row.get("Solution") or ""
        board = BOARDS.get(math.isqrt(len(clues)))
        if (
            board is None
            or len(clues) != board.size**2
            or len(solution) != len(clues)
            or not (clues + solution).isdecimal()
        ):
            raise InputError(
                f"{path}: row {number} is no board: give the columns Puzzle and Solution with 16, "
                "36 or 81 digits each, 0 where the puzzle is empty"
            )
        given = np.array([int(c) for c in clues], dtype=np.int64)
        filled = np.array([int(c) for c in solution], dtype=np.int64)
        if not is_solved(board, given, filled):
            raise InputError(f"{path}: the solution in row {number} does not solve its puzzle")
        found.append(Puzzle(board, given, filled))
    if not found:
        raise InputError(f"{path}: it holds no puzzles")
    return found


def is_solved(board: Board, clues: Cells, cells: Cells) -> bool:
    """Whether `cells` keep the clues and hold every digit once in each row, column and box. Any
    solution counts, since public puzzles may have several."""
    if bool(((clues > 0) & (clues != cells)).any()):
        return False
    every = list(range(1, board.size + 1))
    return all(sorted(cells[unit].tolist()) == every for unit in board.units())


def judge(one: Puzzle, text: str) -> tuple[bool, float]:
    """Whether a finished text solves the puzzle, and the share of its empty cells that agree with
    the stated solution."""
    cells = one.board.cells(text)
    if cells is None:
        return False, 0.0
    empty = one.clues == 0
    agree = float((cells[empty] == one.solution[empty]).mean())
    return is_solved(one.board, one.clues, cells), agree
