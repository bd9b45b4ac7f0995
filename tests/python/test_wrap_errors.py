"""What `tabes.wrap` refuses, and what it notices later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tabes
import torch
import transformers
from torch.nn import functional as F
from wrapped_models import MASK, SIZES, Mixer, canvas, make, split

pytestmark = pytest.mark.usefixtures("one_thread")


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
    named = "^step 0, sequence 0, position 1: the influence is not a number"
    with pytest.raises(tabes.NumericsError, match=named):
        tabes.generate(wrapped, [5, 3, 3, 3, 3, 3, 3, 6], steps=3, policy="boe_paper")


def test_one_nan_gradient_among_equal_ones_stops_a_decode() -> None:
    """Scaled to the unit interval the others would have hidden it."""

    def logits(inputs_embeds: torch.Tensor) -> torch.Tensor:
        broken = (inputs_embeds[:, 2:3] * 0).sqrt() * 0
        return F.pad(inputs_embeds * 0 + broken, (0, 12))

    wrapped = tabes.wrap(logits, mask_token_id=MASK, embedding_table=torch.randn(20, 8))
    named = "^step 0, sequence 0, position 2: the influence is not a number"
    with pytest.raises(tabes.NumericsError, match=named):
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
        (encoder_decoder, "is an encoder-decoder model"),
        (uses_ids, "other logits from embeddings"),
        (in_training, "is in training mode"),
        (of_inference_mode, "made under torch.inference_mode"),
        (Mixer, "input embeddings of Mixer cannot be reached"),
        (lambda: len, "input embeddings of len cannot be reached"),
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
    from tabes.attention import _active

    assert _active.get() is None
