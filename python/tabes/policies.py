"""``make_policy``: unmasking policies by name and setting."""

from __future__ import annotations

from typing import Any

from tabes import _core
from tabes._core import Policy
from tabes.arguments import number

# The attributes of `tabes.BoE`, which are the arguments that make one like it.
BOE_SETTINGS = (
    "n_candidates",
    "prefilter",
    "alpha",
    "draft",
    "tau",
    "rule",
    "gamma",
    "weight",
    "factor",
    "spread",
    "spread_width",
    "anti_collapse",
    "h_max",
    "rho",
    "probes",
    "halo",
    "context",
    "adjoint",
    "every",
    "min_masked",
)
# Other decoders' names of ours.
_ALIASES = {
    "low_confidence": "confidence",
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "eb": "entropy_bound",
}


def make_policy(name: str, **options: Any) -> Policy:
    """A policy by name (see `policy_names`), with settings by keyword.

    The settings of "boe" and "boe_paper" are those of `tabes.BoE`, those of the others numbers:
    threshold(tau=0.9), factor(f=1), entropy_bound(gamma=0.1), spread(spread=3, width=3, factor=1,
    candidates=2), klass(tau=0.9, epsilon=0.01,
    history=2), info_gain(candidates=8, position_temperature=0.2, threshold=0.8), lookum(pool=5,
    paths=2), remdm_cap(eta=0.008), remdm_rescale(eta=0.015), remdm_conf(), remdm_loop(eta=0.02,
    t_on=0.55, t_off=0.05, alpha_on=0.9), pc_sampler(decay=0.25), oracle(candidates=3, gamma=1).

    Raises:
        InputError: an unknown name or setting, or a value out of range.
    """
    name = _ALIASES.get(name, name)
    if options and name in ("boe", "boe_paper"):
        given = dict(options)
        if name == "boe_paper":
            paper = _core.BoE.paper()
            given = {key: getattr(paper, key) for key in BOE_SETTINGS} | given
        return _core.BoE(**given)
    return _core.make_policy(name, {key: number(value, key) for key, value in options.items()})
