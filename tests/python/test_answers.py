"""Answers in free text: finding them, reading numbers, and telling when two say the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from tabes.evaluation.answers import (
    arithmetic_answer,
    boxed,
    code_blocks,
    code_defining,
    equivalent,
    normalise,
    numbers,
)


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
    ],
)
def test_boxes(text: str, wanted: list[str]) -> None:
    assert boxed(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5", [5]),
        ("-5", [-5]),
        ("\u22125", [-5]),
        ("$1,200.50", [Fraction("1200.5")]),
        (r"\$1{,}200", [1200]),
        (r"12\,000 people", [12000]),
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


SAME = [
    ("5", "5.0"),
    ("$5$", r"\$5"),
    ("50%", r"50\%"),
    (r"\frac12", r"\dfrac{1}{2}"),
    ("1/2", r"\tfrac{1}{2}"),
    ("0.5", r"\frac{1}{2}"),
    (".5", "1/2"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"3\frac{1}{2}", "3.5"),
    ("2/4", "1/2"),
    ("1,234", "1234"),
    (r"1{,}234", r"1\,234"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"2\sqrt{3}", r"2 \sqrt 3"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90°"),
    (r"5\text{ cm}^2", "5"),
    (r"12 \mbox{ inches}", "12"),
    ("x = 7", "7"),
    (r"x \in [1,2]", "[1,2]"),
    (r"\left( 1, \frac12 \right)", "(1, 0.5)"),
    ("1, 2", "1,2.0"),
    (r"\text{Evelyn}", "evelyn"),
    (r"(\text{A})", "(A)"),
    (r"\pi r^{2}", "πr^2"),
    (r"2\pi", r"2 \pi"),
    (r"3 \times 10^{4}", r"3\cdot10^4"),
    ("6.", "6"),
    (r"[-1, \infty)", "[-1,∞)"),
    (r"123_{8}", "123_8"),
    (r"\sqrt x", r"\sqrt{x}"),
    (r"\frac 1 2", "0.5"),
    (r"\text{(C)}", "C"),
    (r"\$18.90", "18.9"),
    (r"10,\!080", "10080"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"(-\infty, 2)\cup(3, \infty)", r"(-\infty,2) \cup (3,\infty)"),
    (r"\text{June 20}", "June 20"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\{1 \pm \sqrt5, -2\}", r"\left\{1\pm\sqrt{5},-2\right\}"),
]
DIFFERENT = [
    ("5", "6"),
    ("5", "-5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2,3)"),
    ("[1,2)", "[1,2]"),
    ("x+1", "1+x"),
    (r"\frac{1}{3}", "0.333"),
    ("12", "1,2"),
    ("1/2", "1/3"),
    ("", "0"),
    (r"\sqrt{2}", r"\sqrt{3}"),
    (r"\frac{1}{0}", "0"),
    ("even", "odd"),
    ("(1)+(2)", "(1)+(3)"),
    ("10^{12}", "10^{1}2"),
    (r"\pi r", r"\pi s"),
    ("C", "D"),
    (r"5\text{ cm}", "6"),
    ("1,234", "1,2340"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert equivalent(one, other), (normalise(one), normalise(other))
    assert equivalent(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one: str, other: str) -> None:
    assert not equivalent(one, other), (normalise(one), normalise(other))
    assert not equivalent(other, one)


def test_code_blocks() -> None:
    text = "First:\n```python\nx = 1\n```\nthen\n```\ny = 2\n```\n```py\ncut off"
    assert code_blocks(text) == ["x = 1\n", "y = 2\n", "cut off"]
    assert code_blocks("no fence, `inline` only") == []


def test_the_block_that_defines_what_is_asked_for() -> None:
    text = "```python\nf(1)\n```\n```python\nimport re\n\ndef f(x):\n    return x\n```"
    assert code_defining(text, {"f"}).startswith("import re")
    assert code_defining(text, {"g"}) == "f(1)\n"
    assert code_defining("class F:\n    pass", {"F"}) == "class F:\n    pass"
    assert code_defining("```\nclass F: ...\n```", {"F"}) == "class F: ...\n"
