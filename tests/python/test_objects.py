"""Results, records and policies as objects: how they show themselves, are copied, and travel."""

from __future__ import annotations

import copy
import inspect
import math
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tabes
import torch
from test_python_policies import Delegate, Leftmost

X = torch.tensor([1, *[3] * 8, 2])

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(6)),
]


def fields(thing: object) -> list[str]:
    return [n for n in dir(type(thing)) if isinstance(getattr(type(thing), n), property)]


def assert_same(a: Any, b: Any) -> None:
    """Equal in every attribute, NaN being equal to NaN."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        assert (
            torch.equal(a.nan_to_num(-7.25), b.nan_to_num(-7.25))
            if a.is_floating_point()
            else (torch.equal(a, b))
        )
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, tabes.GenerateOutput):
        for name in vars(a):
            assert_same(getattr(a, name), getattr(b, name))
    elif type(a).__module__ == "tabes._core":
        names = fields(a)
        assert names
        for name in names:
            assert_same(getattr(a, name), getattr(b, name))
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b


def outputs(model: tabes.Model) -> list[tabes.GenerateOutput[Any]]:
    watched: dict[str, Any] = dict(callback=lambda record, tokens: record.step < 2)
    steered = tabes.BoE(factor=0.0)
    return [
        tabes.generate(model, X, steps=4, policy=steered, **watched),  # guesses, NaN, falls
        tabes.generate(model, [X, X[:5]], steps=4, policy="remdm_cap(eta=0.9)"),  # masks again
        tabes.generate(model, ["C[MASK]C", "C[MASK]O"], steps=1),
    ]


@pytest.mark.case("F15")
@pytest.mark.parametrize("copied", COPIES)
def test_outputs_and_records_are_copied(
    demo_model: tabes.Model, copied: Callable[[Any], Any]
) -> None:
    for out in outputs(demo_model):
        assert_same(copied(out), out)
        for record in out.trace:
            assert_same(copied(record), record)
            assert copied(record).position.data_ptr() != record.position.data_ptr()
    first = copied(outputs(demo_model)[0])
    assert len(first.trace[0].guesses) == 1
    assert any(math.isnan(f) for r in first.trace for f in r.realised_fall)
    assert any(not math.isnan(f) for r in first.trace for f in r.realised_fall)
    assert math.isnan(first.trace[-1].influence[0]) or first.trace[0].scored == 4
    with pytest.raises(AttributeError):
        first.seconds = 0.0


@pytest.mark.case("F15")
@pytest.mark.parametrize("copied", COPIES)
def test_other_objects_are_copied(demo_model: tabes.Model, copied: Callable[[Any], Any]) -> None:
    assert_same(copied(demo_model.info), demo_model.info)
    scores = tabes.influence(demo_model, [X.tolist()], [[1, 2]], [[5, 6, 7]])
    assert_same(copied(scores), scores)
    seen: list[Any] = []

    class Keeps(tabes.Policy):
        def decide(self, context: tabes.StepContext) -> tabes.Decision:
            nan = torch.full_like(context.predictions.confidence, math.nan)
            seen.append(context.predictions)
            decision = tabes.Decision(context.predictions.entropy, [], (), nan, [1, 2])
            seen.extend([decision, tabes.Decision(nan)])
            return decision

    tabes.generate(demo_model, X, steps=1, policy=Keeps())
    assert seen[2].influence is None
    for thing in seen:
        assert_same(copied(thing), thing)


@pytest.mark.case("F15")
@pytest.mark.parametrize("protocol", range(6))
def test_what_does_not_travel_says_so(demo_model: tabes.Model, protocol: int) -> None:
    options = tabes._core.GenerateOptions()
    settings = tabes._core.read_tokenizer_settings(str(tabes.demo_checkpoint()))
    for thing in (demo_model, demo_model.core, options, settings):
        with pytest.raises(TypeError, match=r"cannot pickle 'tabes\._core"):
            pickle.dumps(thing, protocol)


@pytest.mark.case("F15", "N12")
@pytest.mark.parametrize("copied", COPIES)
def test_policies_are_copied(demo_model: tabes.Model, copied: Callable[[Any], Any]) -> None:
    for name in tabes.policy_names():
        policy = tabes.make_policy(name)
        again = copied(policy)
        assert again == policy
        assert type(again) is type(policy)
    boe = copied(tabes.BoE(alpha=[0.1, 1 / 3], n_candidates="2.5x", halo=3))
    assert (boe.alpha, boe.n_candidates, boe.halo) == ([0.1, 1 / 3], "2.5x", 3)
    # Python classes, with what they hold.
    held = copied(Delegate(tabes.BoE(factor=0.0)))
    assert type(held) is Delegate
    left = copied(Leftmost(factor=0.0, alpha=0.3))
    assert (type(left), left.alpha, left.factor) == (Leftmost, [0.3], 0.0)
    for got, wanted in ((held, tabes.BoE(factor=0.0)), (left, Leftmost(factor=0.0, alpha=0.3))):
        one = tabes.generate(demo_model, X, steps=4, policy=got)
        other = tabes.generate(demo_model, X, steps=4, policy=wanted)
        assert torch.equal(one.tokens, other.tokens)
        assert one.backward_rows == other.backward_rows > 0


class WithState(tabes.Policy):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.lock = number, object()

    def __getstate__(self) -> dict[str, int]:
        return {"number": self.number}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.number, self.lock = state["number"], "new"


def test_a_python_policy_may_say_what_its_state_is() -> None:
    again = pickle.loads(pickle.dumps(WithState(5)))
    assert (again.number, again.lock, again.pace()) == (5, "new", "quota")


def work(queue: Any) -> None:
    torch.set_num_threads(1)
    model = tabes.load(tabes.demo_checkpoint())
    queue.put(tabes.generate(model, X, steps=4, policy=tabes.BoE(factor=0.0)))
    queue.put((model.info, tabes.BoE(alpha=0.3)))


@pytest.mark.case("F15")
def test_results_come_out_of_a_worker(demo_model: tabes.Model) -> None:
    """Also when the worker has ended before they are read."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    out, (info, policy) = queue.get(timeout=30), queue.get(timeout=30)
    here = tabes.generate(demo_model, X, steps=4, policy=tabes.BoE(factor=0.0))
    assert torch.equal(out.tokens, here.tokens)
    assert out.texts == here.texts
    assert [r.position.tolist() for r in out.trace] == [r.position.tolist() for r in here.trace]
    assert_same(info, demo_model.info)
    assert policy == tabes.BoE(alpha=0.3)


def test_damaged_pickles_are_refused(demo_model: tabes.Model) -> None:
    record = tabes.generate(demo_model, X, steps=2).trace[0]
    state = record.__getstate__()
    place = next(i for i, part in enumerate(state) if isinstance(part, tuple))
    kind, sizes, device, data = state[place]
    for bad in (
        (kind, sizes, device, data + b"x"),
        (kind, [2**40], device, data),
        (kind, [-1], device, data),
        (kind, [0, 2**62], device, data),
        ("Complex", sizes, device, data),
        (kind, sizes, device),
    ):
        changed = (*state[:place], bad, *state[place + 1 :])
        with pytest.raises(tabes.InputError, match="damaged"):
            tabes.StepRecord.__new__(tabes.StepRecord).__setstate__(changed)
    with pytest.raises(tabes.InputError, match="another version"):
        tabes.StepRecord.__new__(tabes.StepRecord).__setstate__(state[1:])


@pytest.mark.case("N12")
def test_objects_show_what_they_are(demo_model: tabes.Model) -> None:
    first, again, texts = outputs(demo_model)
    assert repr(first.trace[0]).startswith("StepRecord(step 1 of 4: 2 revealed, ")
    assert repr(first.trace[0]).endswith(" backward rows)")
    assert "masked again" in "".join(map(repr, again.trace))
    assert "stopped by the callback" in repr(first)
    assert repr(first).startswith("GenerateOutput(tokens [10], texts ['")
    assert repr(again).startswith("GenerateOutput(2 sequences of 5 to 10 tokens, ")
    assert "1 steps, 1.0 forward-equivalents" in repr(texts)
    info = repr(demo_model.info)
    assert info.startswith("ModelInfo(llada, ")
    assert f"vocabulary {demo_model.info.vocab_size}, mask 3" in info
    assert info.endswith("float32 on cpu)")
    scores = tabes.influence(demo_model, [X.tolist()], [[1, 2]], [[5, 6, 7]])
    assert repr(scores).startswith("Influence(1 sequences, 2 candidates, ")
    assert repr(tabes.Decision(torch.ones(3), [2])) == "Decision(3 scores, count=[2])"
    assert repr(Delegate(tabes.BoE())) == "<Delegate: delegate>"
    assert repr(Leftmost(alpha=0.3)) == "<Leftmost: boe(alpha=0.3)>"
    for thing in (first, first.trace[0], demo_model.info, scores, tabes.BoE.paper()):
        assert len(repr(thing)) < 400
        assert " at 0x" not in repr(thing)


CLASSES = (
    tabes.BoE,
    tabes.Decision,
    tabes.Influence,
    tabes.ModelInfo,
    tabes.Policy,
    tabes.Predictions,
    tabes.StepContext,
    tabes.StepRecord,
    tabes.GenerateOutput,
    tabes.Model,
)


@pytest.mark.case("N14")
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_everything_public_has_help(kind: type) -> None:
    assert kind.__doc__
    assert "Initialize self" not in kind.__doc__
    for name in dir(kind):
        if name.startswith("_"):
            continue
        text = inspect.getdoc(getattr(kind, name)) or ""
        # pybind11 writes the signature of a function above its help.
        text = text.split("\n\n", 1)[-1] if text.startswith(f"{name}(") else text
        assert len(text) > 10, f"{kind.__name__}.{name}: {text!r}"
        assert "->" not in text, f"{kind.__name__}.{name}: {text!r}"
    # What a dataclass or a class of ours has as attributes is in the help of the class.
    for name in getattr(kind, "__dataclass_fields__", {}):
        assert f"{name}:" in kind.__doc__


@pytest.mark.case("N14")
def test_help_says_shapes_and_units() -> None:
    for kind, name, part in (
        (tabes.StepContext, "tokens", "int64 [R]"),
        (tabes.StepContext, "waiting_entropy", "nats"),
        (tabes.StepRecord, "influence", "float64 [k], nats"),
        (tabes.Predictions, "entropy", "[n], nats"),
        (tabes.Influence, "tis", "in nats"),
        (tabes.BoE, "tau", "temperature"),
    ):
        assert part in getattr(kind, name).__doc__
