"""Wrapped models against transformers, plain autograd and the native model."""

from __future__ import annotations

import copy
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
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

MASK = 3
SIZES: dict[str, Any] = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=40, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model, its weights large enough that rows matter to each other."""
    torch.manual_seed(7)
    sizes = SIZES | changes
    if name == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
    elif name == "modernbert":
        ends = dict.fromkeys(("bos_token_id", "cls_token_id"), 1)
        ends |= dict.fromkeys(("eos_token_id", "sep_token_id"), 2)
        config = transformers.ModernBertConfig(**sizes, **ends, local_attention=8)
        model = transformers.ModernBertForMaskedLM(config)
    elif name in ("esm", "esm_positions"):
        config = transformers.EsmConfig(
            **sizes, token_dropout=True, mask_token_id=MASK, emb_layer_norm_before=False,
            position_embedding_type="rotary" if name == "esm" else "absolute",
        )  # fmt: skip
        model = transformers.EsmForMaskedLM(config)
    else:
        config = transformers.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16)
        config.is_causal = False
        model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(6)
    return model.to(dtype).eval()


# These rotate or normalise in float32 whatever their dtype.
ROUNDS = ["modernbert", "qwen3", "esm"]
TINY = ["bert", "modernbert", "esm", "esm_positions", "qwen3"]


def canvas(length: int, seed: int, vocab: int = 50, masks: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, vocab, (length,), generator=generator)
    tokens[torch.randperm(length, generator=generator)[: int(masks * length)]] = MASK
    return tokens


def split(tokens: torch.Tensor, mask: int = MASK, count: int = 4) -> tuple[list[int], list[int]]:
    masked = (tokens == mask).nonzero()[:, 0].tolist()
    return masked[::2][:count][::-1], masked[1::2][:count]


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# ---- The reference: stopped attention written out, in a copy of the model ------------------------

_kept: list[torch.Tensor | None] = [None]


def stopped(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    if _kept[0] is not None:
        out = torch.where(_kept[0][None, :, None, None], out, out.detach())
    return out, None


def reference_of(model: Any, tokens: torch.Tensor) -> Reference:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    transformers.AttentionInterface.register("stopped", stopped)
    transformers.AttentionMaskInterface.register("stopped", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = copy.deepcopy(model)
    model.set_attn_implementation("stopped")
    table = model.get_input_embeddings().weight.detach().clone()
    share = None
    if getattr(model.config, "token_dropout", False):
        table[MASK] = 0
        share = 1 - (tokens == MASK).float().mean()  # in float32, as transformers computes it

    def logits(x: torch.Tensor, active: torch.Tensor | None = None) -> torch.Tensor:
        _kept[0] = active
        try:
            x = (x if share is None else x * 0.88 / share)[None]
            if model.config.model_type == "esm":
                x = model.esm.embeddings(inputs_embeds=x)
            return model(inputs_embeds=x).logits[0]
        finally:
            _kept[0] = None

    return Reference(table, logits, MASK)


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
        monkeypatch.setattr(importlib.import_module("tabes.wrap"), "_fits", lambda *_: False)
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
    return native, tabes.wrap(model, mask_token_id=native.info.mask_token_id)


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
    with pytest.raises(tabes.InputError, match="no backend_tokenizer"):
        tabes.wrap(model, tokenizer=object(), mask_token_id=4)
    silent = tabes.wrap(model, mask_token_id=4)
    with pytest.raises(tabes.InputError, match="has no tokenizer"):
        tabes.generate(silent, text)


# ---- Modules and functions -----------------------------------------------------------------------


class Mixer(nn.Module):
    """A model that no library knows: attention of its own, then a projection."""

    def __init__(self, vocab: int = 20, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(vocab, width)
        self.out = nn.Linear(width, vocab)
        self.double().eval()

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        x = inputs_embeds
        return self.out(x + (x @ x.transpose(1, 2)).softmax(-1) @ x.tanh())


class Known(Mixer):
    def get_input_embeddings(self) -> nn.Module:
        return self.table


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


# ---- Errors --------------------------------------------------------------------------------------


class OddError(Exception):
    pass


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise OddError("backward")


def score(model: Callable[..., Any]) -> None:
    wrapped = tabes.wrap(model, mask_token_id=MASK, embedding_table=torch.ones(20, 8))
    tabes.influence(wrapped, [[5, 3, 3, 6]], [[1]], [[2]])


def fails(inputs_embeds: torch.Tensor) -> torch.Tensor:
    raise OddError("forward")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda inputs_embeds: inputs_embeds, tabes.InputError, r"expected \[1, 4, 20\]"),
        (lambda inputs_embeds: inputs_embeds[0], tabes.InputError, "logits of shape"),
        (lambda inputs_embeds: torch.ones(1, 4, 20), tabes.InputError, "finds no way"),
        (
            lambda inputs_embeds: torch.ones(1, 4, 20, requires_grad=True),
            tabes.InputError,
            "do not depend",
        ),
        (lambda inputs_embeds: "words", tabes.InputError, "returned str, not logits"),
        (lambda inputs_embeds: None, tabes.InputError, "returned NoneType, not logits"),
        (
            lambda inputs_embeds: torch.ones(1, 4, 20, dtype=torch.int64),
            tabes.InputError,
            "logits of type",
        ),
        (fails, OddError, "forward"),
        (
            lambda inputs_embeds: FailsBackward.apply(F.pad(inputs_embeds, (0, 12))),
            OddError,
            "backward",
        ),
        (
            # Zero, with a derivative that is not a number.
            lambda inputs_embeds: F.pad(inputs_embeds + (inputs_embeds * 0).sqrt() * 0, (0, 12)),
            tabes.NumericsError,
            "influence of sequence 0, position 1",
        ),
        (
            lambda inputs_embeds: F.pad(inputs_embeds * torch.nan, (0, 12)),
            tabes.NumericsError,
            "is not a number",
        ),
    ],
)
def test_failing_functions(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score(model)
    # Nothing is left behind that would disturb the next call.
    score(lambda inputs_embeds: F.pad(inputs_embeds, (0, 12)))


def test_nan_gradients_stop_a_decode() -> None:
    wrapped = tabes.wrap(
        lambda inputs_embeds: F.pad(inputs_embeds + (inputs_embeds * 0).sqrt() * 0, (0, 12)),
        mask_token_id=MASK,
        embedding_table=torch.randn(20, 8),
    )
    with pytest.raises(tabes.NumericsError, match="influence of sequence 0, position 1"):
        tabes.generate(wrapped, [5, 3, 3, 3, 3, 3, 3, 6], steps=3, policy="boe_paper")


def test_one_nan_gradient_among_equal_ones_stops_a_decode() -> None:
    """Scaled to the unit interval the others would have hidden it."""

    def logits(inputs_embeds: torch.Tensor) -> torch.Tensor:
        broken = (inputs_embeds[:, 2:3] * 0).sqrt() * 0
        return F.pad(inputs_embeds * 0 + broken, (0, 12))

    wrapped = tabes.wrap(logits, mask_token_id=MASK, embedding_table=torch.randn(20, 8))
    with pytest.raises(tabes.NumericsError, match="influence of sequence 0, position 2"):
        tabes.generate(wrapped, [5, 3, 3, 3, 3, 3, 3, 6], steps=3, policy="boe_paper")


def headless() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


def causal() -> Any:
    config = transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)
    return transformers.Qwen3ForCausalLM(config).eval()


def encoder_decoder() -> Any:
    config = transformers.BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


class UsesIds(transformers.BertForMaskedLM):
    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        out = super().forward(input_ids=input_ids, **options)
        if input_ids is not None:
            out.logits = out.logits + input_ids[..., None]
        return out


def uses_ids() -> Any:
    return UsesIds(transformers.BertConfig(**SIZES)).eval()


def in_training() -> Any:
    model = make("bert")
    model.bert.encoder.train()
    return model


def of_inference_mode() -> Any:
    with torch.inference_mode():
        return make("bert")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (headless, "wrap a model with a language-model head"),
        (causal, "Qwen3ForCausalLM is causal"),
        (encoder_decoder, "cannot be called with inputs_embeds"),
        (uses_ids, "other logits from embeddings"),
        (in_training, "is in training mode"),
        (of_inference_mode, "made under torch.inference_mode"),
        (Mixer, "input embeddings of Mixer cannot be reached"),
        (lambda: len, "input embeddings of builtin_function_or_method cannot be reached"),
        (lambda: 5, "cannot be called"),
    ],
)
def test_models_that_cannot_be_wrapped(build: Callable[[], Any], message: str) -> None:
    model = build()
    with pytest.raises(tabes.InputError, match=message):
        tabes.wrap(model, mask_token_id=MASK)
    if isinstance(model, transformers.PreTrainedModel):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(mask_token_id=None), tabes.InputError, "no mask token is known"),
        (dict(mask_token_id=50), tabes.InputError, "mask token 50 is outside"),
        (dict(mask_token_id="x"), tabes.InputError, "must be an integer"),
        (dict(max_length=0), tabes.InputError, "max_length must be at least 1"),
        (dict(eos_token_ids=[-1]), tabes.InputError, "end token -1 is outside"),
        (dict(embedding_table=torch.ones(5)), tabes.InputError, r"a tensor \[V, D\]"),
        (dict(embedding_table=torch.ones(50, 32).half()), tabes.DeviceError, "Half on cpu"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tabes.wrap(make("bert"), **{"mask_token_id": MASK} | options)


def test_training_mode_after_wrapping_is_refused() -> None:
    model = make("bert")
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    model.train()
    with pytest.raises(tabes.InputError, match="put in training mode"):
        wrapped.logits([canvas(9, 1)])
    model.eval()
    wrapped.logits([canvas(9, 1)])


def test_there_is_no_frozen_context() -> None:
    wrapped = tabes.wrap(make("bert"), mask_token_id=MASK)
    tokens = canvas(20, 1)
    with pytest.raises(tabes.InputError, match="no frozen context"):
        tabes.influence(wrapped, [tokens], *([s] for s in split(tokens)), context="frozen")
    # The policy takes the exact context instead.
    frozen, exact = (
        tabes.generate(wrapped, tokens, steps=8, policy=tabes.BoE(context=context))
        for context in ("frozen", "exact")
    )
    assert frozen.tokens.tolist() == exact.tokens.tolist()
    assert frozen.backward_rows == exact.backward_rows > 0


@pytest.fixture(autouse=True)
def _no_active_rows_left() -> Iterator[None]:
    yield
    from tabes.wrap import _active

    assert _active.get() is None
