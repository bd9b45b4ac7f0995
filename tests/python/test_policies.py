"""The rival policies against small independent versions, and what policies may and may not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rivals
import tabes
import torch

MASK, BOS, EOS = 3, 1, 2
STEPS = 7


@pytest.fixture(scope="module")
def model() -> tabes.Model:
    """In float64, where both sides round alike and ties are ties."""
    return tabes.load(tabes.demo_checkpoint(), dtype="float64")


@pytest.fixture(scope="module")
def prompts(model: tabes.Model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(12):
        t = torch.randint(4, model.info.vocab_size, (10 + 2 * i,), generator=generator)
        t[torch.rand(len(t), generator=generator) < 0.8] = MASK
        t[0], t[-1], t[1] = BOS, EOS, MASK
        made.append(t)
    return made


@pytest.fixture(scope="module")
def logits(model: tabes.Model) -> rivals.Logits:
    def of(x: torch.Tensor) -> torch.Tensor:
        out = model.logits(x[None])[0].double()
        out[:, MASK] = -torch.inf
        return out

    return of


Plain = Callable[[rivals.Logits, torch.Tensor, int], torch.Tensor]
SEED = 11
CASES: dict[str, tuple[str, dict[str, float], Plain]] = {
    "threshold": (
        "threshold",
        {"tau": 0.6},
        lambda f, x, b: rivals.adaptive(f, x, rivals.threshold(0.6))[0],
    ),
    "factor": ("factor", {"f": 0.8}, lambda f, x, b: rivals.adaptive(f, x, rivals.factor(0.8))[0]),
    "entropy_bound": (
        "entropy_bound",
        {"gamma": 0.7},
        lambda f, x, b: rivals.adaptive(f, x, rivals.entropy_bound(0.7))[0],
    ),
    "klass": (
        "klass",
        {"tau": 0.5, "epsilon": 0.3, "history": 2},
        lambda f, x, b: rivals.klass(f, x, STEPS, 0.5, 0.3, 2),
    ),
    "info_gain": (
        "info_gain",
        {"candidates": 5},
        lambda f, x, b: rivals.info_gain(f, x, STEPS, 5, 0.2, 0.8, SEED, b),
    ),
    "lookum": (
        "lookum",
        {"pool": 4, "paths": 3},
        lambda f, x, b: rivals.lookum(f, x, STEPS, 4, 3, SEED, b),
    ),
    "remdm_cap": (
        "remdm_cap",
        {"eta": 0.2},
        lambda f, x, b: rivals.remdm(f, x, STEPS, "cap", SEED, b, 0.2),
    ),
    "remdm_rescale": (
        "remdm_rescale",
        {"eta": 0.4},
        lambda f, x, b: rivals.remdm(f, x, STEPS, "rescale", SEED, b, 0.4),
    ),
    "remdm_conf": ("remdm_conf", {}, lambda f, x, b: rivals.remdm(f, x, STEPS, "conf", SEED, b)),
    "remdm_loop": (
        "remdm_loop",
        {"eta": 0.3},
        lambda f, x, b: rivals.remdm(f, x, STEPS, "loop", SEED, b, 0.3),
    ),
    "oracle": ("oracle", {}, lambda f, x, b: rivals.oracle(f, x, STEPS, 3, 1.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_rivals_equal_their_definitions(
    model: tabes.Model, prompts: list[torch.Tensor], logits: rivals.Logits, case: str
) -> None:
    name, settings, plain = CASES[case]
    policy = tabes.make_policy(name, **settings)
    out = tabes.generate(model, prompts, steps=STEPS, policy=policy, seed=SEED)
    for b, (prompt, got) in enumerate(zip(prompts, out.tokens, strict=True)):
        assert torch.equal(got, plain(logits, prompt.clone(), b)), f"prompt {b}"
    if case.startswith("remdm"):
        assert sum(len(r.remasked_position) for r in out.trace) > 0
        assert len(out.trace) == STEPS


def test_position_weight(model: tabes.Model) -> None:
    x = torch.tensor([BOS, 7, 8, MASK, MASK, MASK, MASK, 9, EOS])
    out = tabes.generate(model, x, steps=4, policy=tabes.make_policy("pc_sampler", decay=50.0))
    assert [r.position.tolist() for r in out.trace] == [[3], [4], [5], [6]]
    first = tabes.generate(model, x, steps=4, policy=tabes.make_policy("pc_sampler", decay=0.5))
    plain = tabes.generate(model, x, steps=4)
    c = plain.trace[0].confidence
    r = first.trace[0]
    assert r.score.item() == pytest.approx(
        r.confidence.item() * 2.718281828 ** (-0.5 * (r.position.item() - 3))
    )
    assert c.item() >= r.confidence.item()


def test_looking_ahead_saves_the_next_pass(model: tabes.Model) -> None:
    """The winner's predictions serve as the next step's: one pass at first, then only proposals."""
    x = torch.tensor([BOS, *[MASK] * 8, EOS])
    policy = tabes.make_policy("lookum", pool=1, paths=1)  # one proposal, so it always wins
    out = tabes.generate(model, x, steps=8, policy=policy)
    plain = tabes.generate(model, x, steps=8)
    assert torch.equal(out.tokens, plain.tokens)
    assert [r.forward_rows for r in out.trace] == [20, *[10] * 6, 0]
    assert out.forward_rows == plain.forward_rows


def test_frozen_steps_compute_masked_rows_only(model: tabes.Model) -> None:
    x = torch.tensor([BOS, 7, 8, 9, *[MASK] * 6, 9, EOS])
    out = tabes.generate(model, x, steps=6, refresh_every=3)
    # Full, then the rows masked before the last step, twice over.
    assert [r.forward_rows for r in out.trace] == [12, 6, 5, 12, 3, 2]
    assert out.forward_rows == 40
    assert torch.equal(
        tabes.generate(model, x, steps=6, refresh_every=1).tokens,
        tabes.generate(model, x, steps=6).tokens,
    )
    once = tabes.generate(model, x, steps=6, refresh_every=0)
    assert [r.forward_rows for r in once.trace] == [12, 6, 5, 4, 3, 2]


def test_frozen_steps_equal_full_ones_where_nothing_was_given(model: tabes.Model) -> None:
    """The second step recomputes all rows that may have changed: with no other row it is exact."""
    x = torch.full((9,), MASK)
    frozen = tabes.generate(model, x, steps=2, refresh_every=2)
    full = tabes.generate(model, x, steps=2)
    assert torch.equal(frozen.tokens, full.tokens)
    assert torch.allclose(frozen.trace[1].entropy, full.trace[1].entropy, rtol=0, atol=1e-9)


def test_frozen_batches_equal_single_sequences(model: tabes.Model, prompts) -> None:
    """Sequences that finish early leave the context; the rest go on as they would alone."""
    settings = dict(steps=9, refresh_every=4, temperature=0.8, seed=2)
    together = tabes.generate(model, prompts, **settings)
    for b, prompt in enumerate(prompts):
        alone = tabes.generate(model, prompt, sequence_ids=[b], **settings)
        assert torch.equal(alone.tokens, together.tokens[b])


def test_steering_in_a_frozen_context_costs_active_rows(model: tabes.Model) -> None:
    x = torch.tensor([BOS, *[7, 8, 9] * 5, *[MASK] * 8, 9, EOS])
    policy = tabes.BoE(probes="least_entropic", factor=0.0)
    out = tabes.generate(model, x, steps=4, refresh_every=0, policy=policy)
    first, second = out.trace[:2]
    assert (first.forward_rows, first.backward_rows) == (26 + 8, 8)
    assert (second.forward_rows, second.backward_rows) == (8 + 6, 6)


def test_blocks_are_steered_by_what_waits_behind_them(model: tabes.Model) -> None:
    x = torch.tensor([BOS, *[MASK] * 24, EOS])
    out = tabes.generate(
        model, x, steps=12, block_length=8, policy=tabes.BoE(probes="least_entropic", factor=0.0)
    )
    assert all(p < 8 for r in out.trace[:4] for p in (r.position - 1).tolist())
    first = out.trace[0]
    assert first.scored == 4
    assert first.backward_rows == 24  # candidates of the block, probes in all blocks
    assert first.realised_fall[0] == first.realised_fall[0]


def test_boe_reveals_what_the_factor_rule_accepts(model: tabes.Model) -> None:
    """Where the rule accepts as many as the quota, the step is that of the factor policy."""
    x = torch.tensor([BOS, *[MASK] * 20, EOS])
    for f in (0.5, 3.0):
        wanted = tabes.generate(model, x, policy=tabes.make_policy("factor", f=f))
        got = tabes.generate(model, x, steps=20, policy=tabes.BoE(factor=f))
        assert torch.equal(got.tokens, wanted.tokens)
        assert [len(r.position) for r in got.trace] == [len(r.position) for r in wanted.trace]
        assert got.backward_rows == 0
    # With fewer steps than that the rest of a quota is steered, and steps are a bound.
    few = tabes.generate(model, x, steps=5, policy=tabes.BoE(factor=0.5))
    assert len(few.trace) <= 5
    assert few.backward_rows > 0


def test_spread_keeps_the_rows_of_a_step_apart(model: tabes.Model) -> None:
    x = torch.tensor([BOS, *[MASK] * 24, EOS])

    def nearest(spread: float) -> float:
        policy = tabes.BoE(weight=0.0, factor=0.0, spread=spread, n_candidates="4x")
        out = tabes.generate(model, x, steps=6, policy=policy)
        assert out.backward_rows == 0  # without weight there is nothing to compute
        gaps = [torch.diff(r.position.sort().values).min().item() for r in out.trace]
        return sum(gaps) / len(gaps)

    assert nearest(30.0) > nearest(0.0)
    plain = tabes.generate(model, x, steps=6)
    same = tabes.BoE(weight=0.0, factor=0.0, spread=0.0)
    assert torch.equal(tabes.generate(model, x, steps=6, policy=same).tokens, plain.tokens)


def test_the_spread_policy_is_boe_without_a_gradient(model: tabes.Model) -> None:
    x = torch.tensor([BOS, *[MASK] * 24, EOS])
    for options, settings in (
        ({}, {}),
        (
            dict(spread=9.0, width=1.5, factor=0.3, candidates=3),
            dict(spread=9.0, spread_width=1.5, factor=0.3, n_candidates="3x"),
        ),
    ):
        how = dict(steps=5, temperature=0.7, seed=3)
        got = tabes.generate(model, x, policy=tabes.make_policy("spread", **options), **how)
        wanted = tabes.generate(model, x, policy=tabes.BoE(weight=0.0, **settings), **how)
        assert torch.equal(got.tokens, wanted.tokens)
        assert got.backward_rows == 0
    assert tabes.make_policy("spread").name() == "spread"


class Counted(tabes.Policy):
    """Decides as the test says."""

    def __init__(self, pace: str, decision: Callable[[tabes.StepContext], tabes.Decision]) -> None:
        super().__init__()
        self._pace, self._decision = pace, decision

    def name(self) -> str:
        return "counted"

    def pace(self) -> str:
        return self._pace

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        return self._decision(context)


def test_a_python_policy_counts_remasks_and_looks_ahead(model: tabes.Model) -> None:
    seen: list[int] = []

    def decide(context: tabes.StepContext) -> tabes.Decision:
        n = len(context.rows)
        if n > 1:
            ahead = context.look_ahead([(0, [0]), (0, [n - 1])])
            seen.extend(len(p.entropy) for p in ahead)
        again = context.revealed.tolist() if context.step[0] == 2 else []
        return tabes.Decision(-context.rows.double(), [min(n, 2)], again)

    x = torch.tensor([BOS, *[MASK] * 5, EOS])
    out = tabes.generate(model, x, steps=5, policy=Counted("timed", decide))
    assert out.trace[2].remasked_position.tolist() == [1, 2, 3, 4]
    assert [r.position.tolist() for r in out.trace] == [[1, 2], [3, 4], [5], [1, 2], [3, 4]]
    assert not (out.tokens == MASK).any()
    assert seen[:2] == [4, 4]


@pytest.mark.parametrize(
    ("pace", "decision", "message"),
    [
        ("adaptive", lambda c: tabes.Decision(c.predictions.confidence, [0]), "reveals 0 rows"),
        ("adaptive", lambda c: tabes.Decision(c.predictions.confidence, [99]), "reveals 99 rows"),
        (
            "adaptive",
            lambda c: tabes.Decision(c.predictions.confidence),
            "0 counts for 1.*one for each",
        ),
        (
            "quota",
            lambda c: tabes.Decision(c.predictions.confidence, [1]),
            "1 counts for 0.*another pace",
        ),
        ("timed", lambda c: tabes.Decision(c.predictions.confidence, [1], [0]), "masks row 0"),
        ("adaptive", lambda c: tabes.Decision(c.predictions.confidence, [1], [2]), "masks row 2"),
        ("hasty", lambda c: tabes.Decision(c.predictions.confidence), "pace 'hasty'"),
    ],
)
def test_bad_decisions_are_refused(model: tabes.Model, pace: str, decision, message: str) -> None:
    x = torch.tensor([BOS, MASK, 7, MASK, MASK, EOS])
    with pytest.raises(tabes.InputError, match=message):
        tabes.generate(model, x, steps=3, policy=Counted(pace, decision))


def test_a_context_that_is_kept_says_so(model: tabes.Model) -> None:
    kept: list[tabes.StepContext] = []

    def decide(context: tabes.StepContext) -> tabes.Decision:
        kept.append(context)
        return tabes.Decision(context.predictions.confidence)

    x = torch.tensor([BOS, MASK, MASK, EOS])
    tabes.generate(model, x, steps=2, policy=Counted("quota", decide))
    for use in (lambda c: c.rows, lambda c: c.look_ahead([(0, [0])])):
        with pytest.raises(tabes.InputError, match="valid only while the policy decides"):
            use(kept[0])


@pytest.mark.parametrize("method", ["score", "decide", "pace"])
def test_methods_that_return_the_wrong_thing(model: tabes.Model, method: str) -> None:
    wrong = type("Wrong", (tabes.Policy,), {method: lambda *_: None})
    x = torch.tensor([BOS, MASK, MASK, EOS])
    with pytest.raises(tabes.InputError, match=rf"{method}\(\) returned None; it must be"):
        tabes.generate(model, x, steps=2, policy=wrong())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("threshold", {"tau": 1.5}, "tau must be from 0 to 1, not 1.5"),
        ("threshold", {"gamma": 1}, "no setting 'gamma'; it takes tau"),
        ("random", {"tau": 1}, "it takes none"),
        ("klass", {"history": 1.5}, "whole number"),
        ("nonsense", {}, "policy 'nonsense' is unknown"),
        ("entropy_bound", {"gamma": float("nan")}, "gamma must be"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        tabes.make_policy(name, **settings)


def test_guidance_refuses_frozen_steps(model: tabes.Model) -> None:
    x = torch.tensor([BOS, 7, MASK, MASK, EOS])
    with pytest.raises(tabes.InputError, match="refresh_every 2 does not go with guidance"):
        tabes.generate(model, x, steps=2, refresh_every=2, cfg_scale=1.0)


def test_boe_by_name_takes_its_settings() -> None:
    policy = tabes.make_policy("boe_paper", rho=0.5)
    assert isinstance(policy, tabes.BoE)
    assert (policy.rho, policy.alpha, policy.context) == (0.5, [1.0], "exact")
