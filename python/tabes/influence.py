"""``influence``: what revealing one position does to the entropy of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabes import _core
from tabes._core import Influence, InputError
from tabes.arguments import flag, integer, integers, listed, number, numbers, word
from tabes.inputs import Prompts, prepare, token_ids
from tabes.model import Model


def influence(
    model: Model,
    tokens: Prompts,
    candidates: Iterable[Iterable[int]],
    probes: Iterable[Iterable[int]],
    alpha: float | Sequence[float] = 0.5,
    tau: float = 1.0,
    halo: int = 0,
    context: str = "exact",
    adjoint: str = "active",
    forbidden: Iterable[int | str] | None = None,
    allow_special: bool = False,
) -> Influence:
    """Token influence scores (TIS) of candidates on probes (TABES, arXiv 2602.00250).

    ``TIS_i = -<d sum_j H_j / d e_i, e~_i - e_mask>``: the first-order fall, in nats, of the probes'
    summed entropy when candidate i is revealed. e~_i is the embedding the model predicts there; the
    gradient is taken where every candidate's embedding is ``e_mask + alpha (e~_i - e_mask)``.

    Args:
        model: from `tabes.load` or `tabes.wrap`.
        tokens: one sequence or a batch, as for `tabes.generate`; B sequences.
        candidates: B lists of masked positions.
        probes: B lists of masked positions, none of them candidates.
        alpha: one point or several, from 0 (mask) to 1 (prediction, the paper's point); the
            gradients of several are averaged.
        tau: temperature of the prediction; 0: the likeliest token.
        halo: positions this close to a candidate or probe are active as well.
        context: "exact": a full surrogate forward pass; "frozen": positions that are not active
            keep their keys and values of the base pass.
        adjoint: "active": ActiveQueryAttention; "dense": the ordinary gradient.
        forbidden: tokens left out of every distribution, as ids or by name; the mask always is.
        allow_special: keep ``model.info.special_token_ids``, which are left out otherwise.

    Returns:
        `.tis`: B tensors [candidates] float64, in the candidates' order. `.predicted_entropy`: B
        numbers, the probes' summed entropy in nats with the candidates written as far as alpha
        says (mean over the points). `.forward_rows`, `.backward_rows`, `.head_rows`: rows through
        the trunk (base pass included), its adjoint and the vocabulary projection.

    Raises:
        InputError: a list is empty, a position is not masked, given twice or both candidate and
            probe, or an option is out of range.
        NumericsError: the model computed NaN.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}: pass what tabes.load returns")
    return _core.influence(
        model.core,
        prepare(model, tokens).sequences,
        _lists(candidates, "candidates"),
        _lists(probes, "probes"),
        numbers(alpha, "alpha"),
        number(tau, "tau"),
        integer(halo, "halo"),
        word(context, "context"),
        word(adjoint, "adjoint"),
        token_ids(model, () if forbidden is None else forbidden, "forbidden"),
        flag(allow_special, "allow_special"),
    )


def _lists(values: Iterable[Iterable[int]], name: str) -> list[list[int]]:
    given = listed(values, name, "one list of positions a sequence")
    return [integers(value, f"{name}[{b}]") for b, value in enumerate(given)]
