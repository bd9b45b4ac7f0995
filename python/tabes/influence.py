"""``influence``: what revealing one position does to the entropy of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabes import _core
from tabes._core import BoE, Influence, InputError, Policy
from tabes.arguments import flag, integer, integers, listed, number, numbers, word
from tabes.inputs import Prompts, prepare, token_ids
from tabes.model import Model
from tabes.policies import make_policy


def influence(
    model: Model,
    tokens: Prompts,
    candidates: Iterable[Iterable[int]],
    probes: Iterable[Iterable[int]] | None = None,
    alpha: float | Sequence[float] = 0.5,
    tau: float = 1.0,
    halo: int = 0,
    context: str = "exact",
    adjoint: str = "active",
    forbidden: Iterable[int | str] | None = None,
    allow_special: bool = False,
    draft: str = "expected",
    policy: str | Policy | None = None,
) -> Influence:
    """Token influence scores (TIS) of candidates on probes (TABES, arXiv 2602.00250).

    ``TIS_i = -<d sum_j H_j / d e_i, e~_i - e_mask>``: the first-order fall, in nats, of the probes'
    summed entropy when candidate i is revealed. e~_i is the embedding the model predicts there; the
    gradient is taken where every candidate's embedding is ``e_mask + alpha (e~_i - e_mask)``.

    Args:
        model: from `tabes.load` or `tabes.wrap`.
        tokens: one sequence or a batch, as for `tabes.generate`; B sequences.
        candidates: B lists of masked positions.
        probes: B lists of masked positions. A position may be candidate and probe: its own entropy
            is then in the sum. None: the candidates themselves, as of `tabes.BoE`.
        alpha: one point or several, from 0 (mask) to 1 (prediction, the paper's point); the
            gradients of several are averaged.
        tau: temperature of the prediction, under draft="expected"; 0: the likeliest token.
        halo: positions this close to a candidate or probe are active as well.
        context: "exact": a full surrogate forward pass; "frozen": positions that are not active
            keep their keys and values of the base pass.
        adjoint: "active": ActiveQueryAttention; "dense": the ordinary gradient.
        forbidden: tokens left out of every distribution, as ids or by name; the mask always is.
        allow_special: keep ``model.info.special_token_ids``, which are left out otherwise.
        draft: what a candidate is taken to become: the "expected" embedding under tau, as in the
            paper, or the likeliest "token".
        policy: a `tabes.BoE` or its notation, to compute the scores that it computes: alpha, draft,
            tau, halo, context and adjoint are its own. Under rule="nats" it decides by these times
            `.scale`.

    Returns:
        `.tis`: B tensors [candidates] float64, in the candidates' order. `.entropy` and
        `.predicted_entropy`: B numbers each, the probes' summed entropy in nats, as it is and with
        the candidates written as far as alpha says (mean over the points). `.scale`: B numbers up
        to 1. Times these the falls add up to no more than `.entropy`. `.forward_rows`,
        `.backward_rows`, `.head_rows`: rows through the trunk (base pass included), its adjoint and
        the vocabulary projection.

    Raises:
        InputError: a list is empty, a position is not masked or given twice in a list, an option is
            out of range, or one is given beside a policy, which has its own.
        NumericsError: the model computed NaN.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}: pass what tabes.load returns")
    options = _options(alpha, draft, tau, halo, context, adjoint)
    if policy is not None:
        if options != _options():
            raise InputError(
                "alpha, draft, tau, halo, context and adjoint are the policy's own: leave them out"
            )
        options = _of_policy(model, policy, probes is None)
    wanted = _lists(candidates, "candidates")
    return _core.influence(
        model.core,
        prepare(model, tokens).sequences,
        wanted,
        wanted if probes is None else _lists(probes, "probes"),
        *options,
        token_ids(model, () if forbidden is None else forbidden, "forbidden"),
        flag(allow_special, "allow_special"),
    )


def _options(
    alpha: float | Sequence[float] = 0.5,
    draft: str = "expected",
    tau: float = 1.0,
    halo: int = 0,
    context: str = "exact",
    adjoint: str = "active",
) -> tuple[list[float], float, int, str, str]:
    """alpha, tau, halo, context and adjoint as the core takes them."""
    if word(draft, "draft") not in ("expected", "token"):
        raise InputError(f"draft={draft!r}: it must be one of token, expected")
    return (
        numbers(alpha, "alpha"),
        # The likeliest token is what tau = 0 expects.
        number(tau, "tau") if draft == "expected" else 0.0,
        integer(halo, "halo"),
        word(context, "context"),
        word(adjoint, "adjoint"),
    )


def _of_policy(
    model: Model, policy: str | Policy, own_probes: bool
) -> tuple[list[float], float, int, str, str]:
    made = make_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(made, BoE):
        raise InputError(f"policy={made!r}: only those of boe have influence scores")
    if own_probes and made.probes != "candidates":
        raise InputError(f"the probes of policy {made!r} are not its candidates: give probes")
    # Where no context is kept it takes the exact one, too.
    context = made.context if model.keeps_context else "exact"
    return _options(made.alpha, made.draft, made.tau, made.halo, context, made.adjoint)


def _lists(values: Iterable[Iterable[int]], name: str) -> list[list[int]]:
    given = listed(values, name, "one list of positions a sequence")
    return [integers(value, f"{name}[{b}]") for b, value in enumerate(given)]
