"""GSM8K and MATH500: answers in a box."""

from __future__ import annotations

from decimal import Decimal

from tabes._core import InputError
from tabes.evaluation.answers import arithmetic_answer, last_box, numbers
from tabes.evaluation.data import Data, Row, from_hub, text_field
from tabes.evaluation.equivalence import equivalent
from tabes.evaluation.tasks import Outcome, QuestionTask

_SHAPE = (
    "Work it out step by step. Write your reasoning between <reasoning> and </reasoning>, then the "
    "final answer within \\boxed{} between <answer> and </answer>."
)


class Gsm8k(QuestionTask):
    r"""Grade-school word problems, in the manner of d1: zero-shot, the reply starts within
    ``<reasoning>``, the answer is the first number in a box, else the last one in ``<answer>``.

    Unlike d1, thousands may be separated: it reads ``\boxed{1,200}`` as 1.
    """

    name = "gsm8k"
    fields = (("question",), ("answer",))
    scoring = "d1-style number"
    template = f"Here is a word problem.\n\n{{question}}\n\n{_SHAPE}"
    plain_template = f"Problem: {{question}}\n\n{_SHAPE}\n\n<reasoning>\n"
    prefill = "<reasoning>\n"

    def default_data(self) -> Data:
        return from_hub("openai/gsm8k", "main", "test", self.name)

    def question(self, row: Row, where: str) -> str:
        return text_field(row, ("question",), where)

    def check(self, row: Row, where: str) -> None:
        super().check(row, where)
        gold_number(text_field(row, ("answer",), where), where)

    def judge_text(self, row: Row, where: str, text: str) -> Outcome:
        found = arithmetic_answer(text)
        right = found == gold_number(text_field(row, ("answer",), where), where)
        return Outcome({"accuracy": float(right)}, None if found is None else _written(found))


def gold_number(answer: str, where: str) -> Decimal:
    """The number behind ``####``, or the only one of an answer that is no more than a number."""
    found = numbers(answer.rpartition("####")[2])
    if len(found) != 1:
        raise InputError(f"{where}: the answer {answer[-40:]!r} does not end in '#### NUMBER'")
    return found[0]


def _written(value: Decimal) -> str:
    written = f"{value:f}"  # all digits
    return written.rstrip("0").rstrip(".") if "." in written else written


class Math500(QuestionTask):
    """Competition problems: zero-shot, the last box, compared after normalisation."""

    name = "math500"
    fields = (("problem", "question"), ("answer",))
    scoring = "last box, normalised"
    template = f"Here is a problem of mathematics.\n\n{{question}}\n\n{_SHAPE}"
    plain_template = f"Problem: {{question}}\n\n{_SHAPE}\n\n<reasoning>\n"
    prefill = "<reasoning>\n"

    def default_data(self) -> Data:
        return from_hub("HuggingFaceH4/MATH-500", None, "test", self.name)

    def question(self, row: Row, where: str) -> str:
        return text_field(row, ("problem", "question"), where)

    def judge_text(self, row: Row, where: str, text: str) -> Outcome:
        found = last_box(text)
        if found is None:
            return Outcome({"accuracy": 0.0})
        right = equivalent(found, text_field(row, ("answer",), where))
        return Outcome({"accuracy": float(right)}, found)
