"""Where answers stand in free text, and that no text is too much for those who look for them."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tabes.evaluation import code_tasks
from tabes.evaluation.answers import arithmetic_answer, boxes, last_box, numbers
from tabes.evaluation.code_text import code_blocks, code_defining, open_block
from tabes.evaluation.equivalence import equivalent, normalise
from tabes.evaluation.execution import Limits
from tabes.evaluation.math_tasks import gold_number
from tabes.evaluation.stops import cut
from tabes.evaluation.suite import make_task, task_names
from tabes.evaluation.tasks import Outcome, Prompting


def boxed(text: str) -> list[str]:
    return [text[box].strip() for box in boxes(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed{\frac{1}{2}} and \boxed{ x }", [r"\frac{1}{2}", "x"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{a{b{c}}d}", ["a{b{c}}d"]),
        (r"$\boxed 7$", ["7"]),
        (r"\fbox{3}", ["3"]),
        (r"\boxed{cut off \frac{1}{2}", []),
        (r"\boxed{}", [""]),
        ("boxed{3}", []),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}", "5"]),
        (r"\boxed{5 and \boxed{6}", ["6"]),
        (r"} \boxed{7} {", ["7"]),
        (r"\boxed{\\{x}}", [r"\\{x}"]),  # a line break and a brace
        (r"\boxedness 3", []),
        (r"$\boxed 7.$", ["7"]),
        (r"\boxed", []),
    ],
)
def test_boxes(text: str, wanted: list[str]) -> None:
    assert boxed(text) == wanted
    assert last_box(text) == (wanted[-1] if wanted else None)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5", [5]),
        ("-5", [-5]),
        ("\u22125", [-5]),
        ("$1,200.50", [Fraction("1200.5")]),
        (r"\$1{,}200", [1200]),
        (r"12\,000 people", [12000]),
        (r"10,\!080 and 3\,4", [10080, 3, 4]),
        ("3,4", [3, 4]),
        ("1,2345", [1, 2345]),
        ("5-6 days", [5, 6]),
        ("x=-3, y = - 4", [-3, -4]),
        (".5 and 50%", [Fraction(1, 2), 50]),
        ("10.", [10]),
        ("1,234,567", [1234567]),
        ("none at all - really", []),
    ],
)
def test_numbers(text: str, wanted: list[int]) -> None:
    assert numbers(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"3+4=7</reasoning><answer>\boxed{7}</answer>", 7),
        (r"\boxed{...} then \boxed{8 apples} or \boxed{9}", 8),
        (r"\boxed{\$1,200}", 1200),
        ("<answer>12 plus 3 is 15</answer>", 15),
        (r"\boxed{many}<answer>4</answer>", 4),
        ("<answer>no number</answer>", None),
        ("<answer>4", None),  # cut off
        ("the answer is 4", None),
        (r"\boxed{-2.50}", Fraction(-5, 2)),
        ("", None),
    ],
)
def test_arithmetic_answer(text: str, wanted: int | None) -> None:
    assert arithmetic_answer(text) == wanted


def test_code_blocks() -> None:
    text = "First:\n```python\nx = 1\n```\nthen\n```\ny = 2\n```\n```py\ncut off"
    assert code_blocks(text) == ["x = 1\n", "y = 2\n", "cut off"]
    assert code_blocks("no fence, `inline` only") == []
    assert code_blocks("") == []


ADD = "def add(a, b):\n    return a + b\n"
NESTED = 'def add(a, b):\n    """So:\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n'


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (f"```python\n{ADD}```", [ADD]),
        (f"```python\n{ADD}```\n", [ADD]),
        (f"```Python 3\n{ADD}```  \nDone.", [ADD]),
        (f"``` py\n{ADD}```", [ADD]),
        (f"~~~python\n{ADD}~~~\nDone.", [ADD]),
        (f"~~~\n{ADD}```\n~~~", [ADD + "```\n"]),
        (f"````python\n{ADD}```\n````", [ADD + "```\n"]),
        (f"```\n{ADD}`````", [ADD]),
        (f"```python\n{NESTED}```\nDone.", [NESTED]),
        (f"1. So:\n   ```python\n   {ADD[:15]}   {ADD[15:]}   ```\nDone.", [ADD]),
        (f"- ```python\n  {ADD[:15]}  {ADD[15:]}  ```\nDone.", [ADD]),
        (f"12) ```python\n    {ADD[:15]}    {ADD[15:]}    ```\n", [ADD]),
        ("```python\nx = 1```", ["x = 1\n"]),
        ("```python\nx = 1``` and so on", ["x = 1``` and so on"]),
        ("~~~\nx = 1~~~\n", ["x = 1~~~\n"]),
        ("```python\nx = 1\r\n```\r\n", ["x = 1\r\n"]),
        ("say ```python\nx = 1", []),
        ("```python x = 1```\nmore", []),
        ("```", [""]),
        ("```python", [""]),
        ("x\u2028```\ny", []),  # no line ends there for Markdown
    ],
)
@pytest.mark.case("F16")
def test_fences(text: str, blocks: list[str]) -> None:
    assert code_blocks(text) == blocks


@pytest.mark.case("F16")
def test_a_block_that_is_open_at_the_end() -> None:
    assert open_block("```python\n") == "```python\n"
    assert open_block("Sure:\n```python\ndef add(a, b):\n") == "```python\ndef add(a, b):\n"
    assert open_block("```\nx\n```\n~~~") == "~~~"
    for closed in ("", "<reasoning>\n", "```\nx\n```", "```\nx```\n", "`x`"):
        assert open_block(closed) == ""


def test_the_block_that_defines_what_is_asked_for() -> None:
    text = "```python\nf(1)\n```\n```python\nimport re\n\ndef f(x):\n    return x\n```"
    assert code_defining(text, {"f"}).startswith("import re")
    assert code_defining(text, {"g"}) == "f(1)\n"
    assert code_defining("class F:\n    pass", {"F"}) == "class F:\n    pass"
    assert code_defining("```\nclass F: ...\n```", {"F"}) == "class F: ...\n"
    assert code_defining("```\nasync def f(): ...\n```", {"f"}) == "async def f(): ...\n"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        # A fence that nobody saw open: what it closes defines the function.
        (f"{ADD}```\nThis adds two numbers.", ADD),
        (f"{ADD}```", ADD),
        (f"{ADD}```python", ADD),
        (f"{ADD}```\nIt is used so:\n```python\nadd(1, 2)\n```", ADD),
        (f"First a helper:\n```\nx = 1\n```\nthen\n```\n{ADD}```", ADD),
        (f"Text first.\n```\n```\n```\n{ADD}```", ADD),
        (ADD, ADD),
        (f"{ADD[:-1]}```\nThis adds two numbers.", ADD),  # behind the last line
        (f"{ADD[:-1]} ```", ADD),
        (f"```bash\npip install x\n```\n{ADD}", "pip install x\n"),
        (f"# Write a fence ```\n{ADD}", f"# Write a fence ```\n{ADD}"),
        ("I cannot.", "I cannot."),
    ],
)
@pytest.mark.case("F16")
def test_programs(reply: str, program: str) -> None:
    assert code_defining(reply, {"add"}) == program


# No text is too much.

# Pieces of what these parsers look for, so that arbitrary texts of them reach every branch.
PIECES = st.sampled_from(
    re.findall(
        r"\S+",
        r"""\boxed{ \boxed \fbox{ { } \{ \} <answer> </answer> #### \frac{ \frac \dfrac12 \sqrt3
        \text{ \text{ cm} \mathrm{cm}^2 ^\circ ° % \% $ \$ { , } {,} ( ) [ ] , . / 1/2 0/0 1/0 x=
        \in \, \! \; ~ - 7 007 12,345 1{,}000 .5 5. ` ``` ~~~ ```python class add( \\ \pi π ∞
        \left( \right) ٣ ²
        """,
    )
) | st.sampled_from(
    [" ", "\n", "\t", "\0", "\ud800", "\u2212", "\uff15", "\u2028", "1 1/2", "async def add"]
)
NINES = st.sampled_from([309, 4301]).map(lambda n: "9" * n)
TEXTS = st.text() | st.lists(PIECES | NINES, max_size=30).map("".join)


@given(TEXTS, TEXTS)
@settings(max_examples=150, deadline=None)
@pytest.mark.case("F05")
def test_parsers_take_any_text(text: str, other: str) -> None:
    assert all(isinstance(number, Decimal) for number in numbers(text))
    assert isinstance(arithmetic_answer(text), (Decimal, type(None)))
    assert all(isinstance(box, str) for box in boxed(text))
    assert equivalent(text, text) is True
    assert equivalent(text, other) is equivalent(other, text)
    assert isinstance(normalise(text), str)
    blocks = code_blocks(text)
    assert code_defining(text, {"add"}) in {*blocks, text, *_before(text)}
    assert text.endswith(open_block(text))
    assert text.startswith(cut(text, [other, "\n```"]))
    assert code_tasks.called([text, other]).isdisjoint({"print"})


def _before(text: str) -> list[str]:
    """Every beginning of a text that ends before a line."""
    lines = text.split("\n")
    return ["\n".join(lines[:n]) + "\n" for n in range(1, len(lines))] + [""]


ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "?", "answer": "#### 5"},
    "math500": {"problem": "?", "answer": r"\frac{1}{2}"},
    "mbpp": {"text": "?", "test_list": ["assert add(1, 2) == 3"]},
    "humaneval": {"prompt": "def add(a, b):\n", "entry_point": "add", "test": ""},
    "sudoku": {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
    "infill": {"prompt": "[MASK]", "answer": "C"},
}


class AnyText:
    """A model and a tokenizer whose tokens say what a test wants."""

    path = None
    info = SimpleNamespace(mask_token_id=0)
    backend = SimpleNamespace(model=None)
    chat_template = "is there"

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokenizer = self

    def encode(self, text: str) -> list[int]:
        return [0] * 40

    def decode(self, ids: Any, filled: Any = None) -> str:
        return self.text

    def piece(self, token: int) -> str:
        return self.text

    def render_chat(self, messages: Any) -> str:
        return ""

    def encode_rendered(self, text: str, gen_length: int | None) -> Any:
        return SimpleNamespace(ids=[1] * len(text), start=len(text))


def graded(task: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """The outcome of a reply, without running any program."""
    monkeypatch.setattr(code_tasks, "run_program", lambda program, limits: "SyntaxError")
    model: Any = AnyText(text)
    return make_task(task, Prompting(), Limits()).judge(model, ROWS[task], "row", [1] * 40, text)


@pytest.mark.parametrize("task", task_names())
@pytest.mark.case("F05")
def test_graders_take_any_reply(task: str) -> None:
    @given(TEXTS)
    @settings(max_examples=60, deadline=None)
    def grade(text: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            outcome = graded(task, text, patch)
        assert all(type(v) is float and 0 <= v <= 1 for v in outcome.metrics.values())
        assert isinstance(outcome.answer, (str, type(None)))

    grade()


N = 200_000
DIGITS = 10**6
LONG = {
    "digits": "9" * DIGITS,
    "a box of digits": r"\boxed{" + "9" * DIGITS + ".5}",
    "digits in groups": r"\boxed{" + "999," * (N // 4) + "9999}",
    "digits in answer tags": "<answer>" + "9" * DIGITS + "</answer>",
    "a fraction": r"\boxed{\frac{" + "9" * DIGITS + "}{" + "7" * DIGITS + "}}",
    "a quotient": r"\boxed{" + "9" * N + "/" + "7" * N + "}",
    "a mixed number": r"\boxed{1 " + "7" * N + "/" + "9" * N + "}",
    "many numbers": r"\boxed{" + "1 " * (N // 2) + "}",
    "open boxes": r"\boxed{" * (N // 7),
    "boxes in boxes": r"\boxed{" * (N // 8) + "}" * (N // 8),
    "open answers": "<answer>" * (N // 8),
    "brackets": r"\boxed{" + "(" * (N // 2) + ")" * (N // 2) + "}",
    "brackets, then a number": r"\boxed{" + "(" * (N // 2) + "1" + ")" * (N // 2) + "}",
    "a list": r"\boxed{" + "1," * (N // 2) + "}",
    "open texts": r"\boxed{1" + r"\text{a" * (N // 7) + "}",
    "texts": r"\boxed{1" + r"\text{a}" * (N // 8) + "}",
    "spaces": r"\boxed{1" + " " * N + "x}",
    "words": r"\boxed{1 " + "cm " * (N // 3) + "x}",
    "fractions": r"\boxed{" + r"\frac1" * (N // 6) + "}",
    "powers": r"\boxed{8\text{cm}" + "^2" * (N // 2) + "}",
    "minus": r"\boxed{" + "-" * N + "8}",
    "dollars": "$" * N,
    "fences": "```" * (N // 3),
    "fences in lines": "```\n" * (N // 4),
    "a long line of code": "```\n" + "x" * N + "```",
    "indented": "```\n" + " " * N + "```",
    "blanks behind a digit": "1" + " " * N + "1/2",
    "fences behind lines": "def add(): ```\n" * (N // 15),
    "an item": "- " * (N // 2) + "```",
    "definitions": "def " * (N // 4),
    "async": "async" + " " * N,
    "line ends": "\n" * N,
    "backslashes": "\\" * N,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
@pytest.mark.case("F05")
def test_long_replies_take_no_longer(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.process_time()
    for task in ("gsm8k", "math500", "mbpp", "humaneval", "infill"):
        assert set(graded(task, text, monkeypatch).metrics.values()) == {0.0}
    assert time.process_time() - start < 15  # about 1 s; what grows as the square takes hours


@pytest.mark.case("F05")
def test_long_numbers_have_their_value() -> None:
    digits = "9" * 5000
    assert numbers(digits + ".50") == [Decimal(digits + ".5")]
    assert arithmetic_answer(rf"\boxed{{{digits}.5}}") != 5
    assert gold_number(f"#### {digits}", "row") == int("9" * 4000) * 10**1000 + int("9" * 1000)
    assert equivalent("0.5" + "0" * 5000, r"\frac12")
    assert equivalent("0" * 5000 + "7", "7")
    assert not equivalent("0.5" + "0" * 5000 + "1", r"\frac12")
    assert not equivalent(rf"\frac{{{digits}}}{{{digits}}}", "1")  # not worked out, but told apart
    assert equivalent(rf"\frac{{{digits}}}{{7}}", f"{digits}/7")
