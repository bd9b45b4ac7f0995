"""Policies written in Python that call, hold and extend built-in ones."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import tabes
import torch

MASK, BOS, EOS = 3, 1, 2
X = torch.tensor([BOS, *[7, 8, 9] * 3, *[MASK] * 8, 9, EOS])


@pytest.fixture(scope="module")
def model(one_thread: None) -> tabes.Model:
    return tabes.load(tabes.demo_checkpoint(), dtype="float64")


class Delegate(tabes.Policy):
    """Decides as another policy does."""

    def __init__(self, inner: tabes.Policy) -> None:
        super().__init__()
        self.inner = inner

    def name(self) -> str:
        return "delegate"

    def pace(self) -> str:
        return self.inner.pace()

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        return self.inner.decide(context)


class ScoresOnly(Delegate):
    """Takes nothing but the scores, and its own pace: the schedule's."""

    def pace(self) -> str:
        return "quota"

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        return tabes.Decision(self.inner.decide(context).score)


class Own(Delegate):
    """Says itself what it wants."""

    def __init__(self, inner: tabes.Policy) -> None:
        super().__init__([inner])  # type: ignore[arg-type]

    def pace(self) -> str:
        return self.inner[0].pace()  # type: ignore[index]

    def wants_context(self, step: list[int]) -> bool:
        return self.inner[0].wants_context(step)  # type: ignore[index]

    def wants_waiting(self) -> bool:
        return self.inner[0].wants_waiting()  # type: ignore[index]

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        return self.inner[0].decide(context)  # type: ignore[index]


def equal(got: tabes.GenerateOutput, wanted: tabes.GenerateOutput) -> None:
    assert torch.equal(got.tokens, wanted.tokens)
    assert len(got.trace) == len(wanted.trace)
    for a, b in zip(got.trace, wanted.trace, strict=True):
        assert (a.forward_rows, a.backward_rows, a.head_rows) == (
            b.forward_rows,
            b.backward_rows,
            b.head_rows,
        )
        assert a.scored == b.scored
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.score, b.score)
        assert torch.allclose(a.influence, b.influence, rtol=0, atol=0, equal_nan=True)
        assert str(a.predicted_fall) == str(b.predicted_fall)
        assert str(a.realised_fall) == str(b.realised_fall)
    assert got.forward_equivalents == wanted.forward_equivalents


BOE = (
    tabes.BoE(),
    tabes.BoE(factor=0.0),
    tabes.BoE(probes="least_entropic", factor=0.0, every=2),
    tabes.BoE.paper(),
)


@pytest.mark.case("R04")
@pytest.mark.parametrize("kind", [Delegate, Own])
@pytest.mark.parametrize("boe", BOE, ids=range(4))
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_delegate_is_what_it_calls(
    model: tabes.Model, kind: Callable[..., tabes.Policy], boe: tabes.BoE, block_length: int | None
) -> None:
    how = dict(steps=4, block_length=block_length)
    equal(
        tabes.generate(model, X, policy=kind(boe), **how),
        tabes.generate(model, X, policy=boe, **how),
    )


@pytest.mark.case("R04")
def test_rows_are_counted_whatever_is_returned(model: tabes.Model) -> None:
    """By hand: four steps of 20 rows, and 4 candidates (twice the quota) forward and backward in
    the three steps in which there is a choice."""
    boe = tabes.BoE(factor=0.0)
    for policy in (boe, Delegate(boe), ScoresOnly(boe)):
        out = tabes.generate(model, X, steps=4, policy=policy)
        assert (out.forward_rows, out.backward_rows) == (4 * 20 + 3 * 4, 3 * 4)
        assert out.forward_equivalents == pytest.approx((80 + 12 + 12) / 20)


@pytest.mark.case("R04")
def test_without_the_steps_context_boe_takes_the_exact_one(model: tabes.Model) -> None:
    class Hidden(tabes.Policy):
        def decide(self, context: tabes.StepContext) -> tabes.Decision:
            seen.append(context.has_context)
            return tabes.BoE(factor=0.0).decide(context)

    seen: list[bool] = []
    got = tabes.generate(model, X, steps=4, policy=Hidden())
    assert seen == [False] * 4
    wanted = tabes.generate(model, X, steps=4, policy=tabes.BoE(factor=0.0, context="exact"))
    equal(got, wanted)
    assert got.forward_rows == 4 * 20 + 3 * 20


@pytest.mark.case("R03")
@pytest.mark.parametrize("kind", [Delegate, ScoresOnly])
def test_boe_in_python_on_a_wrapped_model(kind: Callable[..., tabes.Policy]) -> None:
    torch.manual_seed(0)
    table = torch.randn(12, 6)
    mix = torch.nn.Linear(6, 6)

    def forward(inputs_embeds: torch.Tensor) -> torch.Tensor:
        mean = inputs_embeds.mean(1, keepdim=True)
        return torch.tanh(mix(inputs_embeds + mean)) @ table.T

    wrapped = tabes.wrap(forward, mask_token_id=3, embedding_table=table)
    x = torch.tensor([5, *[3] * 8, 6])
    boe = tabes.BoE(factor=0.0)
    got = tabes.generate(wrapped, x, steps=4, policy=kind(boe))
    wanted = tabes.generate(wrapped, x, steps=4, policy=boe)
    assert torch.equal(got.tokens, wanted.tokens)
    assert got.backward_rows == wanted.backward_rows > 0
    assert got.forward_equivalents == wanted.forward_equivalents


@pytest.mark.parametrize("name", tabes.policy_names())
def test_every_policy_can_be_called(model: tabes.Model, name: str) -> None:
    """Those with a memory too, also where it is made anew in every step."""
    how = dict(steps=4, seed=5, temperature=0.8)
    inner = tabes.make_policy(name)
    equal(
        tabes.generate(model, X, policy=Delegate(inner), **how),
        tabes.generate(model, X, policy=inner, **how),
    )

    class Forgetful(Delegate):
        def decide(self, context: tabes.StepContext) -> tabes.Decision:
            return tabes.make_policy(name).decide(context)

    out = tabes.generate(model, X, policy=Forgetful(inner), **how)
    assert not (out.tokens == MASK).any()


def test_two_memories_in_one_policy_are_apart(model: tabes.Model) -> None:
    class Both(Delegate):
        def decide(self, context: tabes.StepContext) -> tabes.Decision:
            self.other.decide(context)
            return super().decide(context)

    klass = tabes.make_policy("klass(tau=0.3, epsilon=0.5, history=1)")
    both = Both(klass)
    both.other = tabes.make_policy(klass.notation())
    got = tabes.generate(model, X, steps=6, policy=both)
    wanted = tabes.generate(model, X, steps=6, policy=klass)
    assert torch.equal(got.tokens, wanted.tokens)
    assert got.head_rows > wanted.head_rows  # the other one's distributions


class Leftmost(tabes.BoE):
    """Steered, and pulled to the left."""

    def score(self, context: tabes.StepContext) -> torch.Tensor:
        self.seen = context.has_context
        return super().score(context) - 1000.0 * context.rows.cpu().double()


class Shouting(tabes.BoE):
    def name(self) -> str:
        return "shouting " + super().name()

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        # Through a function of its own: what runs is still this method.
        (inner,) = [super(Shouting, self).decide(c) for c in (context,)]
        return tabes.Decision(inner.score, inner.count, (), inner.influence, inner.probes)


@pytest.mark.case("R04")
@pytest.mark.parametrize("settings", [{}, {"factor": 0.0}, {"context": "exact", "alpha": 1.0}])
def test_boe_can_be_extended(model: tabes.Model, settings: dict) -> None:
    boe = tabes.BoE(**settings)
    shouting = Shouting(**settings)
    assert (shouting.name(), shouting.settings()) == ("shouting boe", boe.settings())
    wanted = tabes.generate(model, X, steps=4, policy=boe)
    equal(tabes.generate(model, X, steps=4, policy=shouting), wanted)
    left = Leftmost(**settings)
    out = tabes.generate(model, X, steps=4, policy=left)
    assert left.seen == (left.context == "frozen")
    positions = [p for r in out.trace for p in r.position.tolist()]
    assert positions == sorted(positions)
    assert torch.equal(out.trace[0].position, torch.arange(10, 10 + len(out.trace[0].position)))
    assert out.backward_rows > 0


def test_an_extended_policy_can_be_held_and_called(model: tabes.Model) -> None:
    left = Leftmost(factor=0.0)
    equal(
        tabes.generate(model, X, steps=4, policy=Delegate(left)),
        tabes.generate(model, X, steps=4, policy=left),
    )


def test_what_is_computed_elsewhere_is_added(model: tabes.Model) -> None:
    class Again(tabes.Policy):
        def score(self, context: tabes.StepContext) -> torch.Tensor:
            logits = context.project(context.features)
            logits[:, context.forbidden] = -torch.inf
            assert torch.equal(logits.argmax(1), context.predictions.token)
            model.logits(X)
            context.count(forward_rows=len(X), head_rows=len(X))
            return context.predictions.confidence

    out = tabes.generate(model, X, steps=2, policy=Again())
    assert [r.forward_rows for r in out.trace] == [40, 40]
    assert [r.head_rows for r in out.trace] == [8 + 8 + 20, 4 + 4 + 20]
    assert out.forward_equivalents == 4.0

    class Less(tabes.Policy):
        def score(self, context: tabes.StepContext) -> torch.Tensor:
            context.count(forward_rows=-1)
            return context.predictions.confidence

    with pytest.raises(tabes.InputError, match="at least 0"):
        tabes.generate(model, X, steps=2, policy=Less())


def test_what_waits_is_there_for_who_wants_it(model: tabes.Model) -> None:
    class Watcher(tabes.Policy):
        def wants_waiting(self) -> bool:
            return True

        def score(self, context: tabes.StepContext) -> torch.Tensor:
            seen.append((context.waiting.tolist(), context.cu_waiting))
            assert len(context.waiting_entropy) == len(context.waiting)
            assert (context.waiting_entropy > 0).all()
            return context.predictions.confidence

    seen: list[tuple[list[int], list[int]]] = []
    tabes.generate(model, X, steps=4, block_length=4, policy=Watcher())
    assert seen[0] == (list(range(14, 18)), [0, 4])
    assert seen[-1][0] == []


@pytest.mark.parametrize("method", ["name", "pace", "wants_waiting", "wants_context", "decide"])
def test_what_a_method_raises_arrives_as_it_is(model: tabes.Model, method: str) -> None:
    class Odd(Exception):
        pass

    problem = Odd("as it is")

    def fail(*_: object) -> None:
        raise problem

    def decide(self: tabes.Policy, context: tabes.StepContext) -> tabes.Decision:
        return tabes.Decision(context.predictions.confidence, [0])

    broken = type("Broken", (tabes.Policy,), {"decide": decide, method: fail})
    with pytest.raises(Odd) as caught:
        tabes.generate(model, X, steps=2, policy=broken())
    assert caught.value is problem


@pytest.mark.parametrize("method", ["name", "wants_waiting", "wants_context"])
def test_methods_that_return_the_wrong_thing(model: tabes.Model, method: str) -> None:
    wrong = type(
        "Wrong",
        (tabes.Policy,),
        {
            "decide": lambda s, c: tabes.Decision(c.predictions.confidence, [0]),
            method: lambda *_: None,
        },
    )
    with pytest.raises(tabes.InputError, match=rf"{method}\(\) returned None; it must be"):
        tabes.generate(model, X, steps=2, policy=wrong())


@pytest.mark.parametrize("method", ["name", "pace", "decide", "settings"])
def test_an_attribute_in_the_place_of_a_method(model: tabes.Model, method: str) -> None:
    class Fresh(Delegate):
        """Whether a class overrides a method is looked up once."""

    policy = Fresh(tabes.make_policy("margin"))
    setattr(policy, method, "mine")
    use = (
        policy.notation
        if method in ("name", "settings")
        else lambda: tabes.generate(model, X, steps=2, policy=policy)
    )
    with pytest.raises(tabes.InputError, match=f"attribute '{method}' hides its method"):
        use()


def test_a_policy_that_holds_itself(model: tabes.Model) -> None:
    policy = Delegate(tabes.make_policy("margin"))
    policy.me = policy
    assert policy.wants_context([0]) is False
    policy.me = {"more": tabes.BoE()}
    assert policy.wants_context([0]) is True
    assert policy.wants_waiting() is False


@pytest.mark.case("R03")
def test_the_interpreter_runs_on_while_policies_compute(model: tabes.Model) -> None:
    """A thread of Python takes the interpreter lock while a built-in policy decides."""
    running, seen = threading.Event(), []
    stop = threading.Event()

    def other() -> None:
        while not stop.is_set():
            if running.is_set():
                seen.append(1)
            stop.wait(0.0005)

    class Slow(Delegate):
        def decide(self, context: tabes.StepContext) -> tabes.Decision:
            running.set()
            try:
                return super().decide(context)
            finally:
                running.clear()

    x = torch.tensor([BOS, *[MASK] * 80, EOS])
    thread = threading.Thread(target=other)
    thread.start()
    try:
        boe = tabes.BoE(n_candidates="40x", alpha=[i / 20 for i in range(20)], factor=0.0)
        tabes.generate(model, x, steps=40, policy=Slow(boe), callback=lambda r, t: r.step < 2)
    finally:
        stop.set()
        thread.join()
    assert seen
