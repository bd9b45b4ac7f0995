"""Numbers at their ends: NaN and infinite logits, extreme settings, 64-bit keys, on every route."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import tabes
import torch

VOCAB, MASK, MARK = 12, 0, 7
POLICIES = tabes.policy_names()
LOOKS_AHEAD = {"info_gain", "lookum", "oracle"}
# Rows can be selected on the device whatever the model.
ON_DEVICE = {
    "random", "confidence", "margin", "entropy", "threshold", "factor", "entropy_bound", "spread",
    "pc_sampler",
}  # fmt: skip
ROUTES = [(policy, False) for policy in POLICIES] + [(p, True) for p in sorted(ON_DEVICE)]
PLAIN = [5] + [MASK] * 6
MARKED = [MARK] + [MASK] * 6
BAD = 4  # the position whose logits are changed

Change = Callable[[torch.Tensor, list[int]], None]

pytestmark = pytest.mark.usefixtures("one_thread")


def toy(change: Change | None = None, dtype: torch.dtype = torch.float32) -> tabes.Model:
    """A differentiable model of bytes-like tokens; `change` writes to the logits [L, V] of every
    sequence, of which it is given the tokens."""
    generator = torch.Generator().manual_seed(3)
    own, mean = (torch.randn(VOCAB, VOCAB, generator=generator).to(dtype) for _ in range(2))
    place = torch.randn(64, VOCAB, generator=generator).to(dtype)

    def predict(inputs_embeds: torch.Tensor) -> torch.Tensor:
        mixed = inputs_embeds.mean(1, keepdim=True) @ mean
        logits = inputs_embeds @ own + mixed + place[: inputs_embeds.shape[1]]
        if change is None:
            return logits
        rows = []
        for row, tokens in zip(logits, inputs_embeds.argmax(-1).tolist(), strict=True):
            held = row.clone()
            change(held, tokens)
            rows.append(held)
        return torch.stack(rows)

    return tabes.wrap(predict, mask_token_id=MASK, embedding_table=torch.eye(VOCAB, dtype=dtype))


def poisoned(value: float, *, masks: int, token: int = 2) -> tabes.Model:
    """`value` at BAD in marked sequences that hold at most so many masks."""

    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        if MARK in tokens and 0 < tokens.count(MASK) <= masks:
            logits[BAD, token] = value

    return toy(change)


def run(model: tabes.Model, policy: str, on_device: bool = False, **settings: Any) -> Any:
    settings = {"steps": 6, "seed": 1} | settings
    return tabes.generate(model, [PLAIN, MARKED], policy=policy, on_device=on_device, **settings)


@pytest.mark.case("R01")
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_bad_logits_are_named_at_once(
    policy: str, on_device: bool, value: float, sampling: dict[str, float]
) -> None:
    with pytest.raises(tabes.NumericsError, match=f"^step 0, sequence 1, position {BAD}: "):
        run(poisoned(value, masks=6), policy, on_device, **sampling)


@pytest.mark.case("R01")
@pytest.mark.parametrize("token", [MASK, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_bad_logits_of_tokens_that_are_never_written_are_named(
    policy: str, on_device: bool, value: float, token: int
) -> None:
    with pytest.raises(tabes.NumericsError, match=f"^step 0, sequence 1, position {BAD}: "):
        run(poisoned(value, masks=6, token=token), policy, on_device, forbidden=[3, 6])
    assert run(poisoned(-math.inf, masks=6, token=token), policy, on_device, forbidden=[3]).finished


@pytest.mark.case("R01")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_bad_logits_of_later_steps_are_named(policy: str, on_device: bool, value: float) -> None:
    for seed in range(20):
        trace = run(toy(), policy, on_device, seed=seed).trace
        first = next(record.step for record in trace if record.masked[1] < 6)
        places = [torch.stack([r.sequence, r.position], 1).tolist() for r in trace]
        if next(step for step, k in enumerate(places) if [1, BAD] in k) >= first:
            break  # it is still masked when it goes bad
    with pytest.raises(tabes.NumericsError) as caught:
        run(poisoned(value, masks=5), policy, on_device, seed=seed)
    found = re.match(rf"step (\d), sequence 1, position {BAD}: (looking ahead)?", str(caught.value))
    assert found, caught.value
    looks = policy in LOOKS_AHEAD or policy.startswith("boe")  # which drafts its candidates
    assert int(found[1]) == first or (looks and int(found[1]) == 0)
    assert bool(found[2]) == (policy in LOOKS_AHEAD)


@pytest.mark.case("R01")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["boe_paper", "confidence"])
def test_rows_of_later_blocks_count_where_they_are_looked_at(policy: str, value: float) -> None:
    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        if MARK in tokens:
            logits[6, :] = value

    settings = {"block_length": 3, "steps": 6}
    step = 0 if policy == "boe_paper" else 3
    with pytest.raises(tabes.NumericsError, match=f"^step {step}, sequence 1, position 6: "):
        run(toy(change), policy, **settings)


@pytest.mark.case("R01")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("given_too", [False, True])
def test_both_passes_of_guidance_are_looked_at(value: float, given_too: bool) -> None:
    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        guided = tokens[0] != MASK
        if guided == given_too and len(tokens) == 7:
            logits[BAD, 2] = value

    with pytest.raises(tabes.NumericsError, match=f"^step 0, sequence 0, position {BAD}: "):
        run(toy(change), "confidence", cfg_scale=0.5)


@pytest.mark.case("R01")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_influence_and_measured_falls_name_the_row(value: float) -> None:
    lists: dict[str, Any] = {"candidates": [[2, 3]], "probes": [[BAD, 5]]}
    with pytest.raises(tabes.NumericsError, match=f"sequence 0, position {BAD} "):
        tabes.influence(poisoned(value, masks=6), [MARKED], **lists)
    lists = {"candidates": [[BAD, 3]], "probes": [[2, 5]]}
    for tau in (0.0, 0.5):
        with pytest.raises(tabes.NumericsError, match=f"sequence 0, position {BAD} "):
            tabes.influence(poisoned(value, masks=6), [MARKED], **lists, tau=tau)


@pytest.mark.case("R01")
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_p": 0.9}])
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_minus_infinity_is_a_token_of_probability_zero(
    policy: str, on_device: bool, sampling: dict[str, float]
) -> None:
    forbidden = [1, 5, 6, 11]

    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        logits[:, forbidden] = -math.inf

    got = run(toy(change), policy, on_device, **sampling)
    wanted = run(toy(), policy, on_device, forbidden=forbidden, **sampling)
    assert [t.tolist() for t in got.tokens] == [t.tolist() for t in wanted.tokens]
    for record, other in zip(got.trace, wanted.trace, strict=True):
        for values in (record.confidence, record.entropy, record.score):
            assert torch.isfinite(values).all()
        torch.testing.assert_close(record.influence, other.influence, equal_nan=True)


@pytest.mark.case("R01")
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_one_token_may_be_all_there_is(policy: str, on_device: bool) -> None:
    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        logits[:, :9] = -math.inf
        logits[:, 10:] = -math.inf

    out = run(toy(change), policy, on_device)
    assert out.tokens[1].tolist() == [MARK] + [9] * 6
    assert all(record.entropy.abs().max() == 0 for record in out.trace if record.entropy.numel())


@pytest.mark.case("R01")
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_a_row_without_a_token_is_an_error(policy: str, on_device: bool) -> None:
    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        if MARK in tokens:
            logits[BAD, 1:] = -math.inf  # the mask's own does not count

    with pytest.raises(tabes.NumericsError, match=f"step 0, sequence 1, position {BAD}: "):
        run(toy(change), policy, on_device)


@pytest.mark.case("F17")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 9}, {"top_p": 0.999}])
@pytest.mark.parametrize("on_device", [False, True])
def test_temperatures_at_their_ends(
    dtype: torch.dtype, cuts: dict[str, Any], on_device: bool
) -> None:
    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        logits[:, 4] = -math.inf

    model = toy(change, dtype)
    canvas = [5] + [MASK] * 60
    settings: dict[str, Any] = {"steps": 2, "forbidden": [6], "policy": "random"} | cuts

    def tokens(temperature: float, seed: int = 0) -> list[int]:
        return tabes.generate(
            model, canvas, temperature=temperature, seed=seed, on_device=on_device, **settings
        ).tokens.tolist()[1:]  # type: ignore[union-attr]

    likeliest = tokens(0.0)
    for temperature in (1e-40, 1e-46, 2.0**-1022, 5e-324):
        assert tokens(temperature) == likeliest
    possible = set(range(VOCAB)) - {MASK, 4, 6}
    for temperature in (1e35, 1e45, 1e46, 1e300, 1.7e308):
        drawn = [token for seed in range(4) for token in tokens(temperature, seed)]
        # Nine tokens alike, 240 draws: each 26.7 times, give or take five deviations.
        assert set(drawn) == possible
        assert max(drawn.count(token) for token in possible) < 26.7 + 5 * 4.9


@pytest.mark.case("F18")
@pytest.mark.parametrize("scale", [1e39, 1e10, 1.7e308, math.inf, -0.1, math.nan])
def test_guidance_beyond_its_range_is_refused(scale: float) -> None:
    with pytest.raises(tabes.InputError, match="cfg_scale must be from 0"):
        run(toy(), "confidence", cfg_scale=scale)


@pytest.mark.case("F18")
@pytest.mark.parametrize("scale", [5e-324, 1e-6, 0.5, 3.0, 1e9])
def test_guided_probabilities_are_those_of_the_definition(scale: float) -> None:
    """p_c^(s + 1) / p_u^s, computed in float64 here; -inf in both passes, or in the guided one."""
    canvas = [5, MASK]
    seen: dict[bool, list[float]] = {}

    def change(logits: torch.Tensor, tokens: list[int]) -> None:
        logits[:, 3] = -math.inf
        if tokens[0] != MASK:
            logits[:, 8] = -math.inf
        seen[tokens[0] != MASK] = logits[1].tolist()

    out = tabes.generate(toy(change), canvas, steps=1, cfg_scale=scale)
    with_, without = seen[True], seen[False]
    guided = {
        token: with_[token] + scale * (with_[token] - without[token])
        for token in range(1, VOCAB)
        if with_[token] > -math.inf
    }
    best = max(guided, key=lambda token: guided[token])
    assert out.tokens.tolist() == [5, best]  # type: ignore[union-attr]
    total = sum(math.exp(value - guided[best]) for value in guided.values())
    assert out.trace[0].confidence.item() == pytest.approx(1 / total, rel=1e-5)


@pytest.mark.case("F18")
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_settings_at_their_ends_are_right_or_refused(policy: str, on_device: bool) -> None:
    most = 2**63 - 1
    timed = policy.startswith("remdm")
    if timed:
        with pytest.raises(tabes.InputError, match="steps must be at most 1000000"):
            run(toy(), policy, steps=most)
    wanted = run(toy(), policy, on_device, steps=9)
    got = run(
        toy(), policy, on_device, block_length=most, refresh_every=most, top_k=most, top_p=1.0,
        steps=9 if timed else most,
    )  # fmt: skip
    assert got.finished
    if policy in ("random", "confidence", "margin", "entropy", "pc_sampler"):
        assert got.tokens[1].equal(wanted.tokens[1])  # one row a step, both times
        assert [r.position.tolist() for r in got.trace] == [
            r.position.tolist() for r in wanted.trace
        ]
    for top_p in (5e-324, 1e-300):  # the likeliest token alone
        cold = run(toy(), policy, on_device, steps=9, top_p=top_p, temperature=1.0)
        assert cold.tokens[1].equal(wanted.tokens[1])


@pytest.mark.case("F18")
@pytest.mark.parametrize(
    "name", ["gamma", "weight", "spread", "spread_width", "factor", "anti_collapse", "h_max"]
)
def test_steering_at_its_ends(name: str) -> None:
    for value in (1e308, math.inf, math.nan, -1.0):
        with pytest.raises(tabes.InputError, match=name):
            tabes.BoE(**{name: value})
    ends = {"anti_collapse": 1e6, "h_max": 1e3, "spread_width": 1e-6}
    policy = tabes.BoE(**{name: ends.get(name, 1e9), "anti_collapse": ends["anti_collapse"]})
    out = tabes.generate(toy(), [PLAIN], steps=3, policy=policy)
    assert out.finished
    assert all(torch.isfinite(r.score).all() for r in out.trace)


@pytest.mark.case("F08", "U6")
def test_draws_are_keyed_by_sixty_four_bits() -> None:
    canvas = [5] + [MASK] * 30

    def texts(**settings: Any) -> Any:
        settings = {"temperature": 3.0, "steps": 3, "policy": "random"} | settings
        return tabes.generate(toy(), canvas, **settings).tokens.tolist()  # type: ignore[union-attr]

    ids = [7, 7 + 2**32, 7 + 2**40, 7 + 2**56, 7 + 2**60, 7 + 2**62]
    drawn = {tuple(texts(sequence_ids=[i])) for i in ids}
    assert len(drawn) == len(ids)
    seeds = [7, 7 + 2**32, 7 + 2**62, 7 + 2**63, 2**64 - 1]
    assert len({tuple(texts(seed=s)) for s in seeds}) == len(seeds)
    for bad in (-1, 2**64, 10**5000):
        with pytest.raises(tabes.InputError, match=r"^seed="):
            texts(seed=bad)
    for bad in (-1, 2**63, 10**5000):
        with pytest.raises(tabes.InputError, match=r"^sequence_ids\[0\]="):
            texts(sequence_ids=[bad])


@pytest.mark.case("F08")
def test_draws_of_small_numbers_are_what_they_were() -> None:
    """Stored results can be had again: these values are from before ids of 64 bits."""
    numbers = torch.tensor([0, 7, 2**32 - 1]), torch.tensor([0, 5, 90]), torch.tensor([0, 3, 1])
    drawn = torch.ops.tabes.counter_uniforms(*numbers, 11, 1)
    assert drawn.tolist() == [0.04032156882965732, 0.19163865681857917, 0.8962766148784701]


@pytest.mark.case("N06")
@pytest.mark.parametrize("block_length", [None, 8])
@pytest.mark.parametrize(("policy", "on_device"), ROUTES)
def test_a_record_says_how_many_steps_there_are_at_most(
    policy: str, on_device: bool, block_length: int | None
) -> None:
    masks, steps = 40, 12
    canvases = [[5] + [MASK] * masks, [7] + [MASK] * 9]
    trace = tabes.generate(
        toy(), canvases, steps=steps, block_length=block_length, policy=policy, on_device=on_device
    ).trace
    said = [record.steps for record in trace]
    assert said == sorted(said, reverse=True)  # it falls as more is revealed
    own_pace = ("threshold", "factor", "entropy_bound", "klass")
    if policy in own_pace:
        # These reveal one row at least: what is left bounds them.
        assert said[-1] >= len(trace)
        assert said == [record.step + max(record.masked) for record in trace]
    else:
        assert said[0] == steps
        assert said[-1] == len(trace)
    if policy not in (
        "boe",
        "spread",
        "info_gain",
        "threshold",
        "factor",
        "entropy_bound",
        "klass",
    ):
        assert set(said) == {steps}


@pytest.mark.case("F17")
@pytest.mark.parametrize(
    "temperature", [10**400, 10**5000, -(10**5000)], ids=["1e400", "1e5000", "-"]
)
def test_temperatures_beyond_a_double(temperature: int) -> None:
    # Python writes out no integer of more than 4,300 digits.
    with pytest.raises(tabes.InputError, match="temperature: it must be a number that fits"):
        tabes.generate(toy(lambda logits, tokens: None), [5, MASK], temperature=temperature)
