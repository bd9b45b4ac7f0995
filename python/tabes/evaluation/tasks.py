"""The tasks: what a model is asked, and when its reply is right.

Prompts are worded by this project; what a protocol fixes is where the answer is looked for and how
it is compared. Every score carries its protocol's name, and scores of different protocols are not
comparable.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tabes._core import InputError
from tabes.evaluation.data import Data, Row
from tabes.evaluation.execution import Limits
from tabes.evaluation.stops import cut
from tabes.model import Model
from tabes.text import Tokenizer

PLACE = "{question}"


@dataclass(frozen=True)
class Prompting:
    """How questions are put, where it differs from the task's own way.

    Attributes:
        chat: whether to use the checkpoint's chat template; None: if it has one.
        template: text with ``{question}`` in place of the task's own.
        prefill: what the reply starts with; None: as the task has it.
        shots: worked examples before the question, for tasks that have them; None: as the task.
    """

    chat: bool | None = None
    template: str | None = None
    prefill: str | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.template is not None and PLACE not in self.template:
            raise InputError(f"the template holds no {PLACE}, where the question is put")
        if self.shots is not None and self.shots < 0:
            raise InputError(f"shots={self.shots}: it must be at least 0")


@dataclass(frozen=True)
class Canvas:
    """Tokens with masks, and the position where the reply starts (0: masks are filled in place)."""

    tokens: list[int]
    start: int


@dataclass(frozen=True)
class Outcome:
    """One judged reply: its metrics (0 to 1, the main one first) and what it was read as.

    `error` says why it could not be judged; it then counts as wrong.
    """

    metrics: dict[str, float]
    answer: str | None = None
    note: str | None = None
    error: str | None = None


class Task(ABC):
    """One task. Rows are dicts; `where` names a row in messages.

    Attributes:
        name: as on the command line.
        metrics: names, the main one first.
        runs_code: whether judging runs what the model wrote.
        fields: alternatives of the fields that every row needs.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    runs_code: ClassVar[bool] = False
    fields: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init__(self, prompting: Prompting, limits: Limits) -> None:
        self.prompting = prompting
        self.limits = limits
        if prompting.shots and not self.has_shots():
            raise InputError(f"{self.name} is asked without worked examples: leave out shots")

    def has_shots(self) -> bool:
        return False

    @abstractmethod
    def default_data(self) -> Data:
        """The rows used when no file is given."""

    @abstractmethod
    def protocol(self, model: Model) -> str:
        """Everything about the task that a score depends on, in one line."""

    def check(self, row: Row, where: str) -> None:
        """Raises InputError for a row that could not be judged; called before anything is run."""
        for names in self.fields:
            if all(row.get(name) is None for name in names):
                raise InputError(
                    f"{where} has the fields {', '.join(sorted(map(str, row)))}: {self.name} needs "
                    f"{' or '.join(names)}"
                )

    @abstractmethod
    def canvas(self, model: Model, row: Row, where: str, gen_length: int) -> Canvas:
        """The tokens of a row as the model gets them."""

    @abstractmethod
    def judge(
        self, model: Model, row: Row, where: str, tokens: Sequence[int], text: str
    ) -> Outcome:
        """Judges the finished `tokens` of a row's canvas; `text` is the reply in them."""

    def key(self, row: Row, number: int) -> str:
        """What names a row in the outcomes; its number is unique, ids of datasets need not be."""
        for name in ("task_id", "unique_id", "id"):
            if isinstance(row.get(name), (str, int)) and not isinstance(row.get(name), bool):
                return f"{number}:{row[name]}"
        return str(number)


def tokenizer_of(model: Model) -> Tokenizer:
    """Raises InputError if the checkpoint has none, which every task needs."""
    if model.tokenizer is None:
        raise InputError(f"{model.path or 'this model'} has no tokenizer, which tasks need")
    return model.tokenizer


def uses_chat(model: Model, prompting: Prompting) -> bool:
    if prompting.chat is not None:
        return prompting.chat
    return tokenizer_of(model).chat_template is not None


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class QuestionTask(Task):
    """A question in, a text out: the prompt, then `gen_length` masks.

    Attributes:
        template: what the user says, for checkpoints with a chat template.
        plain_template: the text to go on with, for checkpoints without one.
        prefill: what the reply starts with.
        until: the reply ends before the first of these, in chats.
        plain_until: without a chat template.
        scoring: the part of the protocol's name that says how replies are read and compared.
    """

    template: ClassVar[str]
    plain_template: ClassVar[str]
    prefill: ClassVar[str] = ""
    until: ClassVar[tuple[str, ...]] = ()
    plain_until: ClassVar[tuple[str, ...]] = ()
    scoring: ClassVar[str]

    @abstractmethod
    def question(self, row: Row, where: str) -> str: ...

    @abstractmethod
    def judge_text(self, row: Row, where: str, text: str) -> Outcome: ...

    def protocol(self, model: Model) -> str:
        chat = uses_chat(model, self.prompting)
        parts = [self.name, self.scoring, "0-shot", "chat" if chat else "plain"]
        for what, value in (
            ("template", self.prompting.template),
            ("prefill", self.prompting.prefill),
        ):
            if value is not None:
                parts.append(f"{what} {short_hash(value)}")
        return ", ".join(parts)

    def wording(self, model: Model) -> str:
        """The text around the question."""
        chat = uses_chat(model, self.prompting)
        return self.prompting.template or (self.template if chat else self.plain_template)

    def beginning(self, model: Model) -> str:
        """What the reply starts with: the prompt ends with it."""
        if self.prompting.prefill is not None:
            return self.prompting.prefill
        return self.prefill if uses_chat(model, self.prompting) else ""

    def lead(self, model: Model) -> str:
        """What is put in front of the reply before it is judged."""
        return ""

    def prompt(self, model: Model, row: Row, where: str) -> str:
        """The text in front of the masks: with chat, rendered and including special tokens."""
        asked = self.wording(model).replace(PLACE, self.question(row, where))
        if uses_chat(model, self.prompting):
            asked = tokenizer_of(model).render_chat([{"role": "user", "content": asked}])
        return asked + self.beginning(model)

    def canvas(self, model: Model, row: Row, where: str, gen_length: int) -> Canvas:
        tokenizer = tokenizer_of(model)
        prompt = self.prompt(model, row, where)
        if uses_chat(model, self.prompting):
            encoded = tokenizer.encode_rendered(prompt, gen_length)
        else:
            encoded = tokenizer.encode_prompt(prompt, gen_length)
        return Canvas(encoded.ids, encoded.start)

    def judge(
        self, model: Model, row: Row, where: str, tokens: Sequence[int], text: str
    ) -> Outcome:
        stops = self.until if uses_chat(model, self.prompting) else self.plain_until
        return self.judge_text(row, where, self.lead(model) + cut(text, stops))
