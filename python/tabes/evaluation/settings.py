"""How to decode: one value object for the command line, the harness and the results file."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabes import eval_choices
from tabes._core import InputError, Policy
from tabes.arguments import (
    flag,
    integer,
    listed,
    number,
    optional_integer,
    seed_of_draws,
    word,
)
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
        policy: its name, with settings where they differ from its defaults, in the notation of
            `tabes.make_policy`: ``threshold(tau=0.8)``.
        forbidden: ids or names of tokens; one text may hold several, separated by semicolons.
        refresh_every, temperature, top_p, top_k, cfg_scale, seed, allow_special, logits_eos_inf,
            confidence_eos_eot_inf: as in `tabes.generate`.
    """

    gen_length: int = 256
    steps: int = 128
    block_length: int | None = 32
    policy: str = "confidence"
    refresh_every: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    cfg_scale: float = 0.0
    seed: int = 0
    forbidden: tuple[int | str, ...] = ()
    allow_special: bool = False
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
        seed_of_draws(self.seed)
        for name in ("temperature", "top_p", "cfg_scale"):
            number(getattr(self, name), name)
        for name in ("allow_special", "logits_eos_inf", "confidence_eos_eot_inf"):
            flag(getattr(self, name), name)
        object.__setattr__(self, "forbidden", _forbidden(self.forbidden))
        # Other decoders' names and spellings of the same policy are one setting.
        object.__setattr__(self, "policy", repr(self.make_policy()))

    @classmethod
    def of(cls, values: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """`base` with `values`, by the names above or those other decoders use.

        Raises InputError for a name that is no setting, and for one given twice.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        base = cls() if base is None else base
        chosen: dict[str, Any] = {}
        for name, value in values.items():
            canonical = canonical_name(name)
            if canonical in chosen:
                raise InputError(f"{canonical} is given twice, once as {name!r}")
            chosen[canonical] = value
        settings = dataclasses.replace(base, **{n: v for n, v in chosen.items() if n in known})
        for name, value in chosen.items():
            if name not in known:
                raise InputError(_unknown(name, value, settings, known))
        return settings

    def make_policy(self) -> Policy:
        """A policy object of its own for every batch, so that none carries state over.

        Raises InputError for an unknown policy or setting, and for a value that it refuses.
        """
        return make_policy(word(self.policy, "policy"))

    def to_dict(self) -> dict[str, Any]:
        """All settings, those of the policy with the values that its defaults filled in."""
        values = dataclasses.asdict(self)
        values["forbidden"] = list(self.forbidden)
        return values | {"policy_settings": self.make_policy().settings()}


def _unknown(name: str, value: Any, settings: Settings, known: Sequence[str]) -> str:
    message = f"there is no setting {name!r}"
    policy = settings.make_policy()
    if name in policy.settings():
        return (
            f"{message}: the policy's are written behind its name: {policy.name()}({name}={value})"
        )
    nearest = difflib.get_close_matches(name, [*known, *_ALIASES], 1)
    return f"{message}: did you mean {nearest[0]!r}?" if nearest else message


def _forbidden(given: Any) -> tuple[int | str, ...]:
    """Ids and names; digits in a text are an id."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(";") if part.strip()]
    elif isinstance(given, int):
        given = [given]
    tokens: list[int | str] = []
    for i, token in enumerate(listed(given, "forbidden", "a list of token ids or names")):
        if isinstance(token, str):
            is_id = token.isascii() and token.isdigit() and len(token) < 19
            tokens.append(int(token) if is_id else token)
        else:
            tokens.append(integer(token, f"forbidden[{i}]", minimum=0))
    return tuple(tokens)


def canonical_name(name: str) -> str:
    """What a setting that other decoders call `name` is called here."""
    return _ALIASES.get(name, name)


PRESETS: Mapping[str, Settings] = {
    name: Settings(**values) for name, values in eval_choices.PRESETS.items()
}
