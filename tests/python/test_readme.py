"""Runs the README's examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- tested: (\w+) -->\n```\w+\n(.*?)```", README, re.S)


def test_there_are_examples() -> None:
    assert sorted(kind for kind, _ in EXAMPLES) == ["python", "python", "python", "shell"]


@pytest.mark.parametrize(("kind", "code"), EXAMPLES)
def test_example(kind: str, code: str) -> None:
    if kind == "shell":
        code = code.replace("tabes ", f"{sys.executable} -m tabes ")
    command = ["bash", "-ec", code] if kind == "shell" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
