"""What a type checker says of the README's first script, and of misspelt arguments."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tabes.generation import GenerateArguments, generate

README = Path(__file__).parents[2] / "README.md"

SCRIPT = """
from typing import Any

import tabes
import torch
from typing_extensions import assert_type

model = tabes.load(tabes.demo_checkpoint())
one = tabes.generate(model, "COc1ccc([MASK])cc1", steps=4)
print(one.texts[0].upper(), one.tokens.tolist())
assert_type(one.texts, list[str])
many = tabes.generate(model, ["CC"] * 4, gen_length=20)
assert_type(many.texts, list[str])
one = many
chat = tabes.generate(model, [{"role": "user", "content": "hi"}], max_new_tokens=4)
assert_type(chat.texts, list[str])
ids = tabes.generate(model, torch.tensor([1, 3, 2]))
assert_type(ids.texts, list[str] | None)
print(tabes.generate(model, [1, 3, 2], policy=tabes.BoE(alpha=0.3)).tokens.tolist())
rows = tabes.generate(model, [[1, 3, 2], [1, 3, 3, 2]])
assert_type(rows.texts, list[str] | None)
print(rows.tokens.tolist(), rows.tokens[0].tolist(), ids.texts[0])  # type: ignore[index]


def describe(output: tabes.GenerateOutput) -> str:
    return str(output.forward_equivalents)


print(describe(one), describe(many), describe(rows))
settings: dict[str, Any] = tabes.make_policy("threshold", tau=0.9).settings()
# Unused if the mistake were not found, which is an error too.
tabes.generate(model, "C[MASK]", stepz=3)  # type: ignore[call-overload]
tabes.generate(model, "C[MASK]", steps="3")  # type: ignore[call-overload]
"""


@pytest.mark.slow
@pytest.mark.case("N13")
def test_mypy_accepts_the_readme_and_refuses_mistakes(tmp_path: Path) -> None:
    snippets = re.findall(r"<!-- tested: python -->\n```python\n(.*?)```", README.read_text(), re.S)
    (tmp_path / "first.py").write_text(snippets[0])
    (tmp_path / "second.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--warn-unused-ignores",
            "first.py",
            "second.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.case("N13")
def test_checkers_see_the_arguments_that_generate_has() -> None:
    takes = {
        name: parameter.annotation
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert takes == {
        name: value.__forward_arg__ for name, value in GenerateArguments.__annotations__.items()
    }
