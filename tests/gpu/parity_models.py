"""The whole model: logits, and the influence that one position has on the entropy of others."""

from __future__ import annotations

from functools import partial

import tabes
import torch
from attention_cases import attention_route
from naive_model import NaiveModel
from parity_report import Report
from torch import Tensor

LENGTHS = (40, 23, 64, 64, 31, 50)
EACH = 8  # candidates of a sequence, and probes
# Through six layers and back in float32.
SINGLE = 5e-5
# context, adjoint, whether the candidates are their own probes.
KINDS = {
    "exact": ("exact", "active", False),
    "frozen": ("frozen", "active", False),
    "frozen, candidates as probes": ("frozen", "active", True),
    "exact, dense adjoint": ("exact", "dense", False),
}


def canvas(length: int, mask: int, vocabulary: int) -> Tensor:
    """Half of it masked."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(4, vocabulary, (length,), generator=generator)
    tokens[torch.randperm(length, generator=generator)[: length // 2]] = mask
    return tokens


def norm(x: Tensor) -> Tensor:
    # The largest of a few scores would be a matter of luck.
    return x.pow(2).sum().sqrt()


class Questions:
    """Canvases with candidates and probes, and what float64 on the CPU says of them."""

    def __init__(self) -> None:
        self.truth = tabes.load(tabes.demo_checkpoint(), dtype="float64")
        info = self.truth.info
        self.batch = [canvas(n, info.mask_token_id, info.vocab_size) for n in LENGTHS]
        masked = [(t == info.mask_token_id).nonzero()[:, 0].tolist() for t in self.batch]
        self.candidates = [m[::2][:EACH] for m in masked]
        self.probes = [m[1::2][:EACH] for m in masked]

    def logits(self, model: tabes.Model) -> Tensor:
        return torch.cat(list(model.logits(self.batch)))

    def naive_logits(self, model: NaiveModel) -> Tensor:
        return torch.cat([model.logits(tokens) for tokens in self.batch])

    def probes_of(self, kind: str) -> list[list[int]]:
        return self.candidates if KINDS[kind][2] else self.probes

    def influence(self, model: tabes.Model, kind: str) -> Tensor:
        context, adjoint, _ = KINDS[kind]
        got = tabes.influence(
            model, self.batch, self.candidates, self.probes_of(kind), context=context,
            adjoint=adjoint,
        )  # fmt: skip
        return torch.cat(got.tis)

    def naive_influence(self, model: NaiveModel, kind: str) -> Tensor:
        context, adjoint, _ = KINDS[kind]
        asked = zip(self.batch, self.candidates, self.probes_of(kind), strict=True)
        scores = [
            model.influence(
                tokens, candidates, probes, alpha=[0.5], frozen=context == "frozen",
                active=sorted({*candidates, *probes}) if adjoint == "active" else None,
            )
            for tokens, candidates, probes in asked
        ]  # fmt: skip
        return torch.cat(scores)


def models(report: Report, dtypes: list[torch.dtype]) -> None:
    questions = Questions()
    for dtype in dtypes:
        ours = tabes.load(tabes.demo_checkpoint(), dtype=dtype, device=report.device)
        naive = None if dtype == torch.float32 else NaiveModel(report.device, dtype)
        wanted = questions.logits(questions.truth)
        plain = None if naive is None else (questions.naive_logits(naive),)
        got = questions.logits(ours)
        report.compare("model.logits", dtype, (got,), (wanted,), plain)
        logits = partial(questions.logits, ours)
        report.again("model.logits", dtype, (got,), logits)
        for kind in KINDS:
            wanted = questions.influence(questions.truth, kind)
            plain = None if naive is None else (questions.naive_influence(naive, kind),)
            # FlashAttention-2 has no float32, and only our own route is the same every time.
            other = ["flash"] if report.device == "cuda" and dtype != torch.float32 else []
            for route in ["own", *other]:
                with attention_route(route):
                    influence = partial(questions.influence, ours, kind)
                    got = influence()
                    name = f"tabes.influence, {route}: {kind}"
                    report.compare(name, dtype, (got,), (wanted,), plain, 3.0, SINGLE, norm)
                    if route == "own":
                        report.again(name, dtype, (got,), influence)
