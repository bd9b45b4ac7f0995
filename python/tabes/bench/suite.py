"""Every task, by name."""

from __future__ import annotations

from tabes.bench.chemistry import Infill, Molecules, Reactions, Scaffolds
from tabes.bench.puzzles import Countdown, Sudoku
from tabes.bench.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Sudoku(4, (8,)),
        Sudoku(6, (8, 10, 12)),
        Sudoku(9, (28, 32, 36)),
        Molecules(),
        Scaffolds(),
        Infill(),
        Reactions(),
        Countdown(),
    )
}
