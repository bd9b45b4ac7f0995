"""The tasks by name."""

from __future__ import annotations

from importlib import import_module

from tabes.errors import InputError
from tabes.eval_choices import TASKS
from tabes.evaluation.execution import Limits
from tabes.evaluation.tasks import Prompting, Task


def task_names() -> list[str]:
    """The names that `make_task` knows."""
    return list(TASKS)


def make_task(name: str, prompting: Prompting, limits: Limits) -> Task:
    """Raises InputError for an unknown name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}: choose from {', '.join(TASKS)}")
    module, kind = TASKS[name]
    task: Task = getattr(import_module(f"tabes.evaluation.{module}"), kind)(prompting, limits)
    return task
