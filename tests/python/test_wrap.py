"""Wrapped models against transformers, plain autograd and the native model."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
import transformers
from reference import Reference, influence
from wrapped_models import (
    MASK,
    ROUNDS,
    SIZES,
    TINY,
    Known,
    Mixer,
    canvas,
    make,
    reference_of,
    relative,
    split,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- transformers models -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    batch = [canvas(length, length) for length in (30, 11, 30, 1, 40)]
    batch[3][0] = 5
    with torch.no_grad():
        before = [model(input_ids=t[None]).logits[0] for t in batch]
        stacked = model(input_ids=torch.stack([batch[0], batch[2]])).logits
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    limit = 1e-5 if dtype == torch.float32 else 1e-6 if name in ROUNDS else 1e-12
    for got, wanted in zip(wrapped.logits(batch), before, strict=True):
        assert relative(got, wanted) <= limit
    assert relative(wrapped.logits([batch[0], batch[2]]), stacked) <= limit
    # The model itself computes what it did, with padding and masks of its own.
    with torch.no_grad():
        after = [model(input_ids=t[None]).logits[0] for t in batch]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    info = wrapped.info
    assert (info.family, info.vocab_size, info.hidden_size) == (model.config.model_type, 50, 32)
    assert (info.mask_token_id, info.num_layers, info.pad_token_id) == (MASK, 3, 0)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.max_length == (63 if name == "esm_positions" else 64)


def test_padding_of_a_plain_forward_still_works() -> None:
    model = make("modernbert", torch.float32)
    ids = torch.stack([canvas(30, 1), canvas(30, 2)])
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 20:] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=attention_mask).logits
        tabes.wrap(model, mask_token_id=MASK)
        after = model(input_ids=ids, attention_mask=attention_mask).logits
    assert torch.equal(before, after)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.decoder.weight.grad is not None


@pytest.mark.parametrize("by", ["operator", "definition"])
@pytest.mark.parametrize("name", TINY)
def test_tis_equals_autograd_with_stopped_attention(
    name: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    batch = [canvas(length, length) for length in (30, 17, 30)]
    references = [reference_of(model, tokens) for tokens in batch]
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    calls = count_calls(monkeypatch)
    if by == "definition":
        monkeypatch.setattr(importlib.import_module("tabes.attention"), "_fits", lambda *_: False)
    candidates, probes = (list(s) for s in zip(*map(split, batch), strict=True))
    limit = 2e-5 if name in ROUNDS else 1e-9
    apart = []
    for alpha, halo, adjoint, tau in (
        ([0.5], 0, "active", 1.0),
        ([0.25, 1.0], 1, "active", 0.5),
        ([0.0], 0, "active", 0.0),
        ([0.5], 0, "dense", 1.0),
    ):
        got = tabes.influence(
            wrapped, batch, candidates, probes, alpha, tau, halo, "exact", adjoint, forbidden=[7]
        )
        for b, tokens in enumerate(batch):
            near = {p + h for p in candidates[b] + probes[b] for h in range(-halo, halo + 1)}
            active = sorted(row for row in near if 0 <= row < len(tokens))
            wanted = influence(
                references[b], tokens, candidates[b], probes[b], alpha=alpha, tau=tau,
                active=active if adjoint == "active" else None, forbidden=[7],
            )  # fmt: skip
            assert relative(got.tis[b], wanted) <= limit, (alpha, halo, adjoint)
            if alpha == [0.5]:
                apart.append(got.tis[b])
        assert got.forward_rows == 77 * (1 + len(alpha))
        assert got.backward_rows == 77 * len(alpha)
    # The two adjoints are not the same thing.
    assert relative(apart[0], apart[3]) > 1e-3
    assert bool(calls) == (by == "operator")


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every call of our attention operator from Python."""
    calls: list[None] = []
    operator = torch.ops.tabes.active_query_attention

    def counted(*args: Any) -> torch.Tensor:
        calls.append(None)
        return operator(*args)

    monkeypatch.setattr(torch.ops.tabes, "active_query_attention", counted)
    return calls


@pytest.mark.parametrize("name", TINY)
def test_dense_tis_is_the_derivative_by_alpha(name: str) -> None:
    wrapped = tabes.wrap(make(name), mask_token_id=MASK)
    tokens = canvas(30, 3)
    candidates, probes = split(tokens)

    def at(alpha: float) -> tabes.Influence:
        return tabes.influence(
            wrapped, [tokens], [candidates], [probes], alpha=alpha, adjoint="dense"
        )

    h = 1e-2 if name in ROUNDS else 1e-3
    f = {k: at(0.5 + k * h).predicted_entropy[0] for k in (-2, -1, 1, 2)}
    slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
    got = -at(0.5).tis[0].sum().item()
    assert got == pytest.approx(slope, rel=3e-3 if name in ROUNDS else 1e-6)


# ---- BERT against the native model ---------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(rxnfp_checkpoint: Path) -> tuple[tabes.Model, tabes.Model]:
    """The reaction BERT in float64, where no rounding decides between tokens: native, wrapped."""
    native = tabes.load(rxnfp_checkpoint, dtype="float64")
    model = transformers.BertForMaskedLM.from_pretrained(rxnfp_checkpoint).double()
    wrapped = tabes.wrap(model, mask_token_id=native.info.mask_token_id, tokenizer=native.tokenizer)
    assert wrapped.info.special_token_ids == native.info.special_token_ids != []
    return native, wrapped


def reactions(model: tabes.Model, number: int) -> list[torch.Tensor]:
    out = []
    for i in range(number):
        tokens = canvas(16 + 3 * (i % 3), i, model.info.vocab_size, masks=0.6)
        tokens[tokens == MASK] = model.info.mask_token_id
        out.append(tokens)
    return out


def test_bert_scores_equal_the_native_ones(pair: tuple[tabes.Model, tabes.Model]) -> None:
    native, wrapped = pair
    batch = reactions(native, 3)
    for ours, theirs in zip(wrapped.logits(batch), native.logits(batch), strict=True):
        assert relative(ours, theirs) <= 1e-11
    mask = native.info.mask_token_id
    candidates, probes = (list(s) for s in zip(*(split(t, mask) for t in batch), strict=True))
    worst = 0.0
    for alpha, halo, adjoint in (
        (0.5, 0, "active"), ([0.25, 0.5], 2, "active"), (1.0, 0, "active"), (0.5, 0, "dense"),
    ):  # fmt: skip
        ours, theirs = (
            tabes.influence(
                m, batch, candidates, probes, alpha=alpha, halo=halo, adjoint=adjoint, tau=0.7
            )
            for m in (wrapped, native)
        )
        for a, b in zip(ours.tis, theirs.tis, strict=True):
            worst = max(worst, relative(a, b))
        assert ours.predicted_entropy == pytest.approx(theirs.predicted_entropy, rel=1e-9)
    print(f"largest relative difference of influence scores: {worst:.1e}")
    assert worst <= 1e-8


@pytest.mark.parametrize(
    "policy",
    ["confidence", "boe_paper", tabes.BoE(context="exact", alpha=[0.25, 0.5], halo=1)],
    ids=["confidence", "paper", "own"],
)
def test_bert_decodes_equal_the_native_ones(
    policy: Any, pair: tuple[tabes.Model, tabes.Model]
) -> None:
    batch = reactions(pair[0], 4)
    ours, theirs = (tabes.generate(m, batch, steps=5, policy=policy) for m in pair[::-1])
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        assert a.tolist() == b.tolist()
    steered = policy != "confidence"
    assert (ours.backward_rows > 0) == steered
    for a, b in zip(ours.trace, theirs.trace, strict=True):
        assert a.position.tolist() == b.position.tolist()


def test_text_goes_through_the_tokenizer_of_transformers(
    rxnfp_checkpoint: Path, rxnfp_model: tabes.Model
) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(rxnfp_checkpoint)
    tokenizer = transformers.BertTokenizer(str(rxnfp_checkpoint / "vocab.txt"), do_lower_case=False)
    text = "CC(=O)[MASK][MASK]CC"
    native = tabes.generate(rxnfp_model, text, steps=2)
    assert rxnfp_model.tokenizer is not None
    for given in (tokenizer, tokenizer.backend_tokenizer, rxnfp_model.tokenizer):
        wrapped = tabes.wrap(model, tokenizer=given)  # which knows the mask token
        out = tabes.generate(wrapped, text, steps=2)
        assert torch.is_tensor(out.tokens)
        assert (out.texts is None) == (native.texts is None)
    with pytest.raises(tabes.InputError, match="tokenizer is a object"):
        tabes.wrap(model, tokenizer=object(), mask_token_id=4)
    silent = tabes.wrap(model, mask_token_id=4)
    with pytest.raises(tabes.InputError, match="has no tokenizer"):
        tabes.generate(silent, text)


# ---- Modules and functions -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["module", "known", "function", "dict", "tuple"])
def test_any_module_or_function(form: str) -> None:
    module = Known() if form == "known" else Mixer()
    table = None if form == "known" else module.table.weight
    model: Callable[..., Any] = {
        "module": module,
        "known": module,
        "function": lambda inputs_embeds: module(inputs_embeds),
        "dict": lambda inputs_embeds: {"logits": module(inputs_embeds)},
        "tuple": lambda inputs_embeds: (module(inputs_embeds), None),
    }[form]
    wrapped = tabes.wrap(model, mask_token_id=MASK, embedding_table=table, eos_token_ids=[2])
    assert wrapped.info.eos_token_id == 2
    tokens = canvas(14, 1, vocab=20)
    embeddings = module.table.weight.detach()
    reference = Reference(embeddings, lambda x, _: module(x[None])[0], MASK)
    candidates, probes = split(tokens, count=3)
    wanted = influence(reference, tokens, candidates, probes, alpha=[0.5])
    for adjoint in ("active", "dense"):  # which it cannot tell apart
        got = tabes.influence(wrapped, [tokens], [candidates], [probes], adjoint=adjoint)
        assert relative(got.tis[0], wanted) <= 1e-10
    out = tabes.generate(wrapped, tokens, steps=3, policy="boe_paper")
    assert not (out.tokens == MASK).any()
    assert out.backward_rows > 0
    limited = tabes.wrap(model, mask_token_id=MASK, embedding_table=table, max_length=13)
    with pytest.raises(tabes.InputError, match="at most 13"):
        tabes.generate(limited, tokens)


def test_logit_shift_moves_rows() -> None:
    module = Known()

    def ahead(inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Row i - 1 holds what row i predicts; the first row's own prediction is lost."""
        return module(inputs_embeds).roll(-1, 1)

    plain = tabes.wrap(module, mask_token_id=MASK)
    shifted = tabes.wrap(
        ahead, mask_token_id=MASK, embedding_table=module.table.weight, logit_shift=True
    )
    tokens = torch.cat([torch.tensor([5]), canvas(13, 4, vocab=20)])
    assert torch.equal(plain.logits([tokens])[0, 1:], shifted.logits([tokens])[0, 1:])
    candidates, probes = split(tokens, count=3)
    scores = [
        tabes.influence(m, [tokens], [candidates], [probes], adjoint="dense").tis[0]
        for m in (plain, shifted)
    ]
    assert relative(scores[1], scores[0]) <= 1e-12


def test_equal_lengths_are_one_call() -> None:
    module, shapes = Mixer(), []

    def seen(inputs_embeds: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(inputs_embeds.shape))
        assert torch.is_grad_enabled() == inputs_embeds.requires_grad
        return module(inputs_embeds)

    wrapped = tabes.wrap(seen, mask_token_id=MASK, embedding_table=module.table.weight)
    batch = [canvas(length, i, vocab=20) for i, length in enumerate((9, 12, 9, 9))]
    together = wrapped.logits(batch)
    assert sorted(shapes) == [(1, 12, 8), (3, 9, 8)]
    for b, tokens in enumerate(batch):
        assert torch.allclose(together[b], wrapped.logits([tokens])[0], rtol=1e-12)
    shapes.clear()
    tabes.influence(wrapped, batch, *map(list, zip(*map(split, batch), strict=True)))
    assert sorted(shapes) == [(1, 12, 8)] * 2 + [(3, 9, 8)] * 2


# ---- What must not matter ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    [
        nullcontext,
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["none", "no_grad", "enable_grad", "inference_mode", "autocast"],
)
def test_modes_of_the_caller_make_no_difference(
    mode: Callable[[], AbstractContextManager[Any]],
) -> None:
    model = make("esm", torch.float32)
    tokens = canvas(30, 3)
    sets = [[s] for s in split(tokens)]
    plain = tabes.wrap(model, mask_token_id=MASK)
    wanted = tabes.influence(plain, [tokens], *sets)
    decoded = tabes.generate(plain, tokens, steps=3, policy="boe_paper")
    with mode():
        for wrapped in (plain, tabes.wrap(model, mask_token_id=MASK)):
            got = tabes.influence(wrapped, [tokens], *sets)
            assert torch.equal(got.tis[0], wanted.tis[0])
            out = tabes.generate(wrapped, tokens, steps=3, policy="boe_paper")
            assert torch.equal(out.tokens, decoded.tokens)
            assert torch.equal(wrapped.logits([tokens]), plain.logits([tokens]))


def test_parameters_are_left_alone() -> None:
    model = make("bert")
    first, *others = model.parameters()
    first.requires_grad_(False)
    tokens = canvas(30, 3)
    tabes.influence(tabes.wrap(model, mask_token_id=MASK), [tokens], *([s] for s in split(tokens)))
    assert all(p.grad is None for p in model.parameters())
    assert not first.requires_grad
    assert all(p.requires_grad for p in others)
    # Frozen weights are as good.
    frozen = tabes.wrap(model.requires_grad_(False), mask_token_id=MASK)
    assert tabes.influence(frozen, [tokens], *([s] for s in split(tokens))).backward_rows == 30


def test_threads_do_not_meet() -> None:
    wrapped = tabes.wrap(make("bert"), mask_token_id=MASK)
    batch = [canvas(20 + i, i) for i in range(4)]
    sets = [[[s] for s in split(tokens)] for tokens in batch]
    wanted = [tabes.influence(wrapped, [t], *s).tis[0] for t, s in zip(batch, sets, strict=True)]
    got: dict[int, list[torch.Tensor]] = {}

    def run(i: int) -> None:
        got[i] = [tabes.influence(wrapped, [batch[i]], *sets[i]).tis[0] for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, tis in enumerate(wanted):
        assert all(relative(t, tis) <= 1e-12 for t in got[i])


def test_guidance_on_an_esm_with_everything_masked() -> None:
    wrapped = tabes.wrap(make("esm", torch.float32), mask_token_id=MASK)
    assert wrapped.logits([torch.full((6,), MASK)]).isfinite().all()
    tokens = canvas(20, 1)
    out = tabes.generate(wrapped, tokens, steps=3, cfg_scale=0.5)
    assert not (out.tokens == MASK).any()
    assert not wrapped.core.embedding_table()[MASK].any()


def test_positions_counted_from_the_padding_id() -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        **SIZES | {"max_position_embeddings": 20, "pad_token_id": 1}, bos_token_id=0, eos_token_id=2
    )
    model = transformers.RobertaForMaskedLM(config).eval()
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    assert wrapped.info.max_length == 18
    tokens = canvas(18, 1)
    wanted = model(input_ids=tokens[None]).logits[0].detach()
    assert relative(wrapped.logits([tokens])[0], wanted) <= 1e-6
    with pytest.raises(tabes.InputError, match="at most 18"):
        wrapped.logits([canvas(19, 1)])


def test_attention_out_of_reach_is_said() -> None:
    config = transformers.DebertaV2Config(**SIZES, type_vocab_size=0)
    model = transformers.DebertaV2ForMaskedLM(config).eval()
    with pytest.warns(
        UserWarning, match="cannot be replaced through transformers' AttentionInterface"
    ):
        wrapped = tabes.wrap(model, mask_token_id=MASK)
    tokens = canvas(20, 1)
    sets = [[s] for s in split(tokens)]
    active, dense = (
        tabes.influence(wrapped, [tokens], *sets, adjoint=a).tis[0] for a in ("active", "dense")
    )
    assert torch.equal(active, dense)


@pytest.mark.parametrize("name", ["bert", "modernbert", "esm"])
def test_bfloat16_stays_near(name: str) -> None:
    exact, rounded = (
        tabes.wrap(make(name, dtype), mask_token_id=MASK)
        for dtype in (torch.float64, torch.bfloat16)
    )
    tokens = canvas(30, 3)
    assert relative(rounded.logits([tokens]), exact.logits([tokens])) <= 0.05
    a, b = (
        tabes.influence(m, [tokens], *([s] for s in split(tokens)), alpha=0.0).tis[0]
        for m in (exact, rounded)
    )
    assert relative(b, a) <= 0.3
    out = tabes.generate(rounded, tokens, steps=3, policy="boe_paper")
    assert not (out.tokens == MASK).any()


def test_transformers_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    wrapped = tabes.wrap(Known(), mask_token_id=MASK)
    assert tabes.generate(wrapped, [5, 3, 3, 3, 6], steps=2, policy="boe_paper").finished


@pytest.fixture(autouse=True)
def _no_active_rows_left() -> Iterator[None]:
    yield
    from tabes.attention import _active

    assert _active.get() is None
