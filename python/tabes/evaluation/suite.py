"""The tasks by name."""

from __future__ import annotations

from tabes._core import InputError
from tabes.evaluation.code_tasks import HumanEval, Mbpp
from tabes.evaluation.execution import Limits
from tabes.evaluation.fill_tasks import Infill, Sudoku
from tabes.evaluation.math_tasks import Gsm8k, Math500
from tabes.evaluation.tasks import Prompting, Task

_KINDS: tuple[type[Task], ...] = (Gsm8k, Math500, Mbpp, HumanEval, Sudoku, Infill)


def task_names() -> list[str]:
    """The names that `make_task` knows."""
    return [kind.name for kind in _KINDS]


def make_task(name: str, prompting: Prompting, limits: Limits) -> Task:
    """Raises InputError for an unknown name."""
    for kind in _KINDS:
        if kind.name == name:
            return kind(prompting, limits)
    raise InputError(f"there is no task {name!r}: choose from {', '.join(task_names())}")
