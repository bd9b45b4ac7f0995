"""MBPP and HumanEval: programs that are judged by running their tests."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence

from tabes._core import InputError
from tabes.evaluation.code_text import code_blocks, code_defining, open_block
from tabes.evaluation.data import Data, Row, from_hub, text_field
from tabes.evaluation.execution import PASSED, run_program
from tabes.evaluation.tasks import PLACE, Outcome, QuestionTask, uses_chat
from tabes.model import Model

# Where a text that goes on with a program has left the function that was asked for.
_NEXT_THING = ("\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\nassert ", "\n```", "\n# Test")


class _CodeTask(QuestionTask):
    metrics = ("pass@1",)
    runs_code = True

    def lead(self, model: Model) -> str:
        """The code block that is open where the reply starts: the reply is its continuation."""
        chat = uses_chat(model, self.prompting)
        around = "" if chat else self.wording(model).replace(PLACE, "")
        return open_block(around + self.beginning(model))

    def run(self, program: str, answer: str) -> Outcome:
        verdict = run_program(program, self.limits)
        return Outcome({"pass@1": float(verdict == PASSED)}, answer, verdict)


class Mbpp(_CodeTask):
    """Short programs from a sentence and three tests that the prompt shows: zero-shot."""

    name = "mbpp"
    fields = (("text", "prompt"), ("test_list",))
    scoring = "all tests"
    template = "{question}\n\nAnswer with one Python code block and nothing else."
    plain_template = '"""\n{question}\n"""\n'
    plain_until = (*_NEXT_THING, '\n"""')

    def default_data(self) -> Data:
        return from_hub("google-research-datasets/mbpp", "full", "test", self.name)

    def question(self, row: Row, where: str) -> str:
        wanted = text_field(row, ("text", "prompt"), where)
        tests = "\n".join(_texts(row, "test_list", where))
        return f"{wanted}\nThe program must pass these tests:\n{tests}"

    def judge_text(self, row: Row, where: str, text: str) -> Outcome:
        tests = _texts(row, "test_list", where)
        setup = [str(row.get("test_setup_code") or "")]
        if row.get("test_imports"):
            setup += _texts(row, "test_imports", where)
        code = code_defining(text, called(tests))
        return self.run("\n".join([*setup, code, *tests]), code)


class HumanEval(_CodeTask):
    """Functions from their signature and docstring: zero-shot.

    A reply that defines the function replaces the stub; one without a code block goes on behind it.
    """

    name = "humaneval"
    fields = (("prompt",), ("test",), ("entry_point",))
    scoring = "all tests"
    template = (
        "Complete this Python function.\n\n```python\n{question}\n```\n\n"
        "Answer with one Python code block that holds the whole function and nothing else."
    )
    plain_template = "{question}"
    plain_until = _NEXT_THING

    def default_data(self) -> Data:
        return from_hub("openai/openai_humaneval", None, "test", self.name)

    def question(self, row: Row, where: str) -> str:
        return text_field(row, ("prompt",), where)

    def judge_text(self, row: Row, where: str, text: str) -> Outcome:
        prompt = text_field(row, ("prompt",), where)
        entry = text_field(row, ("entry_point",), where)
        code = code_defining(text, {entry})
        # The prompt brings the imports and helpers; with its docstring the stub is a function.
        joint = "\n" if code_blocks(text) or f"def {entry}" in code else ""
        test = text_field(row, ("test",), where)
        return self.run(f"{prompt}{joint}{code}\n{test}\ncheck({entry})\n", code)


def _texts(row: Row, name: str, where: str) -> list[str]:
    value = row.get(name)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{where}: {name} must be a list of lines of Python")
    return [str(line) for line in value]


def called(tests: Sequence[str]) -> set[str]:
    """The functions that tests call by a plain name, built-in ones left out."""
    names: set[str] = set()
    for test in tests:
        try:
            tree = ast.parse(test)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # what the parser cannot take: the test itself will fail and say so
        names |= {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
    return names - set(vars(builtins))
