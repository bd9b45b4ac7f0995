"""One way to decode, as plain data, and the policy it stands for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tabes._core import BoE, InputError, Policy, StepContext, make_policy, policy_names
from tabes.trace import BOE_SETTINGS

NO_TIS = "boe_no_tis"
_BEHIND = 1e6  # puts rows behind every candidate, by confidence among themselves


@dataclass(frozen=True)
class Spec:
    """What `tabes.generate` gets beside model, canvas and seed.

    Attributes:
        policy: a name of `tabes.policy_names()`, or "boe_no_tis" (see `WithoutInfluence`).
        options: of that policy.
        steps: None for policies that decide themselves how many they take.
        block_length, temperature: as in `tabes.generate`.
    """

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    block_length: int | None = None
    temperature: float = 0.0

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
        }


class WithoutInfluence(Policy):
    """BoE's score with nothing of the gradient in it: c**gamma less the anti-collapse penalty, for
    as many candidates as BoE would take. What is lost against BoE is what the influence gives."""

    def __init__(self, settings: BoE) -> None:
        super().__init__()
        self.settings = settings

    def name(self) -> str:
        return NO_TIS

    def score(self, context: StepContext) -> torch.Tensor:
        s = self.settings
        confidence = context.predictions.confidence.double()
        entropy = context.predictions.entropy.double()
        scores = confidence - _BEHIND
        offsets = context.cu_rows
        for b, (first, last) in enumerate(itertools.pairwise(offsets)):
            wanted = s.n_candidates
            if isinstance(wanted, str):
                wanted = int(float(wanted.removesuffix("x")) * context.quota[b])
            order = confidence[first:last].argsort(descending=True, stable=True)
            chosen = first + order[: max(wanted, 0)]
            left = 1 - context.step[b] / context.steps[b]
            penalty = (s.h_max * left - entropy[chosen]).clamp_min(0) ** 2
            scores[chosen] = confidence[chosen] ** s.gamma - s.anti_collapse * penalty
        return scores


def available(policy: str) -> bool:
    """Whether this build of tabes has the policy."""
    return policy == NO_TIS or policy in policy_names()


def policy_from(spec: Spec) -> Policy:
    """The policy of a setting.

    Raises InputError for a policy or an option that does not exist or is out of range.
    """
    options = dict(spec.options)
    try:
        if spec.policy == NO_TIS:
            return WithoutInfluence(BoE(**options))
        if spec.policy == "boe":
            return BoE(**options)
        if spec.policy == "boe_paper" and options:
            paper = BoE.paper()
            return BoE(**{name: getattr(paper, name) for name in BOE_SETTINGS} | options)
        factory: Callable[..., Policy] = make_policy
        return factory(spec.policy, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        reason = str(error).splitlines()[0]
        raise InputError(f"policy {spec.policy} does not take {given}: {reason}") from None


def effective(spec: Spec) -> tuple[Any, ...]:
    """Equal for settings that decode alike, whether options are spelt out or left to defaults."""
    policy = policy_from(spec)
    rest = (spec.policy, spec.steps, spec.block_length, spec.temperature)
    if isinstance(policy, WithoutInfluence):
        policy = policy.settings
    if not isinstance(policy, BoE):
        return (*rest, tuple(sorted(spec.options.items())))
    settings = (getattr(policy, name) for name in BOE_SETTINGS)
    return (*rest, *(tuple(value) if isinstance(value, list) else value for value in settings))
