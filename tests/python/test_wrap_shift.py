"""Models whose output at i - 1 predicts position i (Dream), against plain Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tabes
import torch
from reference import Reference, influence
from torch import nn
from wrapped_models import MASK, Known, canvas, make, reference_of, relative, split

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.case("N01")]

NAMES = ["qwen3", "bert", "esm", "module", "function"]


def shifted(logits: torch.Tensor) -> torch.Tensor:
    """[L, V]: every row one to the right, the first stays; as Dream's own sampler does it."""
    return torch.cat([logits[:1], logits[:-1]])


class DreamLike(Known):
    """Takes ids or embeddings, as Dream's model does, and returns an output with .logits."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
        x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        return {"logits": super().forward(x)}


def build(name: str) -> tuple[tabes.Model, Callable[[torch.Tensor], torch.Tensor], Reference]:
    """The wrapped model; its own unshifted logits [L, V] of tokens [L]; the shifted reference."""
    if name in ("module", "function"):
        module = DreamLike()
        reference = Reference(
            module.table.weight.detach(),
            lambda x, _=None: shifted(module(inputs_embeds=x[None])["logits"][0]),
            MASK,
        )
        own = module
        if name == "module":
            wrapped = tabes.wrap(module, mask_token_id=MASK, logit_shift=True)
        else:
            wrapped = tabes.wrap(
                lambda inputs_embeds: module(inputs_embeds=inputs_embeds),
                mask_token_id=MASK, embedding_table=module.table.weight, logit_shift=True,
            )  # fmt: skip
        return wrapped, lambda t: own(t[None])["logits"][0], reference
    model = make(name)
    before = copy.deepcopy(model)
    plain = reference_of(model, canvas(22, 6))
    reference = Reference(plain.table, lambda x, a=None: shifted(plain.logits(x, a)), MASK)
    wrapped = tabes.wrap(model, mask_token_id=MASK, logit_shift=True)
    return wrapped, lambda t: before(input_ids=t[None]).logits[0], reference


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_shifted_by_one(name: str) -> None:
    wrapped, own, _ = build(name)
    for tokens in (canvas(22, 6, vocab=20), torch.tensor([5]), torch.tensor([5, MASK])):
        with torch.no_grad():
            unshifted = own(tokens).float()
        got = wrapped.logits([tokens])[0]
        assert relative(got, shifted(unshifted)) <= 1e-6
        if len(tokens) > 2:
            assert relative(got, unshifted) > 0.1


def plain_decode(
    own: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, steps: int, policy: str
) -> torch.Tensor:
    x = tokens.clone()
    total = int((x == MASK).sum())
    for i in range(steps):
        where = (x == MASK).nonzero()[:, 0]
        with torch.no_grad():
            logits = shifted(own(x))[where].double()
        logits[:, MASK] = -torch.inf
        p = logits.softmax(-1)
        top = p.topk(2, -1).values
        score = {
            "confidence": top[:, 0],
            "margin": top[:, 0] - top[:, 1],
            "entropy": -torch.special.entr(p).sum(-1),
        }[policy]
        count = total // steps + (i < total % steps)
        chosen = score.argsort(descending=True, stable=True)[:count]
        x[where[chosen]] = p.argmax(-1)[chosen]
    return x


@pytest.mark.parametrize("policy", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("name", NAMES)
def test_decodes_equal_a_plain_loop(name: str, policy: str) -> None:
    wrapped, own, _ = build(name)
    batch = [canvas(length, length, vocab=20, masks=0.7) for length in (22, 9, 22, 14)]
    batch[0][0] = batch[1][-1] = MASK  # the first row predicts itself
    batch[2][0] = 5
    out = tabes.generate(wrapped, batch, steps=5, policy=policy)
    unshifted = 0
    for before, after in zip(batch, out.tokens, strict=True):
        assert after.tolist() == plain_decode(own, before, 5, policy).tolist()
        unshifted += after.tolist() == plain_decode(lambda t: own(t).roll(-1, 0), before, 5, policy)
    assert unshifted == 0  # so that a shift left out would have been seen


@pytest.mark.parametrize("name", NAMES)
def test_tis_equals_autograd(name: str) -> None:
    wrapped, _, reference = build(name)
    tokens = canvas(22, 6, vocab=20)
    candidates, probes = split(tokens, count=3)
    limit = 2e-5 if name in ("qwen3", "esm") else 1e-9
    plain = name in ("module", "function")  # which cannot tell rows apart
    for adjoint, halo in (("active", 0), ("active", 1), ("dense", 0)):
        # A probe is predicted by the row before it, which must be active as well.
        near = {p + h for p in candidates + probes for h in range(-halo, halo + 1)}
        near |= {max(0, p - 1) for p in probes}
        active = sorted(row for row in near if 0 <= row < len(tokens))
        wanted = influence(
            reference, tokens, candidates, probes, alpha=[0.25, 1.0], tau=0.7,
            active=None if plain or adjoint == "dense" else active,
        )  # fmt: skip
        got = tabes.influence(
            wrapped, [tokens], [candidates], [probes], [0.25, 1.0], 0.7, halo, "exact", adjoint
        )
        assert relative(got.tis[0], wanted) <= limit, (adjoint, halo)


def test_a_causal_model_is_causal_under_a_shift_too() -> None:
    model = make("qwen3")
    model.config.is_causal = True
    for layer in model.model.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(tabes.InputError, match="Qwen3ForCausalLM is causal"):
        tabes.wrap(model, mask_token_id=MASK, logit_shift=True)


def test_steered_decodes_of_a_shifted_model() -> None:
    """The same model with its head's rows moved by hand, unshifted."""

    class Moved(nn.Module):
        def __init__(self, inner: Known) -> None:
            super().__init__()
            self.inner = inner.eval()
            self.eval()

        def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
            out = self.inner(inputs_embeds)
            return torch.cat([out[:, :1], out[:, :-1]], 1)

    module = Known()
    a = tabes.wrap(module, mask_token_id=MASK, logit_shift=True)
    b = tabes.wrap(Moved(module), mask_token_id=MASK, embedding_table=module.table.weight)
    batch = [canvas(length, length, vocab=20, masks=0.8) for length in (22, 9, 14)]
    for policy in ("boe", "boe_paper", tabes.BoE(halo=1), "klass", "oracle"):
        for options in ({}, {"temperature": 0.9, "seed": 4}, {"block_length": 6}):
            ours, theirs = (
                tabes.generate(m, batch, steps=5, policy=policy, **options) for m in (a, b)
            )
            for x, y in zip(ours.tokens, theirs.tokens, strict=True):
                assert x.tolist() == y.tolist()
