"""What holds of every decode, tried on decodes that Hypothesis draws (decode_cases.py): random
models of both native layouts in float32, all policies, blocks, frozen steps, guidance,
temperatures, ragged batches and forbidden tokens.

TABES_EXAMPLES sets how many each property gets: 200 unless it is set, 10,000 before a release. That
C++ gives the tokens of Python is tried in tests/consumer.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from typing import Any

import numpy as np
import pytest
import tabes
import torch
from decode_cases import (
    LOOKING_AHEAD,
    MASK,
    POLICIES,
    REMASKING,
    STEERING,
    VOCABULARY,
    Case,
    Plan,
    cases,
    model,
    never_written,
    tokens_of,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("one_thread")

many = settings(
    max_examples=int(os.environ.get("TABES_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# These need no memory and no chance: what they do next is a matter of the tokens alone.
MEMORYLESS = sorted(
    (set(POLICIES) - REMASKING - {"random", "klass", "info_gain", "lookum", "pc_sampler"})
    - {"boe probes"}  # which steers every other step
)

PLAIN = {"seed": 0, "temperature": 0.0, "forbidden": [], "logits_eos_inf": False}
PLAIN |= {"confidence_eos_eot_inf": False}
# Found by Hypothesis, not every time. The first block has nothing left to write in its last step,
# the second block of the other sequence has.
RARELY_WRITING = Case(
    "llada",
    "remdm_cap",
    [[3, 14, 19, 23, 4, 3, 20], [22, 20], [14, 3]],
    {**PLAIN, "steps": 3, "block_length": 3, "refresh_every": 2},
)
ONE_MASK = Case("llada", "confidence", [[MASK]], {**PLAIN, "steps": 1})
# These have probes behind the current block.
WAITING = ("boe_paper", "boe probes")


def watched(case: Case, **changes: Any) -> tuple[tabes.GenerateOutput, list[list[list[int]]]]:
    """The decode, and the tokens of all sequences after each of its steps."""
    seen: list[list[list[int]]] = []

    def watch(record: tabes.StepRecord, tokens: list[torch.Tensor]) -> None:
        seen.append([t.tolist() for t in tokens])

    return case.run(callback=watch, **changes), seen


def revealed(record: tabes.StepRecord) -> list[tuple[int, int, int]]:
    columns = (record.sequence, record.position, record.token)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def of_sequence(
    out: tabes.GenerateOutput, b: int
) -> tuple[list[list[tuple[int, int]]], torch.Tensor]:
    """Position and token of what sequence b got in each of its steps; numbers [n, 4] beside."""
    steps, numbers = [], []
    for record in out.trace:
        own = record.sequence == b
        steps.append(
            list(zip(record.position[own].tolist(), record.token[own].tolist(), strict=True))
        )
        columns = (record.confidence, record.entropy, record.score, record.influence)
        numbers.append(torch.stack([c[own] for c in columns], 1))
    while steps and not steps[-1]:
        steps.pop()
    return steps, torch.cat(numbers)


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


# ---- P1 to P4: what a decode leaves and writes ---------------------------------------------------


@many
@given(case=cases())
def test_p1_what_is_given_never_changes(case: Case) -> None:
    before = [list(prompt) for prompt in case.prompts]
    tensors = case.tensors
    out, seen = watched(case, prompts=tensors)
    assert [t.tolist() for t in tensors] == before, "the caller's tensors were written to"
    for tokens in [*seen, tokens_of(out)]:
        for prompt, now in zip(before, tokens, strict=True):
            assert len(now) == len(prompt)
            assert all(old in (MASK, new) for old, new in zip(prompt, now, strict=True))


@many
@given(case=cases())
def test_p2_no_mask_remains_and_nothing_forbidden_is_written(case: Case) -> None:
    out = case.run()
    assert out.finished
    never = never_written(case)
    for prompt, now in zip(case.prompts, tokens_of(out), strict=True):
        written = [new for old, new in zip(prompt, now, strict=True) if old == MASK]
        assert all(0 <= token < VOCABULARY for token in written)
        assert never.isdisjoint(written)
    for record in out.trace:  # not even to be masked again
        assert never.isdisjoint(record.token.tolist())


@many
@given(case=cases())
def test_p3_steps_keep_to_their_budget(case: Case) -> None:
    out = case.run()
    pace, block = case.pace, case.options.get("block_length")
    again = [0] * len(case.prompts)
    total = [0] * len(case.prompts)
    plans = [Plan(prompt, case.options["steps"], block) for prompt in case.prompts]
    quotas = [list(plan.quotas(p)) for plan, p in zip(plans, case.prompts, strict=True)]
    for number, record in enumerate(out.trace):
        assert record.step == number
        for b in range(len(case.prompts)):
            own = record.position[record.sequence == b].tolist()
            left = case.masks[b] + again[b] - total[b]
            assert record.masked[b] == left
            assert len(own) <= record.eligible[b] <= left
            if pace == "quota":
                allowed, count = quotas[b][number] if number < len(quotas[b]) else (range(0), 0)
                assert len(own) == count
                assert all(position in allowed for position in own)
            elif pace == "adaptive":
                assert bool(own) == (left > 0)
            total[b] += len(own)
            again[b] += int((record.remasked_sequence == b).sum())
    assert [t - a for t, a in zip(total, again, strict=True)] == case.masks
    planned = [sum(plan.steps) for plan, m in zip(plans, case.masks, strict=True) if m]
    if pace == "timed":
        assert len(out.trace) == max(planned)
    elif pace == "quota":
        assert len(out.trace) == max(map(len, quotas))


@many
@given(case=cases())
def test_p4_what_is_written_stays_unless_it_is_masked_again(case: Case) -> None:
    out, seen = watched(case)
    now = [list(prompt) for prompt in case.prompts]
    for record, tokens in zip(out.trace, seen, strict=True):
        for b, position, token in revealed(record):
            assert now[b][position] == MASK
            now[b][position] = token
        back = zip(
            record.remasked_sequence.tolist(), record.remasked_position.tolist(), strict=True
        )
        for b, position in back:
            assert case.policy in REMASKING
            assert case.prompts[b][position] == MASK != now[b][position]
            now[b][position] = MASK
        assert tokens == now
    assert tokens_of(out) == now


# ---- P5 to P7: batches and seeds -----------------------------------------------------------------


@many
@given(case=cases(), data=st.data())
def test_p5_another_order_of_the_batch_is_another_order_of_the_result(
    case: Case, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, 99), min_size=len(case.prompts), unique=True))
    ids = ids[: len(case.prompts)]
    order = data.draw(st.permutations(range(len(case.prompts))))
    out = case.run(sequence_ids=ids)
    moved = case.run([case.prompts[b] for b in order], sequence_ids=[ids[b] for b in order])
    for place, b in enumerate(order):
        assert moved.tokens[place].tolist() == out.tokens[b].tolist()
        steps, numbers = of_sequence(out, b)
        moved_steps, moved_numbers = of_sequence(moved, place)
        assert moved_steps == steps
        assert_close(moved_numbers, numbers)
    assert moved.forward_rows == out.forward_rows
    assert moved.backward_rows == out.backward_rows


@many
@given(case=cases(), which=st.integers(0, 2))
@example(case=RARELY_WRITING, which=0)
def test_p6_alone_is_as_in_a_batch(case: Case, which: int) -> None:
    masked = [b for b, masks in enumerate(case.masks) if masks]
    b = masked[which % len(masked)]
    out = case.run()
    alone = case.run([case.prompts[b]], sequence_ids=[b])
    assert alone.tokens[0].tolist() == out.tokens[b].tolist()
    steps, numbers = of_sequence(out, b)
    own_steps, own_numbers = of_sequence(alone, 0)
    assert own_steps == steps
    assert_close(own_numbers, numbers)


@many
@given(case=cases(), number=st.integers(0, 2**31))
def test_p7_a_sequence_depends_on_the_seed_and_its_number(case: Case, number: int) -> None:
    twice = [*case.prompts, case.prompts[0]]
    ids = [number, *range(2**31 + 1, 2**31 + len(case.prompts)), number]
    out = case.run(twice, sequence_ids=ids)
    torch.manual_seed(number)
    before = torch.get_rng_state()
    again = case.run(twice, sequence_ids=ids)
    assert torch.equal(torch.get_rng_state(), before)
    assert tokens_of(again) == tokens_of(out)
    for a, b in zip(out.trace, again.trace, strict=True):
        assert revealed(a) == revealed(b)
        assert torch.equal(a.score, b.score)  # to the last bit
    assert out.tokens[-1].tolist() == out.tokens[0].tolist()


@pytest.mark.parametrize("layout", ["llada", "bert"])
def test_p7_other_seeds_and_numbers_are_other_draws(layout: str) -> None:
    batch = [[MASK] * 8] * 12
    hot = dict(steps=8, temperature=4.0)
    drawn = [tokens_of(tabes.generate(model(layout), batch, seed=s, **hot)) for s in range(4)]
    assert len({tuple(row) for rows in drawn for row in rows}) == 48
    alike = tabes.generate(model(layout), batch, seed=0, sequence_ids=[7] * 12, **hot)
    assert len({tuple(row) for row in tokens_of(alike)}) == 1


# ---- P8: stopping --------------------------------------------------------------------------------


@many
@given(case=cases(longest=8, sequences=2))
def test_p8_a_decode_that_is_stopped_is_a_beginning(case: Case) -> None:
    """What came before is the straight decode's, at every step, and the model is none the worse."""
    straight, seen = watched(case)
    for k in range(1, len(straight.trace) + 1):
        taken = 0

        def stop(record: tabes.StepRecord, tokens: list[torch.Tensor], k: int = k) -> bool:
            nonlocal taken
            taken += 1
            return taken < k

        out = case.run(callback=stop)
        assert out.finished == (k == len(straight.trace))
        assert tokens_of(out) == seen[k - 1]
        assert len(out.trace) == k
        for a, b in zip(out.trace, straight.trace[:k], strict=True):
            assert revealed(a) == revealed(b)
            assert torch.equal(a.score, b.score)
    after = case.run()
    assert tokens_of(after) == tokens_of(straight)
    assert [revealed(r) for r in after.trace] == [revealed(r) for r in straight.trace]


@many
@given(
    case=cases(
        MEMORYLESS, temperatures=(0.0,), guided=False, frozen=False, blocks=False, longest=8,
        sequences=1,
    )
)  # fmt: skip
def test_p8_stopped_stored_and_resumed_is_the_straight_decode(case: Case) -> None:
    """Where nothing but the tokens decides, the tokens are all that has to be kept: after k steps
    the rest takes what is left of them, in whatever process."""
    straight, seen = watched(case)
    for k in range(1, len(straight.trace)):
        stored = pickle.dumps(json.dumps(seen[k - 1]))
        tokens = json.loads(pickle.loads(stored))
        left = max(1, case.options["steps"] - k)
        rest = case.run(tokens, steps=left)
        assert tokens_of(rest) == tokens_of(straight)
        assert [revealed(r) for r in rest.trace] == [revealed(r) for r in straight.trace[k:]]


# ---- P9 to P12: what is computed -----------------------------------------------------------------


@many
@given(case=cases(guided=False))
def test_p9_guidance_of_zero_is_none(case: Case) -> None:
    plain, zero = case.run(), case.run(cfg_scale=0.0)
    assert tokens_of(zero) == tokens_of(plain)
    assert zero.forward_rows == plain.forward_rows
    for a, b in zip(zero.trace, plain.trace, strict=True):
        assert torch.equal(a.confidence, b.confidence)
        assert torch.equal(a.score, b.score)
    # Where nothing is given there is nothing to be guided by.
    empty = [[MASK] * len(prompt) for prompt in case.prompts]
    options = {"refresh_every": 1}
    if case.policy not in LOOKING_AHEAD:  # those look at both canvases, and so are paid for both
        plain = case.run(empty, **options)
        guided = case.run(empty, **options, cfg_scale=2.0)
        for a, b in zip(guided.trace[:1], plain.trace[:1], strict=True):
            assert revealed(a) == revealed(b)
            assert_close(a.confidence, b.confidence)


def logits_of(case: Case, tokens: list[int], prompt: list[int]) -> torch.Tensor:
    """[L, V] float64 of a canvas, guided as documented, what is never written left out."""
    logits = case.model.logits(tokens)[0].double()
    if scale := case.options.get("cfg_scale", 0.0):
        without = [
            token if old == MASK else MASK for token, old in zip(tokens, prompt, strict=True)
        ]
        unguided = case.model.logits(without)[0].double()
        logits = unguided + (scale + 1) * (logits - unguided)
    logits[:, sorted(never_written(case))] = -math.inf
    return logits


@many
@given(case=cases(temperatures=(0.0, 2.0), frozen=False))
def test_p10_temperature_zero_writes_the_likeliest(case: Case) -> None:
    if case.options["temperature"] > 0:
        case.options |= {"top_k": 1, "top_p": 1.0}  # which comes to the same
    out, seen = watched(case)
    before = case.prompts
    for record, after in zip(out.trace, seen, strict=True):
        logits = [logits_of(case, t, p) for t, p in zip(before, case.prompts, strict=True)]
        rows = [logits[b][position] for b, position, _ in revealed(record)]
        for (_, _, token), row in zip(revealed(record), rows, strict=True):
            assert row[token] >= row.max() - 1e-4
        if rows:
            p = torch.stack(rows).softmax(1)
            assert_close(record.confidence, p.max(1).values)
            assert_close(record.entropy, torch.special.entr(p).sum(1))
        before = after


@many
@given(case=cases(sorted(set(POLICIES) - LOOKING_AHEAD)))
def test_p11_rows_are_counted_by_the_formula(case: Case) -> None:
    if case.policy in STEERING:
        # Put last, end tokens among the candidates leave their place to rows without a score, and
        # records do not say what was computed for them.
        case.options["confidence_eos_eot_inf"] = False
    out = case.run()
    lengths = np.array([len(prompt) for prompt in case.prompts])
    passes = 2 if case.options.get("cfg_scale") else 1
    every = case.options.get("refresh_every", 1)
    written = np.zeros_like(lengths)  # in the step before
    for number, record in enumerate(out.trace):
        eligible = np.array(record.eligible)
        live = eligible > 0
        full = number == 0 or every == 1 or (every > 1 and number % every == 0)
        # In between: those revealed since the last pass, and those whose predictions are wanted.
        wanted = record.masked if case.policy in WAITING else eligible
        frozen = int((wanted + written)[live].sum())
        rows = passes * int(lengths[live].sum()) if full else frozen
        gradient = forward = 0
        if case.policy in ("boe", "boe always"):  # the candidates alone, once
            gradient = forward = record.scored if record.influence.isfinite().any() else 0
        elif case.policy in ("boe exact", "boe_paper"):  # whole sequences, at each point
            points = 2 if case.policy == "boe exact" else 1
            forward = points * int(lengths[np.isfinite(record.predicted_fall)].sum())
            gradient = min(record.backward_rows, forward)  # active rows: no more than all
            assert bool(gradient) == bool(forward)
        elif case.policy == "boe probes":
            gradient = forward = record.backward_rows
        if case.pace != "timed" or every == 1:
            assert record.forward_rows == rows + forward
        assert record.backward_rows == gradient
        if case.policy not in STEERING | {"klass"}:  # which asks twice
            assert record.head_rows == passes * int(eligible.sum())
        written = np.bincount(record.sequence.numpy(), minlength=len(lengths))
    assert out.forward_rows == sum(r.forward_rows for r in out.trace)
    assert out.backward_rows == sum(r.backward_rows for r in out.trace)
    assert out.head_rows == sum(r.head_rows for r in out.trace)
    cost = (out.forward_rows + out.backward_rows) / int(lengths.sum())
    assert out.forward_equivalents == pytest.approx(cost, rel=1e-12)


ORDERED = ("confidence", "margin", "entropy", "threshold", "factor", "entropy_bound", "oracle")


@many
@given(
    policy=st.sampled_from(ORDERED),
    kinds=st.lists(st.lists(st.integers(-2, 2), min_size=9, max_size=9), min_size=1, max_size=3),
    which=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    steps=st.integers(1, 12),
    forbidden=st.lists(st.integers(0, 8), max_size=4),
)
def test_p12_ties_go_to_the_lowest(
    policy: str, kinds: list[list[int]], which: list[int], steps: int, forbidden: list[int]
) -> None:
    """Whole numbers for logits, whatever the tokens: many are equal, within rows and between."""
    rows = torch.tensor([kinds[i % len(kinds)] for i in which], dtype=torch.float32)
    fixed = tabes.wrap(
        lambda inputs_embeds: rows.expand(len(inputs_embeds), -1, -1),
        mask_token_id=MASK, embedding_table=torch.zeros(9, 2),
    )  # fmt: skip
    out = tabes.generate(
        fixed, [MASK] * len(which), policy=policy, steps=steps, forbidden=forbidden
    )
    allowed = [token for token in range(9) if token not in {MASK, *forbidden}]
    for at, token in enumerate(out.tokens.tolist()):
        best = max(rows[at, t].item() for t in allowed)
        assert token == next(t for t in allowed if rows[at, t] == best)
    left = set(range(len(which)))
    for record in out.trace:
        taken = set(record.position.tolist())
        left -= taken
        for kind in range(len(kinds)):  # rows of a kind are alike in every respect
            alike = [i for i in range(len(which)) if which[i] % len(kinds) == kind]
            assert all(i < j for i in taken & set(alike) for j in left & set(alike))


@pytest.mark.parametrize("layout", ["llada", "bert"])
@pytest.mark.parametrize("policy", [*ORDERED, "boe"])
def test_p12_of_native_models(layout: str, policy: str) -> None:
    flat = model(layout, 0.0)
    chosen: Any = tabes.BoE(spread=0.0, factor=0.0) if policy == "boe" else policy
    out = tabes.generate(flat, [5, *[MASK] * 9, 6], policy=chosen, steps=4, forbidden=[0])
    assert out.tokens.tolist() == [5, *[1] * 9, 6]
    order = [p for record in out.trace for p in record.position.tolist()]
    assert order == list(range(1, 10))


# ---- P13: how tokens lie in memory ---------------------------------------------------------------


FORMS = (
    *("every third", "backwards", "column", "offset", "read-only"),
    *("int8", "int16", "int32", "int64", "uint8"),
)


def spread_out(prompt: list[int], form: str) -> Any:
    """The same tokens, lying in memory in another way."""
    tokens = np.array(prompt)
    if form == "every third":
        wide = torch.full((3 * len(prompt),), 99)
        wide[::3] = torch.tensor(prompt)
        return wide[::3]
    if form == "backwards":
        return tokens[::-1].copy()[::-1]
    if form == "column":
        return torch.tensor([prompt, prompt]).t()[:, 1]
    if form == "offset":
        return torch.tensor([7, *prompt, 7])[1:-1]
    if form == "read-only":
        tokens.flags.writeable = False
        return tokens
    return tokens.astype(form)


@many
@given(case=cases(), forms=st.lists(st.sampled_from(FORMS), min_size=3, max_size=3))
@example(case=ONE_MASK, forms=["backwards"] * 3)  # contiguous, and yet of a negative stride
def test_p13_how_tokens_lie_in_memory_is_no_matter(case: Case, forms: list[str]) -> None:
    laid = [spread_out(p, form) for p, form in zip(case.prompts, forms, strict=False)]
    kept = [x.tolist() for x in laid]
    out = case.run(laid)
    assert tokens_of(out) == tokens_of(case.run())
    assert [x.tolist() for x in laid] == kept
