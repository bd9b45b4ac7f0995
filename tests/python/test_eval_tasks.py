"""Tasks asked and judged end to end, with a model that replies what the test wants."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tabes
from scripted import scripted_model
from tabes.evaluation import Prompting, Settings, evaluate
from tabes.evaluation.code_tasks import called
from tabes.evaluation.data import made
from tabes.evaluation.execution import PASSED, Limits, run_program
from tabes.evaluation.math_tasks import gold_number
from tabes.evaluation.stops import cut
from tabes.evaluation.suite import make_task
from tabes.tasks.sudoku import puzzles

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = Settings(gen_length=96, steps=3, block_length=None)


def run(
    out: Path,
    model: tabes.Model,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    settings: Settings = SHORT,
    **options: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task's part of the results and the outcomes."""
    options.setdefault("batch_size", len(rows))
    report = evaluate(model, [task], settings, out, data={task: made(rows, "test")}, **options)
    assert json.loads(report.results.read_text()) == report.values
    outcomes = [json.loads(line) for line in report.outcomes.read_text().splitlines()]
    return report.values["tasks"][task], outcomes


def test_gsm8k(tmp_path: Path) -> None:
    rows = [
        {"question": "Ann has 3 and buys 4.", "answer": "3+4=7\n#### 7"},
        {"question": "Bob earns a lot.", "answer": "#### 1,200"},
        {"question": "Cid counts.", "answer": "#### 5"},
        {"question": "Dan says nothing.", "answer": "#### 5"},
    ]
    model = scripted_model(
        {
            "Ann": "<reasoning>\n3 + 4\n</reasoning>\n<answer>\\boxed{7}</answer>",
            "Bob": "<reasoning>\n</reasoning><answer>$1200.00</answer>",
            "Cid": "<reasoning>\n\\boxed{6}, no, \\boxed{5}",
            "Dan": "<reasoning>\n",
        }
    )
    result, outcomes = run(tmp_path, model, "gsm8k", rows)
    assert [o["metrics"]["accuracy"] for o in outcomes] == [1, 1, 0, 0]
    assert [o["answer"] for o in outcomes] == ["7", "1200", "6", None]
    assert outcomes[0]["text"].startswith("3 + 4\n</reasoning>")  # the prefill is not the reply's
    assert result["metrics"]["accuracy"]["mean"] == 0.5
    assert result["protocol"] == "gsm8k, d1-style number, 0-shot, chat"
    assert result["cost"]["forward_equivalents"] == 3.0


def test_gold_numbers() -> None:
    assert gold_number("5*2=10\n#### 10", "x") == 10
    assert gold_number("1,000", "x") == 1000
    for wrong in ("ten", "#### ", "3 or 4"):
        with pytest.raises(tabes.InputError, match=r"row 7: the answer .* '#### NUMBER'"):
            gold_number(wrong, "row 7")


def test_math500_without_a_chat_template(tmp_path: Path) -> None:
    rows = [
        {"problem": "Half of one?", "answer": r"\frac{1}{2}", "unique_id": "test/a.json"},
        {"problem": "A point?", "answer": r"\left(1, 2\right)"},
    ]
    replies = {"Half": r"\boxed{3}, rather \boxed{0.5}", "A point": r"\boxed{(2,1)}"}
    result, outcomes = run(
        tmp_path, scripted_model(replies, marker="<reasoning>\n"), "math500", rows
    )
    assert [o["metrics"]["accuracy"] for o in outcomes] == [1, 0]
    assert [o["key"] for o in outcomes] == ["0:test/a.json", "1"]
    assert result["protocol"].endswith("0-shot, plain")


MBPP = [
    {
        "task_id": 11,
        "text": "Write a function to double a number.",
        "test_list": ["assert double(2) == 4", "assert set([double(1)]) == {2}"],
        "test_setup_code": "",
    },
    {
        "task_id": 12,
        "prompt": "Write a function to add one.",
        "test_list": ["assert inc(2) == 3"],
        "test_imports": ["import math"],
    },
]


def test_mbpp(tmp_path: Path) -> None:
    model = scripted_model(
        {
            "double": "```python\ndef double(x):\n    return 2 * x\n```",
            "add one": "```python\ndef inc(x):\n    return x + math.pi\n```",
        }
    )
    result, outcomes = run(tmp_path, model, "mbpp", MBPP, allow_code_execution=True)
    assert [o["metrics"]["pass@1"] for o in outcomes] == [1, 0]
    assert [o["note"] for o in outcomes] == ["passed", "AssertionError"]
    assert result["metrics"]["pass@1"]["mean"] == 0.5


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef area(r: float) -> float:\n    """Of a circle."""\n',
    "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-4\n",
}


@pytest.mark.parametrize(
    ("marker", "reply", "passed"),
    [
        (None, "```python\ndef area(r):\n    return math.pi * r * r\n```", 1),
        (None, "Sure!\n```python\ndef area(r):\n    return 3 * r * r\n```", 0),
        ('circle."""\n', "    return math.pi * r**2\n\nprint(area(undefined))", 1),
        ('circle."""\n', "    return math.pi * r**2 +", 0),
    ],
)
def test_humaneval(tmp_path: Path, marker: str | None, reply: str, passed: int) -> None:
    model = scripted_model({"area": reply}, marker=marker)
    _, outcomes = run(tmp_path, model, "humaneval", [HUMANEVAL], allow_code_execution=True)
    assert outcomes[0]["metrics"]["pass@1"] == passed, outcomes[0]["note"]


BODY = "def area(r):\n    return math.pi * r * r\n"


@pytest.mark.parametrize(
    ("prefill", "reply", "passed"),
    [
        ("```python\n", f"{BODY}```\nThis gives the area.", 1),
        ("```python\n", f"{BODY}```", 1),
        ("```python\n", BODY, 1),
        ("```python\ndef area(r):\n", "    return math.pi * r * r\n```\nDone.", 1),
        ("Sure:\n~~~\n", f"{BODY}~~~\n```\nnot code", 1),
        ("````\n", f'{BODY}"""\n```\n"""\n````\nThis gives the area.', 1),
        ("```python\n", f"def area(r):\n    return 3\n```\nBetter:\n```\n{BODY}```", 0),
        ("", f"{BODY}```\nThis gives the area.", 1),
        ("Here:\n", f"```python\n{BODY}```\nThis gives the area.", 1),
    ],
)
@pytest.mark.case("F16")
def test_code_behind_a_prefill(tmp_path: Path, prefill: str, reply: str, passed: int) -> None:
    model = scripted_model({"area": prefill + reply})
    result, outcomes = run(
        tmp_path,
        model,
        "humaneval",
        [HUMANEVAL],
        allow_code_execution=True,
        prompting=Prompting(prefill=prefill),
    )
    assert outcomes[0]["metrics"]["pass@1"] == passed, outcomes[0]
    assert outcomes[0]["text"] == reply
    assert result["errors"] == 0


@pytest.mark.case("F16")
def test_code_behind_a_template_that_ends_in_a_block(tmp_path: Path) -> None:
    rows = [MBPP[0]]
    reply = "def double(x):\n    return 2 * x\n```\nThis doubles."
    for marker, chat in (("```py\n", False), (None, True)):
        model = scripted_model({"double": reply if marker else "```py\n" + reply}, marker=marker)
        prompting = (
            Prompting(prefill="```py\n") if chat else Prompting(template="{question}\n```py\n")
        )
        _, outcomes = run(
            tmp_path / str(chat),
            model,
            "mbpp",
            rows,
            allow_code_execution=True,
            prompting=prompting,
        )
        assert outcomes[0]["metrics"]["pass@1"] == 1, outcomes[0]


@pytest.mark.parametrize("task", ["mbpp", "humaneval"])
def test_no_code_is_run_without_leave(tmp_path: Path, task: str) -> None:
    with pytest.raises(tabes.InputError, match="--allow-code-execution"):
        run(tmp_path, scripted_model({"": ""}), task, [HUMANEVAL])


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("print('x' * 10**6)", PASSED),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "ended early"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(20 << 20))", "OSError"),
        ("input()", "EOFError"),
        ("import scripted", "ModuleNotFoundError"),  # the tests' folder is not searched
    ],
)
def test_limits_of_programs(program: str, verdict: str) -> None:
    assert run_program(program, Limits(10.0, 256)) == verdict


def test_programs_and_what_they_start_are_stopped(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(1.5); open({str(alive)!r}, 'w')"
    program = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "while True: pass"
    )
    start = time.monotonic()
    assert run_program(program, Limits(0.5, 256)) == "timed out"
    assert time.monotonic() - start < 1.5
    time.sleep(max(0.0, start + 2.2 - time.monotonic()))
    assert not alive.exists()
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(tabes.InputError, match="above 0"):
            Limits(wrong)


def test_functions_that_tests_call() -> None:
    assert called(["assert set(f(1)) == {g(2)}", "not python ("]) == {"f", "g"}


SUDOKU = [
    {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
    {"Puzzle": "0140432014020000", "Solution": "2143432114323214"},
]


@pytest.mark.parametrize("chat", [True, False])
def test_sudoku_for_language_models(tmp_path: Path, chat: bool) -> None:
    model = scripted_model(
        {"3102\n2000": "3142\n2431\n4213\n1324", "0140\n4320": "2143\n4321\n14x2\n3211"},
        marker=None if chat else "Solution:\n",
    )
    result, outcomes = run(tmp_path, model, "sudoku", SUDOKU, prompting=Prompting(shots=2))
    assert [o["metrics"]["solved"] for o in outcomes] == [1, 0]
    assert [o["metrics"]["cells"] for o in outcomes] == [1, 6 / 8]
    assert outcomes[1]["answer"] == "2143432114023211"
    assert result["protocol"] == f"sudoku, in place, 2-shot, {'chat' if chat else 'plain'}"


def test_sudoku_counts_any_grid_that_keeps_the_rules(tmp_path: Path) -> None:
    # Four clues of nothing much: the grid of the script is right and not the one of the row.
    row = {"puzzle": "1000000000000000", "solution": "1234341221434321"}
    model = scripted_model({"1000": "1243\n3421\n2134\n4312"})
    _, outcomes = run(tmp_path, model, "sudoku", [row], prompting=Prompting(shots=0))
    assert outcomes[0]["metrics"]["solved"] == 1
    assert outcomes[0]["metrics"]["cells"] < 1


def test_sudoku_as_the_text_of_a_board(tmp_path: Path, tiny_llada: Callable[..., Any]) -> None:
    """A checkpoint of single characters: random weights, but clues stay and cells are filled."""
    plain = [*"123456789", *"abcd", *"ghijkl", *"ABCDEFGHI"]
    folder, _ = tiny_llada(vocab=5 + len(plain))
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[BOS]", "[EOS]", "[MASK]", "[UNK]", *plain])
    )
    result, outcomes = run(tmp_path / "out", tabes.load(folder), "sudoku", SUDOKU)
    assert result["protocol"] == "sudoku, in place, board text"
    for outcome, row in zip(outcomes, SUDOKU, strict=True):
        assert outcome["text"].startswith("a")
        assert [b for a, b in zip(row["Puzzle"], outcome["answer"], strict=True) if a != "0"] == [
            a for a in row["Puzzle"] if a != "0"
        ]
    tokens = 2 * (2 + 20)  # rows are four cells behind their letter
    assert result["cost"]["canvas_tokens"] == tokens


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"Puzzle": "31", "Solution": "31"}, "both need 16, 36 or 81 digits"),
        ({"Puzzle": "9102200002100320", "Solution": "3142243142131324"}, "digits up to 4"),
        ({"Puzzle": "3102200002100320", "Solution": "3142243142131320"}, "digits up to 4"),
        ({"Puzzle": "1102200002100320", "Solution": "3142243142131324"}, "differs from the puzzle"),
        ({"Puzzle": "3" + "0" * 15, "Solution": "3" * 16}, "breaks the rules"),
        ({"Puzzle": "3102200002100320"}, "needs Solution or solution"),
    ],
)
def test_sudoku_rows_are_checked(tmp_path: Path, row: dict[str, str], message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        run(tmp_path, scripted_model({"": ""}), "sudoku", [row])


def test_sudoku_data_of_its_own() -> None:
    task = make_task("sudoku", Prompting(), Limits())
    data = task.default_data()
    assert len(data.rows) == 500
    assert data.sha256 == task.default_data().sha256
    for row in data.rows:
        task.check(row, "row")
        assert row["Puzzle"].count("0") == 8
    assert puzzles(4, 8, 1, 0)[0].clues.tolist() == [int(c) for c in data.rows[0]["Puzzle"]]


def test_prompts_may_be_replaced_and_say_so(tmp_path: Path) -> None:
    rows = [{"question": "Six?", "answer": "6"}]
    model = scripted_model({"Q: Six?": "A: \\boxed{6}"})
    prompting = Prompting(template="Q: {question}", prefill="A: ")
    result, outcomes = run(tmp_path, model, "gsm8k", rows, prompting=prompting)
    assert outcomes[0]["text"] == "\\boxed{6}"
    assert result["metrics"]["accuracy"]["mean"] == 1
    assert "template" in result["protocol"]
    assert "prefill" in result["protocol"]
    with pytest.raises(tabes.InputError, match=r"holds no \{question\}"):
        Prompting(template="Q:")
    with pytest.raises(tabes.InputError, match="without worked examples"):
        run(tmp_path, model, "gsm8k", rows, prompting=Prompting(shots=3))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("written", ["[MASK]", "<mask>"])
@pytest.mark.case("F02")
def test_masks_in_questions_are_data(tmp_path: Path, written: str, chat: bool) -> None:
    """In the question, the template and the prefill; the reply gets all steps."""
    rows = [{"question": f"What is {written}?", "answer": "6"}]
    end = f"A {written}: "
    model = scripted_model(
        {f"Q: What is {written}? {written}": f"{'.' * len(end) if chat else ''}\\boxed{{6}}"},
        marker=None if chat else end,
    )
    prompting = Prompting(template=f"Q: {{question}} {written}", prefill=end)
    result, outcomes = run(tmp_path, model, "gsm8k", rows, prompting=prompting)
    assert outcomes[0]["text"] == "\\boxed{6}"
    assert result["cost"]["forward_equivalents"] == SHORT.steps
    task = make_task("gsm8k", prompting, Limits())
    canvas = task.canvas(model, rows[0], "row", 12)
    mask = model.info.mask_token_id
    assert [i - canvas.start for i, t in enumerate(canvas.tokens) if t == mask] == [*range(12)]


@pytest.mark.case("F02")
def test_masks_in_a_template_of_sudoku_are_no_cells(tmp_path: Path) -> None:
    model = scripted_model({"3102\n2000": "3142\n2431\n4213\n1324"})
    prompting = Prompting(template="Fill in every [MASK], <mask>:\n{question}", shots=1)
    _, outcomes = run(tmp_path, model, "sudoku", SUDOKU[:1], prompting=prompting)
    assert outcomes[0]["metrics"] == {"solved": 1, "cells": 1}
    assert outcomes[0]["error"] is None


@pytest.mark.case("F02", "N03")
def test_masks_of_infilling_are_masks(tmp_path: Path) -> None:
    """And what the model writes there counts, special tokens too."""
    rows = [{"prompt": "It:[MASK]<mask>[MASK]", "answer": "It:abc"}]
    for reply, exact in (("abc", 1), ("ab", 0), ("a<user>b", 0), ("ab<user>", 0)):
        model = scripted_model({"It": reply}, marker=":")
        answer = {"answer": "It:ab"} if "<" in reply else {}
        _, outcomes = run(tmp_path / reply, model, "infill", [rows[0] | answer])
        assert outcomes[0]["metrics"]["exact"] == exact, reply


def test_stop_strings() -> None:
    assert cut("a\nb\nc", ["\nc", "\nb"]) == "a"
    assert cut("abc", ["", "x"]) == "abc"
    assert cut("abc", []) == "abc"
    assert cut("stop at once", ["stop"]) == ""
