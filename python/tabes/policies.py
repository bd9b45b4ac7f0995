"""``make_policy``: unmasking policies by name and setting."""

from __future__ import annotations

from typing import Any

from tabes import _core
from tabes._core import BoE, Policy
from tabes.arguments import word


def make_policy(name: str, settings: str = "", **options: Any) -> Policy:
    """A policy by name (see `policy_names`), with settings by keyword or in the notation.

    These are the same: ``make_policy("boe", alpha=[0.25, 0.5], n_candidates="3x")``,
    ``make_policy("boe(alpha=0.25, 0.5; n_candidates=3x)")`` and
    ``make_policy("boe", "alpha=0.25;0.5, n_candidates=3x")``. Commas and semicolons separate
    settings alike, and a part without ``=`` is one more value of the setting before it.

    The settings of "boe" and "boe_paper" are those of `tabes.BoE`, those of the others numbers:
    threshold(tau=0.9), factor(f=1), entropy_bound(gamma=0.1), spread(spread=3, width=3, factor=1,
    candidates=2), klass(tau=0.9, epsilon=0.01,
    history=2), info_gain(candidates=8, position_temperature=0.2, threshold=0.8), lookum(pool=5,
    paths=2), remdm_cap(eta=0.008), remdm_rescale(eta=0.015), remdm_conf(), remdm_loop(eta=0.02,
    t_on=0.55, t_off=0.05, alpha_on=0.9), pc_sampler(decay=0.25), oracle(candidates=3, gamma=1).

    Args:
        name: of a policy, ours or another decoder's, alone or with settings in parentheses.
        settings: more of them, in the notation without parentheses.
        **options: more of them, by name.

    Raises:
        InputError: an unknown name or setting, one given twice, a value out of range, or a text
            that is not in the notation.
    """
    return _core.make_policy(_text(name, "name"), _text(settings, "settings"), options)


def _text(value: Any, name: str) -> str:
    """`value` as text that UTF-8 can hold."""
    return word(value, name).encode("utf-8", "backslashreplace").decode()


def reduced(policy: Policy) -> tuple[Any, ...]:
    """How a policy is pickled and copied: what is built in by its settings, a Python class also
    with its attributes, as Python does with other objects."""
    kind = type(policy)
    if kind in (Policy, BoE):
        return _built_in, (policy.name(), policy.settings())
    base = BoE if isinstance(policy, BoE) else Policy
    settings = {name: getattr(policy, name) for name in BoE().settings()} if base is BoE else {}
    get_state = getattr(kind, "__getstate__", None)
    state = vars(policy) if get_state is None else get_state(policy)
    return _python_policy, (kind, base, settings), state or None


def _built_in(name: str, settings: dict[str, Any]) -> Policy:
    return make_policy(name, **settings)


def _python_policy(kind: type[Policy], base: type[Policy], settings: dict[str, Any]) -> Policy:
    policy = kind.__new__(kind)
    base.__init__(policy, **settings)
    return policy
