"""How to decode: one value object for the command line, the harness and the results file."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tabes._core import InputError, Policy, policy_names
from tabes.arguments import flag, integer, number, optional_integer
from tabes.policies import make_policy

_ALIASES = {
    "max_new_tokens": "gen_length",
    "block_size": "block_length",
    "alg": "policy",
    "remasking": "policy",
}


@dataclass(frozen=True)
class Settings:
    """Arguments of `tabes.generate` that stay the same over a whole evaluation.

    Attributes:
        gen_length: masks behind every prompt, in tokens.
        steps: denoising steps for that many.
        block_length: positions a block; None: all at once.
        policy: its name.
        policy_options: its settings where they differ from its defaults, as ``tau`` of
            "threshold" or ``alpha`` of `tabes.BoE`.
        refresh_every, temperature, top_p, top_k, cfg_scale, seed, logits_eos_inf,
            confidence_eos_eot_inf: as in `tabes.generate`.
    """

    gen_length: int = 256
    steps: int = 128
    block_length: int | None = 32
    policy: str = "confidence"
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    refresh_every: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    cfg_scale: float = 0.0
    seed: int = 0
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for values of a wrong type or out of range, before a model is run."""
        integer(self.gen_length, "gen_length", minimum=1)
        integer(self.steps, "steps", minimum=1)
        if optional_integer(self.block_length, "block_length") is not None:
            integer(self.block_length, "block_length", minimum=1)
        integer(self.refresh_every, "refresh_every", minimum=0)
        integer(self.top_k, "top_k", minimum=0)
        integer(self.seed, "seed", minimum=0)
        for name in ("temperature", "top_p", "cfg_scale"):
            number(getattr(self, name), name)
        for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
            flag(getattr(self, name), name)
        if not isinstance(self.policy, str):
            raise InputError(f"policy={self.policy!r}: give its name")
        if self.policy not in policy_names():  # another decoder's name, or unknown
            object.__setattr__(self, "policy", make_policy(self.policy).name())
        self.make_policy()

    @classmethod
    def of(cls, values: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """`base` with `values`, by the names above or those other decoders use.

        Names that are no setting are taken as options of the policy, which knows its own.

        Raises InputError for a name that neither knows, and for one given twice.
        """
        known = {f.name for f in dataclasses.fields(cls)} - {"policy_options"}
        base = cls() if base is None else base
        chosen: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for name, value in values.items():
            canonical = canonical_name(name)
            if canonical in chosen:
                raise InputError(f"{canonical} is given twice, once as {name!r}")
            if canonical in known:
                chosen[canonical] = value
            else:
                options[name] = value
        policy = str(chosen.get("policy", base.policy))
        if policy == base.policy:
            options = {**base.policy_options, **options}
        try:
            return dataclasses.replace(base, policy_options=options, **chosen)
        except InputError as error:
            nearest = [
                m for n in options for m in difflib.get_close_matches(n, [*known, *_ALIASES])
            ]
            if nearest and "no setting" in str(error):
                raise InputError(f"{error}; did you mean {nearest[0]!r}?") from error
            raise

    def make_policy(self) -> Policy:
        """A policy object of its own for every batch, so that none carries state over.

        Raises InputError for an unknown policy, and for options that it does not have or refuses.
        """
        given = {name: _option(name, value) for name, value in self.policy_options.items()}
        names = _settable(make_policy(self.policy))
        unknown = [name for name in given if name not in names]
        if names and unknown:
            raise InputError(
                f"policy {self.policy} has no setting {unknown[0]!r}; it takes {', '.join(names)}"
            )
        try:
            return make_policy(self.policy, **given)
        except TypeError as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise InputError(
                f"{shown}: wrong type for a setting of policy {self.policy}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """All settings, those of BoE with the values that its defaults filled in."""
        values = dataclasses.asdict(self)
        policy = self.make_policy()
        given = {name: _option(name, value) for name, value in self.policy_options.items()}
        values["policy_options"] = given | {n: getattr(policy, n) for n in _settable(policy)}
        return values


def canonical_name(name: str) -> str:
    """What a setting that other decoders call `name` is called here."""
    return _ALIASES.get(name, name)


def _settable(policy: Policy) -> tuple[str, ...]:
    """The settings that a policy has as properties; only those of BoE's class do."""
    kind = type(policy)
    return tuple(name for name in vars(kind) if isinstance(vars(kind)[name], property))


def _option(name: str, value: Any) -> Any:
    """A setting as the policy takes it, from what may be text of a command line.

    Several numbers are separated by semicolons, since commas separate model_args.
    """
    if not isinstance(value, str):
        return value
    parts = [_scalar(part) for part in value.split(";")]
    if len(parts) > 1 and not all(isinstance(part, (int, float)) for part in parts):
        raise InputError(f"{name}={value}: several values must be numbers, as 0.25;0.5")
    return parts if len(parts) > 1 else parts[0]


def _scalar(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# Length 256 in 128 steps and blocks of 32: what the paper's tables were made with, as far as its
# baseline rows tell. The other one takes as many steps as there are tokens.
PRESETS: Mapping[str, Settings] = {
    "paper": Settings(gen_length=256, steps=128, block_length=32),
    "one-a-step": Settings(gen_length=256, steps=256, block_length=32),
}
