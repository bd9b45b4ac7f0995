"""Runs the README's examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- tested: (\w+) -->\n```\w+\n(.*?)```", README, re.S)


def test_there_are_examples() -> None:
    assert sorted(kind for kind, _ in EXAMPLES) == ["python"] * 4 + ["shell"]


@pytest.mark.parametrize(("kind", "code"), EXAMPLES)
def test_example(kind: str, code: str) -> None:
    if kind == "shell":
        code = code.replace("tabes ", f"{sys.executable} -m tabes ")
    command = ["bash", "-ec", code] if kind == "shell" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_cpp_excerpt_is_of_the_example() -> None:
    """The example itself is built and run by tests/consumer."""
    (excerpt,) = re.findall(r"```cpp\n(.*?)```", README, re.S)
    example = (Path(__file__).parents[2] / "cpp" / "examples" / "embed" / "main.cpp").read_text()
    rest = iter([line.strip() for line in example.splitlines()])
    for line in excerpt.splitlines():
        assert line in rest, f"not in main.cpp, or not behind the line before: {line}"
