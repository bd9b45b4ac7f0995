"""Canvases in, finished tokens, texts and exact cost out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabes._core import InputError
from tabes.evaluation.settings import Settings
from tabes.evaluation.tasks import Canvas, tokenizer_of
from tabes.generation import Callback, generate
from tabes.model import Model
from tabes.text import visible_ids


@dataclass
class Cost:
    """What decoding took, in total.

    Attributes:
        forward_rows: token rows through the trunk.
        backward_rows: token rows through its adjoint.
        head_rows: token rows through the vocabulary projection.
        canvas_tokens: tokens of the sequences, prompts included.
        seconds: wall-clock time of the decoding loop.
    """

    forward_rows: int = 0
    backward_rows: int = 0
    head_rows: int = 0
    canvas_tokens: int = 0
    seconds: float = 0.0

    @property
    def forward_equivalents(self) -> float:
        """Rows through the trunk and its adjoint over the tokens: forward passes a sequence."""
        rows = self.forward_rows + self.backward_rows
        return rows / self.canvas_tokens if self.canvas_tokens else 0.0

    def add(self, other: Cost) -> None:
        for part in dataclasses.fields(self):
            total = getattr(self, part.name) + getattr(other, part.name)
            setattr(self, part.name, total)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "forward_equivalents": self.forward_equivalents}


@dataclass(frozen=True)
class Reply:
    """A finished canvas.

    Attributes:
        tokens: all of it [L].
        written: what the model wrote from where the reply starts, up to its end token and with it.
        text: from where the reply starts, cut at an end token, without special tokens.
    """

    tokens: list[int]
    written: list[int]
    text: str


def decode(
    model: Model,
    canvases: Sequence[Canvas],
    keys: Sequence[int],
    settings: Settings,
    *,
    steps: int | None = None,
    callback: Callback | None = None,
) -> tuple[list[Reply], Cost]:
    """Fills a batch.

    Args:
        model: with a tokenizer.
        canvases: B of them, of any lengths.
        keys: B numbers that key the random draws: a canvas with the same key is filled the same
            way in any batch.
        settings: how.
        steps: instead of those of the settings.
        callback: as in `tabes.generate`.

    Raises InputError for a canvas that is too long for the model; what `tabes.generate` raises.
    """
    output = generate(
        model,
        [canvas.tokens for canvas in canvases],
        steps=settings.steps if steps is None else steps,
        block_length=settings.block_length,
        refresh_every=settings.refresh_every,
        policy=settings.make_policy(),
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        cfg_scale=settings.cfg_scale,
        seed=settings.seed,
        sequence_ids=keys,
        forbidden=settings.forbidden,
        allow_special=settings.allow_special,
        logits_eos_inf=settings.logits_eos_inf,
        confidence_eos_eot_inf=settings.confidence_eos_eot_inf,
        callback=callback,
    )
    mask, ends = model.info.mask_token_id, model.info.eos_token_ids
    tokenizer = tokenizer_of(model)
    replies = []
    for canvas, row in zip(canvases, output.tokens, strict=True):
        tokens = row.tolist()
        filled = [token == mask for token in canvas.tokens[canvas.start :]]
        shown = visible_ids(tokens[canvas.start :], filled, ends)
        written = [t for t, f in zip(tokens[canvas.start :], filled, strict=True) if f]
        last = next((i for i, token in enumerate(written) if token in ends), len(written))
        replies.append(Reply(tokens, written[: last + 1], tokenizer.decode(shown)))
    cost = Cost(
        output.forward_rows,
        output.backward_rows,
        output.head_rows,
        sum(len(canvas.tokens) for canvas in canvases),
        output.seconds,
    )
    return replies, cost


def scaled_steps(settings: Settings, length: int) -> int:
    """Steps for `length` masks at the rate of the settings, at least one."""
    return max(1, math.ceil(settings.steps * length / settings.gen_length))


def check_length(model: Model, canvas: Canvas, where: str) -> None:
    """Raises InputError for a canvas that is longer than the model's limit."""
    if len(canvas.tokens) > model.info.max_length:
        raise InputError(
            f"{where}: prompt and reply have {len(canvas.tokens)} tokens, the model takes "
            f"{model.info.max_length}: choose a smaller gen_length or shorter prompts"
        )
