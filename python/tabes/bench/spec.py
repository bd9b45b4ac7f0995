"""One way to decode, as plain data, and the policy it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tabes._core import Policy, policy_names
from tabes.policies import make_policy


@dataclass(frozen=True)
class Spec:
    """What `tabes.generate` gets beside model, canvas and seed.

    Attributes:
        policy: a name of `tabes.policy_names()`.
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


def available(policy: str) -> bool:
    """Whether this build of tabes has the policy."""
    return policy in policy_names()


def policy_from(spec: Spec) -> Policy:
    """The policy of a setting.

    Raises InputError for a policy or an option that does not exist or is out of range.
    """
    return make_policy(spec.policy, **spec.options)


def effective(spec: Spec) -> tuple[Any, ...]:
    """Equal for settings that decode alike, whether options are spelt out or left to defaults."""
    rest = (spec.steps, spec.block_length, spec.temperature, spec.refresh_every)
    return (policy_from(spec).notation(), *rest)
