"""How well influence scores predict what revealing a position really does.

Fidelity is the Spearman rank correlation, over a handful of candidates drawn at random among the
masked positions of a text, between their token influence scores and the true one-step fall: write
the candidate's likeliest token, run the model, and see how far the summed entropy of the probes has
fallen. Probes are the other masked positions or, as in `tabes.BoE`, the candidates themselves, of
which all but the one that is written count. One correlation a text; reported is their mean
with a bootstrap interval, beside the cost of the scores in forward passes, and what the scores
predicted in nats beside what was true.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from tabes import _core
from tabes._core import BoE, InputError
from tabes.arguments import seed_of_draws
from tabes.influence import influence
from tabes.model import Model
from tabes.statistics import bootstrap


@dataclass(frozen=True)
class Setting:
    """One way to compute influence scores; the fields are those of `tabes.influence`, and `probes`:
    the "other" masked positions or the "candidates" themselves."""

    alpha: tuple[float, ...] = (0.5,)
    tau: float = 1.0
    halo: int = 0
    context: str = "exact"
    adjoint: str = "active"
    draft: str = "expected"
    probes: str = "other"

    @classmethod
    def of(cls, policy: BoE, keeps_context: bool = True) -> Setting:
        """How a policy computes its scores, on a model that keeps contexts or not. Probes that are
        no candidates are measured with all other masked positions."""
        return cls(
            tuple(policy.alpha),
            policy.tau,
            policy.halo,
            policy.context if keeps_context else "exact",
            policy.adjoint,
            policy.draft,
            "candidates" if policy.probes == "candidates" else "other",
        )

    @property
    def label(self) -> str:
        points = "+".join(f"{a:g}" for a in self.alpha)
        draft = "token" if self.draft == "token" else f"tau {self.tau:g}"
        parts = [f"alpha {points}", draft, self.context]
        if self.probes == "candidates":
            parts.append("own probes")
        parts.append("dense" if self.adjoint == "dense" else f"active, halo {self.halo}")
        return ", ".join(parts)


# Points one by one and averaged, both adjoints; then tau, a halo, and the frozen context.
DEFAULT_SETTINGS = (
    *(
        Setting(alpha=alpha, adjoint=adjoint)
        for adjoint in ("active", "dense")
        for alpha in ((0.0,), (0.25,), (0.5,), (0.75,), (1.0,), (0.25, 0.5))
    ),
    Setting(tau=0.0),
    Setting(tau=0.5),
    Setting(halo=1),
    *(
        Setting(alpha=alpha, halo=halo, context="frozen")
        for halo in (0, 1, 2)
        for alpha in ((0.3,), (0.4,), (0.5,), (0.25, 0.5))
    ),
)


def default_settings(model: Model) -> list[Setting]:
    """The score of `tabes.BoE`'s defaults, then DEFAULT_SETTINGS as far as the model has them.

    Warns if it has not all.
    """
    settings = [s for s in DEFAULT_SETTINGS if model.keeps_context or s.context != "frozen"]
    left_out = len(DEFAULT_SETTINGS) - len(settings)
    if left_out:
        warnings.warn(
            f"{left_out} settings with a frozen context are not measured: a wrapped model keeps "
            "none",
            stacklevel=3,
        )
    return [Setting.of(BoE(), model.keeps_context), *settings]


@dataclass(frozen=True)
class Fidelity:
    """The fidelity of one setting.

    Attributes:
        setting: what was measured.
        mean: mean Spearman correlation over the texts.
        low, high: its 95 % bootstrap interval over texts.
        cost: rows through model and adjoint, the base pass included, over the rows of the texts.
        predicted: nats by which the probes' entropy falls by the scores of all candidates together,
            times their scale (`Influence.scale`); mean over the texts.
        true: the same, one candidate written at a time.
        correlations: one a text.
    """

    setting: Setting
    mean: float
    low: float
    high: float
    cost: float
    predicted: float
    true: float
    correlations: list[float] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.setting.label} | asdict(self)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _shuffled(count: int, seed: int, number: int) -> torch.Tensor:
    """0 to `count` - 1 in the order drawn for the text of this number.

    Raises InputError for a seed that `generate` refuses."""
    mixed = seed_of_draws(seed) * 1_000_003 + number
    # torch's generator looks at 32 bits alone.
    generator = torch.Generator("cpu").manual_seed((mixed ^ mixed >> 32 ^ mixed >> 64) % 2**32)
    return torch.randperm(count, generator=generator, device="cpu")


def mask_at_random(
    model: Model, sequences: Iterable[torch.Tensor], rate: float, seed: int, after: int = 0
) -> list[torch.Tensor]:
    """Copies with a share `rate` of the positions between `after` and the last masked."""
    masked = []
    for i, tokens in enumerate(sequences):
        places = after + _shuffled(max(0, len(tokens) - 1 - after), seed, i)
        copy = tokens.clone()
        copy[places[: round(rate * len(places))]] = model.info.mask_token_id
        masked.append(copy)
    return masked


def fidelity(
    model: Model,
    sequences: Sequence[torch.Tensor],
    settings: Sequence[Setting] | None = None,
    *,
    n_candidates: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fidelity]:
    """Measures every setting on the same texts, candidates and probes.

    Args:
        model: from `tabes.load` or `tabes.wrap`.
        sequences: token ids [L_b] with masks; those with fewer than n_candidates + 2 are left out.
        settings: what to measure; None: the score of `tabes.BoE`'s defaults and DEFAULT_SETTINGS,
            with a warning less those with a frozen context if the model keeps none.
        n_candidates: drawn at random among the masked positions; the others are the probes, or the
            candidates themselves, as the setting says.
        seed: of that draw, from 0 to 2^64 - 1.
        progress: called with the texts done and all of them.

    Raises InputError if no text has masks enough.
    """
    if settings is None:
        settings = default_settings(model)
    mask = model.info.mask_token_id
    usable = [s for s in sequences if int((s == mask).sum()) >= n_candidates + 2]
    if not usable:
        raise InputError(f"no text has {n_candidates + 2} masked positions")
    found: list[list[float]] = [[] for _ in settings]
    kinds = {s.probes for s in settings}
    nats = [[0.0, 0.0] for _ in settings]  # predicted, true
    rows = [0] * len(settings)
    for i, tokens in enumerate(usable):
        masked = (tokens == mask).nonzero()[:, 0]
        order = masked[_shuffled(len(masked), seed, i)].tolist()
        candidates = [order[:n_candidates]]
        probes = {"other": [order[n_candidates:]], "candidates": candidates}
        true = {kind: _true_falls(model, tokens, order, kind, n_candidates) for kind in kinds}
        for k, s in enumerate(settings):
            got = influence(
                model, [tokens], candidates, probes[s.probes], list(s.alpha), s.tau, s.halo,
                s.context, s.adjoint, draft=s.draft,
            )  # fmt: skip
            fall = true[s.probes]
            found[k].append(spearman(got.tis[0].tolist(), fall.tolist()))
            nats[k][0] += float(got.tis[0].sum()) * got.scale[0]
            nats[k][1] += float(fall.sum())
            rows[k] += got.forward_rows + got.backward_rows
        if progress is not None:
            progress(i + 1, len(usable))
    total = sum(map(len, usable))
    return [
        Fidelity(s, *_interval(c), r / total, n[0] / len(usable), n[1] / len(usable), c)
        for s, c, r, n in zip(settings, found, rows, nats, strict=True)
    ]


def _true_falls(
    model: Model, tokens: torch.Tensor, order: list[int], probes: str, n_candidates: int
) -> torch.Tensor:
    """The one-step falls [n_candidates] of the first of the masked positions in `order`."""
    candidates = order[:n_candidates]
    if probes == "other":
        others = [order[n_candidates:]]
        return _core.one_step_fall(model.core, [tokens], [candidates], others, [])[0]
    alone = [[c] for c in candidates]
    rest = [[other for other in candidates if other != c] for c in candidates]
    return torch.cat(_core.one_step_fall(model.core, [tokens] * len(alone), alone, rest, []))


def _interval(correlations: Sequence[float]) -> tuple[float, float, float]:
    """Mean and bounds. One text says nothing of others: a correlation may be anything."""
    if len(correlations) == 1:
        return correlations[0], -1.0, 1.0
    interval = bootstrap(correlations)
    return interval.mean, interval.low, interval.high
