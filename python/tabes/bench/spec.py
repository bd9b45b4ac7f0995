"""One way to decode, as plain data, and the policy it stands for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tabes._core import BoE, Decision, Policy, StepContext, policy_names
from tabes.policies import BOE_SETTINGS, make_policy

NO_TIS = "boe_no_tis"
_BEHIND = 1e6  # puts rows behind every candidate, by confidence among themselves


@dataclass(frozen=True)
class Spec:
    """What `tabes.generate` gets beside model, canvas and seed.

    Attributes:
        policy: a name of `tabes.policy_names()`, or "boe_no_tis" (see `WithoutInfluence`).
        options: of that policy.
        steps: None for policies that decide themselves how many they take.
        block_length, temperature, refresh_every: as in `tabes.generate`.
    """

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    block_length: int | None = None
    temperature: float = 0.0
    refresh_every: int = 1

    def changed(self, options: Mapping[str, Any]) -> Spec:
        """With more options; "policy" and "refresh_every" among them are not the policy's own."""
        own = {**self.options, **options}
        policy = own.pop("policy", self.policy)
        refresh = own.pop("refresh_every", self.refresh_every)
        return replace(self, policy=policy, options=own, refresh_every=refresh)

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "options": dict(self.options),
            "steps": self.steps,
            "block_length": self.block_length,
            "temperature": self.temperature,
            "refresh_every": self.refresh_every,
        }


class WithoutInfluence(Policy):
    """BoE's score with nothing of the gradient in it: the confidence's part less the anti-collapse
    penalty, for as many candidates as BoE would take, at BoE's pace. What is lost against BoE is
    what the influence gives."""

    def __init__(self, settings: BoE) -> None:
        super().__init__()
        self.settings = settings

    def name(self) -> str:
        return NO_TIS

    def pace(self) -> str:
        return "adaptive" if self.settings.entropy_budget > 0 else "quota"

    def decide(self, context: StepContext) -> Decision:
        s = self.settings
        confidence = context.predictions.confidence.double()
        entropy = context.predictions.entropy.double()
        scores = confidence - _BEHIND
        counts = []
        for b, (first, last) in enumerate(itertools.pairwise(context.cu_rows)):
            rows = slice(first, last)
            by_confidence = confidence[rows].argsort(descending=True, stable=True)
            reveals = context.quota[b]
            if s.entropy_budget > 0:
                reveals = _within(s.entropy_budget, entropy[rows][by_confidence])
            wanted = s.n_candidates
            if isinstance(wanted, str):
                wanted = math.ceil(float(wanted.removesuffix("x")) * reveals)
            chosen = first + by_confidence[:wanted]
            floor = s.h_max * (1 - context.step[b] / context.steps[b])
            penalty = (floor - entropy[chosen]).clamp_min(0) ** 2
            part = confidence[chosen] ** s.gamma
            if s.rule == "nats":
                part = s.gamma * confidence[chosen].clamp_min(1e-300).log()
            scores[chosen] = part - s.anti_collapse * penalty
            if s.entropy_budget > 0:
                by_score = scores[rows].argsort(descending=True, stable=True)
                counts.append(_within(s.entropy_budget, entropy[rows][by_score]))
        return Decision(scores, counts)


def _within(budget: float, entropies: torch.Tensor) -> int:
    """How many of the first have entropies that sum, but for the largest, to at most the budget."""
    spent = entropies.cumsum(0) - entropies.cummax(0).values
    return max(1, int((spent <= budget).long().cumprod(0).sum()))


def available(policy: str) -> bool:
    """Whether this build of tabes has the policy."""
    return policy == NO_TIS or policy in policy_names()


def policy_from(spec: Spec) -> Policy:
    """The policy of a setting.

    Raises InputError for a policy or an option that does not exist or is out of range.
    """
    if spec.policy == NO_TIS:
        return WithoutInfluence(BoE(**spec.options))
    return make_policy(spec.policy, **spec.options)


def effective(spec: Spec) -> tuple[Any, ...]:
    """Equal for settings that decode alike, whether options are spelt out or left to defaults."""
    policy = policy_from(spec)
    rest = (spec.policy, spec.steps, spec.block_length, spec.temperature, spec.refresh_every)
    if isinstance(policy, WithoutInfluence):
        policy = policy.settings
    if not isinstance(policy, BoE):
        return (*rest, tuple(sorted(spec.options.items())))
    settings = (getattr(policy, name) for name in BOE_SETTINGS)
    return (*rest, *(tuple(value) if isinstance(value, list) else value for value in settings))
