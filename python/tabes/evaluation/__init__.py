"""Evaluation of checkpoints on public tasks, with exact cost and paired outcomes.

`settings` says how to decode, `tasks` what to ask and how to judge, `runner` brings them together,
`tabes.harness` offers the same decoding to lm-evaluation-harness.
"""

from __future__ import annotations

from tabes.evaluation.runner import Report, evaluate
from tabes.evaluation.settings import PRESETS, Settings
from tabes.evaluation.suite import task_names
from tabes.evaluation.tasks import Prompting

__all__ = ["PRESETS", "Prompting", "Report", "Settings", "evaluate", "task_names"]
