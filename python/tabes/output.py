"""``GenerateOutput``: what `tabes.generate` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic

import torch
from typing_extensions import TypeVar

from tabes._core import StepRecord

# For type checkers: texts go in, texts come out.
Texts = TypeVar("Texts", covariant=True, bound="list[str] | None", default="list[str] | None")


@dataclass(frozen=True, eq=False, repr=False)
class GenerateOutput(Generic[Texts]):
    """What `generate` returns. B sequences, L tokens each, prompt included.

    Attributes:
        tokens: int64, nested as the input was: [L] for one sequence, [B, L] for a batch of equal
            lengths, else a list of B tensors [L_b]; without what `attention_mask` took out.
        texts: B strings, None if the checkpoint has no usable tokenizer. Special tokens of the
            prompt are left out and what the model wrote from its end token on is cut (in the texts
            only); any other token that it wrote is shown. For chat messages the reply alone, else
            prompt and completion.
        trace: one record for every step.
        forward_equivalents: cost in forward passes over the whole batch: forward and backward
            rows divided by the tokens of the batch.
        finished: False if the callback stopped the run; masks are then left in `tokens`.
        seconds: wall-clock time of the loop.
        forward_rows: token rows that went through the model.
        backward_rows: token rows that went through its adjoint.
        head_rows: token rows that went through the vocabulary projection.
        replayed_passes: passes that were replayed as CUDA graphs.
        policy: the name of the policy.
        policy_settings: its settings by name, defaults among them.
    """

    # A list for sequences of several lengths. Any: who asks for lengths knows which.
    tokens: torch.Tensor | Any
    texts: Texts
    trace: list[StepRecord]
    forward_equivalents: float
    finished: bool
    seconds: float
    forward_rows: int
    backward_rows: int
    head_rows: int
    replayed_passes: int
    policy: str
    policy_settings: dict[str, Any]

    def __repr__(self) -> str:
        parts = [_shown(self.tokens)]
        if self.texts is not None:
            parts.append(f"texts {_shortened(self.texts)}")
        parts.append(f"{len(self.trace)} steps")
        parts.append(f"{self.forward_equivalents:.1f} forward-equivalents")
        if not self.finished:
            parts.append("stopped by the callback")
        return f"GenerateOutput({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        """Tokens travel as numbers: as tensors they would lie in memory shared with the process
        that sent them, which may have ended before they arrive."""
        tokens: Any = self.tokens
        if isinstance(tokens, torch.Tensor):
            tokens = tokens.tolist()
        else:
            tokens = tuple(row.tolist() for row in tokens)
        return {**vars(self), "tokens": tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokens = state["tokens"]
        if isinstance(tokens, tuple):
            tokens = [torch.tensor(row, dtype=torch.int64, device="cpu") for row in tokens]
        else:
            tokens = torch.tensor(tokens, dtype=torch.int64, device="cpu")
        vars(self).update({**state, "tokens": tokens})

    def to_dict(self) -> dict[str, Any]:
        """All of it as lists, dicts and numbers for ``json.dumps``; NaN and infinity as None."""
        tokens: Any = self.tokens
        return {
            "tokens": [t.tolist() for t in tokens] if isinstance(tokens, list) else tokens.tolist(),
            "texts": self.texts,
            "finished": self.finished,
            "forward_equivalents": self.forward_equivalents,
            "forward_rows": self.forward_rows,
            "backward_rows": self.backward_rows,
            "head_rows": self.head_rows,
            "replayed_passes": self.replayed_passes,
            "policy": self.policy,
            "policy_settings": self.policy_settings,
            "seconds": self.seconds,
            "trace": [_record_to_dict(record) for record in self.trace],
        }


def _record_to_dict(record: StepRecord) -> dict[str, Any]:
    return {
        "step": record.step,
        "steps": record.steps,
        "masked": list(record.masked),
        "eligible": list(record.eligible),
        "scored": record.scored,
        "sequence": record.sequence.tolist(),
        "position": record.position.tolist(),
        "token": record.token.tolist(),
        "confidence": _finite(record.confidence),
        "entropy": _finite(record.entropy),
        "score": _finite(record.score),
        "influence": _finite(record.influence),
        "by_confidence": record.by_confidence.tolist(),
        "remasked_sequence": record.remasked_sequence.tolist(),
        "remasked_position": record.remasked_position.tolist(),
        "predicted_fall": _finite(record.predicted_fall),
        "realised_fall": _finite(record.realised_fall),
        "forward_rows": record.forward_rows,
        "backward_rows": record.backward_rows,
        "head_rows": record.head_rows,
        "seconds": record.seconds,
        "model_seconds": None if math.isnan(record.model_seconds) else record.model_seconds,
    }


def _finite(values: torch.Tensor | list[float]) -> list[float | None]:
    numbers = values.tolist() if isinstance(values, torch.Tensor) else values
    return [value if math.isfinite(value) else None for value in numbers]


def _shown(tokens: Any) -> str:
    if isinstance(tokens, list):
        return (
            f"{len(tokens)} sequences of {min(map(len, tokens))} to {max(map(len, tokens))} tokens"
        )
    return f"tokens {list(tokens.shape)}"


def _shortened(texts: list[str]) -> str:
    shown = ", ".join(repr(text if len(text) <= 40 else text[:37] + "...") for text in texts[:2])
    return f"[{shown}{', ...' if len(texts) > 2 else ''}]"
