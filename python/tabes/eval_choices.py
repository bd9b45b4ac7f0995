"""What ``tabes eval`` can be told by name. Its help lists these without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The modules of `tabes.evaluation` and the classes of the tasks.
TASKS: Mapping[str, tuple[str, str]] = {
    "gsm8k": ("math_tasks", "Gsm8k"),
    "math500": ("math_tasks", "Math500"),
    "mbpp": ("code_tasks", "Mbpp"),
    "humaneval": ("code_tasks", "HumanEval"),
    "sudoku": ("fill_tasks", "Sudoku"),
    "infill": ("fill_tasks", "Infill"),
}

# Length 256 in 128 steps and blocks of 32: what the paper's tables were made with, as far as its
# baseline rows tell. The other one takes as many steps as there are tokens.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"gen_length": 256, "steps": 128, "block_length": 32},
    "one-a-step": {"gen_length": 256, "steps": 256, "block_length": 32},
}
