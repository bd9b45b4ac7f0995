"""What becomes of a wrapped model when the model itself is changed; wrappers around models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
import transformers
from torch import nn
from wrapped_models import MASK, SIZES, Known, Mixer, canvas, make, relative, split

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.case("F22")]


class Scaled(nn.Embedding):
    """Does more than look up, as Gemma's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 3


class WithScaled(Known):
    def __init__(self) -> None:
        super().__init__()
        self.table = Scaled(20, 8).double().eval()


class ByMethod(Mixer):
    def score(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return self.forward(inputs_embeds)


def build(name: str) -> tuple[Any, Callable[[], tabes.Model]]:
    """A model and a function that wraps it."""
    if name == "given":
        mixer = Mixer()
        return mixer, lambda: tabes.wrap(
            mixer, mask_token_id=MASK, embedding_table=mixer.table.weight
        )
    if name in ("method", "partial"):
        inner = ByMethod()
        called = inner.score if name == "method" else functools.partial(inner.score)
        return inner, lambda: tabes.wrap(
            called, mask_token_id=MASK, embedding_table=inner.table.weight
        )
    model = {"known": Known, "scaled": WithScaled}.get(name, lambda: make(name))()
    return model, lambda: tabes.wrap(model, mask_token_id=MASK)


KINDS = ["bert", "esm", "qwen3", "known", "scaled", "given", "method", "partial"]
COPIED = ["esm", "scaled"]  # their table is not the model's own memory


def table_of(model: Any) -> nn.Embedding:
    found = getattr(model, "table", None)
    return model.get_input_embeddings() if found is None else found


def assigned(model: Any) -> None:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def other_parameter(model: Any) -> None:
    table_of(model).weight = nn.Parameter(table_of(model).weight.detach() * 2)


def there_and_back(model: Any) -> None:
    model.to(torch.float32)
    model.to(torch.float64)


REPLACED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "assign": (assigned, "they were replaced"),
    "parameter": (other_parameter, "they were replaced"),
    "dtype": (lambda m: m.to(torch.float32), r"float64 on cpu and are \[\d+, \d+\] float32"),
    "dtype and back": (there_and_back, "they were replaced"),
    "device": (lambda m: m.to("meta"), "on cpu and are .* on meta"),
    "data": (lambda m: setattr(table_of(m).weight, "data", torch.zeros(3, 3)), r"are \[3, 3\]"),
}


@pytest.mark.parametrize("change", REPLACED)
@pytest.mark.parametrize("kind", KINDS)
def test_another_table_is_noticed(kind: str, change: str) -> None:
    model, wrap = build(kind)
    wrapped = wrap()
    tokens = canvas(9, 1, vocab=20)
    wrapped.logits([tokens])
    alter, message = REPLACED[change]
    alter(model)
    sets = [[s] for s in split(tokens)]
    for call in (
        lambda: wrapped.logits([tokens]),
        lambda: tabes.generate(wrapped, tokens, steps=2),
        lambda: tabes.influence(wrapped, [tokens], *sets),
    ):
        with pytest.raises(tabes.InputError, match=f"{message}.*call tabes.wrap again"):
            call()


@pytest.mark.parametrize("how", ["resize", "set", "none"])
def test_another_embedding_layer_is_noticed(how: str) -> None:
    model = make("bert")
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    if how == "resize":
        model.resize_token_embeddings(52)
    elif how == "set":
        model.set_input_embeddings(nn.Embedding(50, 32).double().eval())
    else:
        model.get_input_embeddings = lambda: None
    with pytest.raises(tabes.InputError, match="are not those it was wrapped with"):
        wrapped.logits([canvas(9, 1)])
    if how == "none":
        return
    # What the message says helps.
    tokens = canvas(9, 1)
    again = tabes.wrap(model, mask_token_id=MASK)
    with torch.no_grad():
        wanted = model(input_ids=tokens[None]).logits
    assert relative(again.logits([tokens]), wanted) <= 1e-6
    assert again.info.vocab_size == (52 if how == "resize" else 50)


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_place_is_followed_or_noticed(kind: str) -> None:
    model, wrap = build(kind)
    wrapped = wrap()
    tokens = canvas(9, 1, vocab=20)
    before = wrapped.logits([tokens])
    with torch.no_grad():
        table_of(model).weight.mul_(0.5)
    if kind in COPIED:
        with pytest.raises(tabes.InputError, match="changed where a copy is kept"):
            wrapped.logits([tokens])
        wrapped = wrap()
    after = wrapped.logits([tokens])
    assert relative(after, before) > 1e-3
    assert relative(after, wrap().logits([tokens])) == 0
    # Weights loaded in place are the same case: state dicts are copied into the parameters.
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})
    if kind in COPIED:
        with pytest.raises(tabes.InputError, match="changed where a copy is kept"):
            wrapped.logits([tokens])
    else:
        assert relative(wrapped.logits([tokens]), wrap().logits([tokens])) == 0


def test_the_scale_of_a_table_is_the_models() -> None:
    model = WithScaled()
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    tokens = canvas(9, 1, vocab=20)
    assert relative(wrapped.logits([tokens])[0], model(model.table(tokens)[None])[0].detach()) == (
        pytest.approx(0, abs=1e-6)
    )
    assert torch.equal(wrapped.core.embedding_table(), model.table.weight.detach() * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_put_in_training_mode_is_noticed(kind: str) -> None:
    model, wrap = build(kind)
    wrapped = wrap()
    list(model.modules())[-1].train()
    with pytest.raises(tabes.InputError, match="put in training mode"):
        wrapped.logits([canvas(9, 1, vocab=20)])
    model.eval()
    wrapped.logits([canvas(9, 1, vocab=20)])


def test_another_attention_is_noticed_where_it_matters() -> None:
    model = make("bert")
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    tokens = canvas(20, 1)
    sets = [[s] for s in split(tokens)]
    before, dense = (
        wrapped.logits([tokens]),
        tabes.influence(wrapped, [tokens], *sets, adjoint="dense"),
    )
    model.set_attn_implementation("eager")
    with pytest.raises(tabes.InputError, match="was switched to 'eager'"):
        tabes.influence(wrapped, [tokens], *sets)
    assert relative(wrapped.logits([tokens]), before) <= 1e-6
    again = tabes.influence(wrapped, [tokens], *sets, adjoint="dense")
    assert relative(again.tis[0], dense.tis[0]) <= 1e-9


def test_copies_are_models_of_their_own() -> None:
    model = make("bert")
    wrapped = tabes.wrap(model, mask_token_id=MASK)
    tokens = canvas(20, 1)
    wanted = wrapped.logits([tokens])
    twin = copy.deepcopy(model)
    other = tabes.wrap(twin, mask_token_id=MASK)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert torch.equal(other.logits([tokens]), wanted)
    assert not torch.equal(wrapped.logits([tokens]), wanted)


# ---- Wrappers around models ----------------------------------------------------------------------


class Adapted(nn.Module):
    """What a model of peft looks like from outside."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base.eval()
        self.eval()

    def get_base_model(self) -> Any:
        return self.base

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def forward(self, **options: Any) -> Any:
        out = self.base(**options)
        out.logits = out.logits * 2
        return out


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda m: torch.compile(m, backend="eager", dynamic=True),
    "parallel": lambda m: nn.DataParallel(m).eval(),
    "adapted": Adapted,
}


@pytest.mark.parametrize("name", ["bert", "esm"])
@pytest.mark.parametrize("form", ["parallel", "adapted"])
def test_wrapped_wrappers_are_known_for_what_they_hold(form: str, name: str) -> None:
    """ESM's embeddings are scaled beside the table, so that taking it for any module is wrong."""
    model = make(name)
    outer = WRAPPERS[form](model)
    tokens = canvas(20, 1)
    with torch.no_grad():
        wanted = outer(input_ids=tokens[None]).logits[0]
    wrapped = tabes.wrap(outer, mask_token_id=MASK)
    assert relative(wrapped.logits([tokens])[0], wanted) <= 1e-6
    assert wrapped.info.family == model.config.model_type
    candidates, probes = split(tokens)
    inner = tabes.wrap(model, mask_token_id=MASK)
    if form == "parallel":
        ours, theirs = (
            tabes.influence(m, [tokens], [candidates], [probes]) for m in (wrapped, inner)
        )
        assert relative(ours.tis[0], theirs.tis[0]) <= 1e-9


@pytest.mark.slow
def test_a_compiled_model() -> None:
    model = make("bert", torch.float32)
    wrapped = tabes.wrap(WRAPPERS["compiled"](model), mask_token_id=MASK)
    tokens = canvas(20, 1)
    with torch.no_grad():
        wanted = model(input_ids=tokens[None]).logits[0]
    assert relative(wrapped.logits([tokens])[0], wanted) <= 1e-5
    assert tabes.generate(wrapped, tokens, steps=3).finished


# ---- Models of another kind ----------------------------------------------------------------------


def mbart() -> Any:
    config = transformers.MBartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.MBartForConditionalGeneration(config).eval()


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()


def vision() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTForMaskedImageModeling(config).eval()


class Fails(transformers.BertForMaskedLM):
    error: Exception = AttributeError("'NoneType' object has no attribute 'clone'")

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        if input_ids is None:
            raise self.error
        return super().forward(input_ids=input_ids, **options)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (mbart, "MBartForConditionalGeneration is an encoder-decoder model"),
        (t5, "T5ForConditionalGeneration is an encoder-decoder model"),
        (vision, "input embeddings of ViTForMaskedImageModeling cannot be reached"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(
    make_model: Callable[[], Any], message: str
) -> None:
    with pytest.raises(tabes.InputError, match=message):
        tabes.wrap(make_model(), mask_token_id=MASK)


@pytest.mark.parametrize(
    "error",
    [AttributeError("no 'clone'"), KeyError("x"), IndexError(), RuntimeError("a\nb"), OSError(2)],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_model_raises_is_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Fails(transformers.BertConfig(**SIZES)).eval()
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(
        tabes.InputError, match=f"(?s){type(error).__name__}.*language model"
    ) as got:
        tabes.wrap(model, mask_token_id=MASK)
    assert got.value.__cause__ is error
    assert model.config._attn_implementation == "sdpa"
    for passed in (MemoryError("none"), torch.OutOfMemoryError("none"), KeyboardInterrupt()):
        monkeypatch.setattr(Fails, "error", passed)
        with pytest.raises(type(passed)):
            tabes.wrap(model, mask_token_id=MASK)


def test_embeddings_that_fail_are_said() -> None:
    class Broken(Known):
        def get_input_embeddings(self) -> nn.Module:
            raise KeyError("table")

    with pytest.raises(tabes.InputError, match="embeddings of Broken cannot be reached"):
        tabes.wrap(Broken(), mask_token_id=MASK)

    class Odd(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            raise LookupError("odd")

    class WithOdd(Known):
        def __init__(self) -> None:
            super().__init__()
            self.table = Odd(20, 8).double().eval()

    with pytest.raises(tabes.InputError, match=r"WithOdd give no table .*LookupError"):
        tabes.wrap(WithOdd(), mask_token_id=MASK)


# ---- End tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "wanted"),
    [
        (1, None, None, [1]),
        ([4, 1], None, None, [4, 1]),
        (None, [6, 7], None, [6, 7]),
        (1, [1, 9], None, [1, 9]),
        (1, 9, 11, [1, 9, 11]),
        (None, None, 11, [11]),
        (50, -1, None, []),  # outside the vocabulary
        (None, None, None, []),
    ],
)
def test_end_tokens_of_all_who_name_them(
    config: Any, generation: Any, tokenizer: int | None, wanted: list[int]
) -> None:
    model = make("qwen3")
    model.config.eos_token_id = config
    model.generation_config.eos_token_id = generation
    given = None
    if tokenizer is not None:
        words = {f"w{i}": i for i in range(50)}
        from tokenizers import Tokenizer, models

        given = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
            eos_token=f"w{tokenizer}", mask_token=f"w{MASK}",
        )  # fmt: skip
    wrapped = tabes.wrap(model, mask_token_id=MASK, tokenizer=given)
    assert wrapped.info.eos_token_ids == wanted
    assert tabes.wrap(model, mask_token_id=MASK, eos_token_ids=[8]).info.eos_token_ids == [8]
    assert tabes.wrap(model, mask_token_id=MASK, eos_token_ids=[]).info.eos_token_ids == []


# ---- Tokenizers ----------------------------------------------------------------------------------

LETTERS = [*"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>"]


@pytest.fixture
def proteins(tmp_path: Path) -> tuple[Any, Any]:
    """ESM's tokenizer, of which there is no fast one, and a model that would write anything."""
    words = ["<cls>", "<pad>", "<eos>", "<unk>", *LETTERS, "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    torch.manual_seed(3)
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64, pad_token_id=1, mask_token_id=32,
        token_dropout=True, position_embedding_type="rotary",
    )  # fmt: skip
    return tokenizer, transformers.EsmForMaskedLM(config).eval()


@pytest.mark.case("N04")
def test_a_tokenizer_written_in_python_serves(proteins: tuple[Any, Any]) -> None:
    tokenizer, esm = proteins
    wrapped = tabes.wrap(esm, tokenizer=tokenizer)
    assert wrapped.info.mask_token_id == 32
    assert wrapped.info.eos_token_ids == []
    assert wrapped.info.special_token_ids == [0, 1, 2, 3, 31]
    text = "MKT<mask><mask>LLV<mask>G"
    out = tabes.generate(wrapped, text, steps=2, temperature=1.0, seed=1)
    given = tokenizer(text)["input_ids"]
    tokens = out.tokens.tolist()
    assert [t for t, g in zip(tokens, given, strict=True) if g != 32] == [
        g for g in given if g != 32
    ]
    assert out.texts is not None
    assert out.texts[0] == "".join(tokenizer.convert_ids_to_tokens(t) for t in tokens[1:-1])
    # The same as by token ids alone, where the model is wrapped without a tokenizer.
    plain = tabes.wrap(esm)
    same = tabes.generate(
        plain, given, steps=2, temperature=1.0, seed=1, forbidden=wrapped.info.special_token_ids
    )
    assert same.tokens.tolist() == tokens
    # Appended masks stand before the end token that the tokenizer writes.
    longer = tabes.generate(wrapped, "MKT", gen_length=5, steps=5)
    assert longer.tokens.tolist()[:4] == tokenizer("MKT")["input_ids"][:4]
    assert longer.tokens.tolist()[-1] == 2


@pytest.mark.case("N04")
def test_special_tokens_are_not_written_unasked(proteins: tuple[Any, Any]) -> None:
    tokenizer, esm = proteins
    with torch.no_grad():
        esm.lm_head.bias[[0, 1, 3]] = 50.0  # what it would write: <cls>, <pad>, <unk>
    wrapped = tabes.wrap(esm, tokenizer=tokenizer)
    canvas_ = [0, 20, *[32] * 8, 2]
    unasked = tabes.generate(wrapped, canvas_, steps=4).tokens.tolist()
    asked = tabes.generate(wrapped, canvas_, steps=4, allow_special=True).tokens.tolist()
    assert not {0, 1, 3, 32} & set(unasked[2:-1])
    assert set(asked[2:-1]) <= {0, 1, 3}
    # Who gives no tokenizer says nothing of them.
    plain = tabes.wrap(esm)
    assert plain.info.special_token_ids == []
    assert tabes.generate(plain, canvas_, steps=4).tokens.tolist() == asked


def test_a_separator_by_the_name_of_an_end_is_none() -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(50)}
    given = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        eos_token="w2", sep_token="w2", cls_token="w1", mask_token=f"w{MASK}", unk_token="w0",
    )  # fmt: skip
    model = make("bert")
    wrapped = tabes.wrap(model, tokenizer=given)
    assert wrapped.info.eos_token_ids == []
    assert wrapped.info.special_token_ids == [0, 1, 2]
    model.config.eos_token_id = 2  # the model's own word counts
    assert tabes.wrap(model, tokenizer=given).info.eos_token_ids == [2]
