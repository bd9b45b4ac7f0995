"""Influence scores and BoE decodes against plain PyTorch autograd in float64, on real weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tabes
import torch
from reference import Reference, bert, decode, influence, llada
from safetensors.torch import load_file
from tabes import _core


@pytest.fixture(scope="module")
def demo_reference(demo_model: tabes.Model) -> Reference:
    weights = load_file(tabes.demo_checkpoint() / "model.safetensors")
    return llada(weights, 8, 8, demo_model.info.mask_token_id, 1e4)


@pytest.fixture(scope="module")
def rxnfp_reference(rxnfp_checkpoint: Path, rxnfp_model: tabes.Model) -> Reference:
    return bert(rxnfp_checkpoint, 4, rxnfp_model.info.mask_token_id)


def canvas(model: tabes.Model, length: int, masks: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(20, model.info.vocab_size, (length,), generator=generator)
    tokens = tokens.clamp(max=model.info.vocab_size - 1)
    tokens[torch.randperm(length, generator=generator)[:masks]] = model.info.mask_token_id
    return tokens


def split(tokens: torch.Tensor, mask: int, count: int) -> tuple[list[int], list[int]]:
    """Candidates out of order, and as many probes."""
    masked = (tokens == mask).nonzero()[:, 0].tolist()
    return masked[::2][:count][::-1], masked[1::2][:count]


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("alpha", [[0.5], [0.25, 0.5], [1.0], [0.0]])
@pytest.mark.parametrize("name", ["rxnfp", "demo"])
def test_tis_equals_autograd_with_stopped_gradients(
    name: str, alpha: list[float], request: pytest.FixtureRequest
) -> None:
    single: tabes.Model = request.getfixturevalue(f"{name}_model")
    reference: Reference = request.getfixturevalue(f"{name}_reference")
    assert single.path is not None
    double = tabes.load(single.path, dtype="float64")
    batch = [canvas(single, length, length // 2, seed=length) for length in (40, 23, 64)]
    sets = [split(t, single.info.mask_token_id, 5) for t in batch]
    candidates, probes = [list(s) for s in zip(*sets, strict=True)]
    special = single.info.special_token_ids
    rounded, all_wanted = [], []
    for halo, adjoint, tau in ((0, "active", 1.0), (1, "active", 0.5), (0, "dense", 0.0)):
        options = dict(alpha=alpha, tau=tau, halo=halo, adjoint=adjoint)
        exact = tabes.influence(double, batch, candidates, probes, **options)
        got = tabes.influence(single, batch, candidates, probes, **options)
        for b, tokens in enumerate(batch):
            near = {
                row
                for p in candidates[b] + probes[b]
                for row in range(p - halo, p + halo + 1)
                if 0 <= row < len(tokens)
            }
            wanted = influence(
                reference,
                tokens,
                candidates[b],
                probes[b],
                alpha=alpha,
                tau=tau,
                active=sorted(near) if adjoint == "active" else None,
                forbidden=special,
            )
            assert relative(exact.tis[b], wanted) <= 1e-9, (halo, adjoint)
            rounded.append(got.tis[b])
            all_wanted.append(wanted)
        assert got.forward_rows == sum(map(len, batch)) * (1 + len(alpha))
        if halo == 0 and adjoint == "active":
            assert got.backward_rows == 30 * len(alpha)
    # At alpha = 1 entropies are saturated and their terms cancel: plain float32 PyTorch is off by
    # up to 1e-5 there itself.
    limit = 2e-5 if alpha == [1.0] else 1e-5
    assert relative(torch.cat(rounded), torch.cat(all_wanted)) <= limit


def test_candidates_may_be_their_own_probes(demo_reference: Reference) -> None:
    model = tabes.load(tabes.demo_checkpoint(), dtype="float64")
    tokens = canvas(model, 40, 24, seed=9)
    candidates, _ = split(tokens, model.info.mask_token_id, 6)
    for context in ("exact", "frozen"):
        got = tabes.influence(
            model, [tokens], [candidates], [candidates], alpha=0.5, tau=0.0, context=context
        )
        wanted = influence(
            demo_reference, tokens, candidates, candidates, alpha=[0.5], tau=0.0,
            active=sorted(candidates), frozen=context == "frozen",
        )  # fmt: skip
        assert relative(got.tis[0], wanted) <= 1e-9
        assert got.backward_rows == 6
    with pytest.raises(tabes.InputError, match="both a candidate and a probe"):
        _core.one_step_fall(model.core, [tokens], [candidates], [candidates], [])


def test_tis_of_random_grouped_query_model(tiny_llada: Callable[..., tuple]) -> None:
    folder, module = tiny_llada(n_layers=3, d_model=96, n_heads=6, n_kv_heads=2, vocab=131)
    model = tabes.load(folder)
    reference = llada(module.state_dict(), 6, 2, 3, 5e5)
    tokens = canvas(model, 33, 20, seed=1)
    candidates, probes = split(tokens, 3, 6)
    banned = [5, 9]
    got = tabes.influence(model, [tokens], [candidates], [probes], forbidden=banned)
    wanted = influence(
        reference, tokens, candidates, probes, alpha=[0.5], active=sorted(candidates + probes),
        forbidden=banned,
    )  # fmt: skip
    assert relative(got.tis[0], wanted) <= 1e-5
    without = tabes.influence(model, [tokens], [candidates], [probes])
    assert relative(without.tis[0], wanted) > 1e-3


@pytest.mark.parametrize("alpha", [[0.4], [0.25, 0.5], [1.0]])
def test_frozen_tis_equals_autograd(demo_reference: Reference, alpha: list[float]) -> None:
    model = tabes.load(tabes.demo_checkpoint(), dtype="float64")
    tokens = canvas(model, 40, 24, seed=8)
    candidates, probes = split(tokens, model.info.mask_token_id, 5)
    wanted = influence(
        demo_reference, tokens, candidates, probes, alpha=alpha, active=sorted(candidates + probes),
        frozen=True,
    )  # fmt: skip
    got = tabes.influence(model, [tokens], [candidates], [probes], alpha=alpha, context="frozen")
    assert relative(got.tis[0], wanted) <= 1e-9
    exact = tabes.influence(model, [tokens], [candidates], [probes], alpha=alpha)
    assert relative(exact.tis[0], wanted) > 1e-3


def test_bfloat16_stays_near(demo_reference: Reference) -> None:
    model = tabes.load(tabes.demo_checkpoint(), dtype="bfloat16")
    tokens = canvas(model, 40, 20, seed=3)
    candidates, probes = split(tokens, model.info.mask_token_id, 6)
    wanted = influence(
        demo_reference, tokens, candidates, probes, alpha=[0.5], active=sorted(candidates + probes)
    )
    got = tabes.influence(model, [tokens], [candidates], [probes]).tis[0]
    assert relative(got, wanted) <= 0.1


def test_frozen_ranks_like_exact(rxnfp_model: tabes.Model) -> None:
    """On real weights frozen and exact scores agree in the main; the figure is printed."""
    agreement = []
    for seed in range(30):
        tokens = canvas(rxnfp_model, 48, 24, seed)
        candidates, probes = split(tokens, rxnfp_model.info.mask_token_id, 8)
        exact, frozen = (
            tabes.influence(rxnfp_model, [tokens], [candidates], [probes], context=c).tis[0]
            for c in ("exact", "frozen")
        )
        ranks = torch.stack([exact.argsort().argsort(), frozen.argsort().argsort()]).double()
        agreement.append(torch.corrcoef(ranks)[0, 1].item())
    mean = sum(agreement) / len(agreement)
    print(f"rank correlation of frozen with exact scores: {mean:.3f}")
    assert mean > 0.8


def molecules(number: int, length: int) -> list[torch.Tensor]:
    """Molecules of the bundled tokenizer with six tenths of the positions masked."""
    model = tabes.load(tabes.demo_checkpoint())
    texts = ["CC(=O)Nc1ccc(O)cc1", "COc1ccc(CNC(C)=O)cc1", "c1ccc(-c2ccccn2)cc1", "CCN1CCN(C)CC1"]
    assert model.tokenizer is not None
    out = []
    for i in range(number):
        generator = torch.Generator().manual_seed(i)
        tokens = torch.tensor(model.tokenizer.encode(texts[i % len(texts)]))
        inner = 1 + torch.randperm(len(tokens) - 2, generator=generator)
        tokens[inner[: int(0.6 * len(inner))]] = model.info.mask_token_id
        out.append(tokens)
    return out


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (tabes.BoE(), 4),
        (tabes.BoE(factor=0.0, spread=0.0), 5),
        (tabes.BoE(
            n_candidates="3x", alpha=[0.25, 0.5], context="exact", anti_collapse=0.3,
            rule="product", draft="expected", probes="least_entropic", factor=0.2, spread=0.1,
        ), 5),
        (tabes.BoE.paper(), 5),
    ],
    ids=["default", "steered alone", "own", "paper"],
)  # fmt: skip
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_decodes_equal_a_plain_pytorch_loop(
    policy: tabes.BoE, steps: int, count: int, demo_reference: Reference
) -> None:
    # In float64 both sides; in float32 a tie within rounding may fall either way.
    model = tabes.load(tabes.demo_checkpoint(), dtype="float64")
    batch = molecules(count, 24)
    out = tabes.generate(model, batch, steps=steps, policy=policy)
    for i, tokens in enumerate(batch):
        wanted = decode(demo_reference, tokens, steps, policy)
        assert out.tokens[i].tolist() == wanted.tolist(), i
    assert sum(int((~record.influence.isnan()).sum()) for record in out.trace) > count / 2


def test_trace_of_a_steered_decode(demo_model: tabes.Model) -> None:
    tokens = torch.tensor([1] + [3] * 30 + [2])
    policy = tabes.BoE(n_candidates="3x", probes="least_entropic", rho=0.25, factor=0.0)
    out = tabes.generate(demo_model, tokens, steps=6, policy=policy)
    first = out.trace[0]
    quota = 5
    assert len(first.position) == quota
    assert not first.influence.isnan().any()
    assert first.predicted_fall[0] == pytest.approx(first.influence.sum().item())
    assert first.scored == 3 * quota
    probes = math.ceil(0.25 * 32)
    assert first.forward_rows == 32 + 3 * quota + probes
    assert first.backward_rows == 3 * quota + probes
    # The realised fall is known where a probe is still masked a step later.
    assert not math.isnan(first.realised_fall[0])
    assert math.isnan(out.trace[-1].realised_fall[0])
    assert out.backward_rows == sum(r.backward_rows for r in out.trace)
    assert out.forward_equivalents == pytest.approx((out.forward_rows + out.backward_rows) / 32)
    plain = tabes.generate(demo_model, tokens, steps=6)
    assert plain.backward_rows == 0
    assert plain.trace[0].influence.isnan().all()
    assert plain.trace[0].by_confidence.all()
    assert not all(r.by_confidence.all() for r in out.trace)


def test_steering_of_a_sequence_does_not_depend_on_its_batch(demo_model: tabes.Model) -> None:
    batch = molecules(6, 24)
    for policy in (tabes.BoE(), tabes.BoE(context="exact", probes="random", every=2)):
        together = tabes.generate(
            demo_model, batch, steps=4, policy=policy, temperature=0.7, seed=5
        )
        for i, tokens in enumerate(batch):
            alone = tabes.generate(
                demo_model, tokens, steps=4, policy=policy, temperature=0.7, seed=5,
                sequence_ids=[i],
            )  # fmt: skip
            assert alone.tokens.tolist() == together.tokens[i].tolist()


def test_every_and_min_masked_limit_steering(demo_model: tabes.Model) -> None:
    tokens = torch.tensor([1] + [3] * 30 + [2])

    def steered(**options: object) -> list[bool]:
        policy = tabes.BoE(**options)  # type: ignore[arg-type]
        trace = tabes.generate(demo_model, tokens, steps=10, policy=policy).trace
        return [record.backward_rows > 0 for record in trace]

    # Three rows a step and six candidates: with three masks left there is no choice.
    assert steered(factor=0.0) == [True] * 9 + [False]
    assert [i for i, s in enumerate(steered(factor=0.0, every=3)) if s] == [0, 3, 6]
    assert steered(factor=0.0, min_masked=25) == [True, True] + [False] * 8
    # Nine candidates, and probes beside them: with nine masks left there are none.
    others = dict(factor=0.0, n_candidates="3x", probes="least_entropic")
    assert steered(**others) == [True] * 7 + [False] * 3
    # One row a step is what the factor rule accepts in any case.
    trace = tabes.generate(demo_model, tokens, steps=30, policy="boe").trace
    assert not any(record.backward_rows for record in trace)


def test_guidance_and_steering_together(demo_model: tabes.Model) -> None:
    tokens = torch.tensor([1, 10, 11] + [3] * 20 + [2])
    for context in ("exact", "frozen"):
        out = tabes.generate(
            demo_model, tokens, steps=4, policy=tabes.BoE(context=context), cfg_scale=0.5
        )
        assert not (out.tokens == 3).any()
        assert out.trace[0].backward_rows > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(candidates=[[0]]), "not masked"),
        (dict(candidates=[[]]), "no candidates"),
        (dict(probes=[[]]), "no probes"),
        (dict(candidates=[[1, 1]]), "given twice"),
        (dict(candidates=[[99]]), "outside its 8 positions"),
        (dict(candidates=[[1], [2]]), "2 lists of candidates"),
        (dict(alpha=1.5), "alpha must be from 0"),
        (dict(alpha=[]), "alpha names no point"),
        (dict(tau=-1.0), "tau must be"),
        (dict(tau=math.inf), "tau must be"),
        (dict(halo=-1), "halo must be"),
        (dict(context="thawed"), "context 'thawed' is unknown; known are exact, frozen"),
        (dict(adjoint="sparse"), "adjoint 'sparse' is unknown"),
        (dict(forbidden=[10**6]), "outside the vocabulary"),
        (dict(forbidden=range(28)), "every token is forbidden; leave at least one"),
        (dict(forbidden="C"), "forbidden='C': give a list of token ids or names"),
        (dict(candidates=np.array(3)), "candidates=3: give one list of positions a sequence"),
        (dict(candidates=3), "candidates=3: give one list of positions a sequence"),
        (dict(candidates=["12"]), r"candidates\[0\]='12': give a list of integers"),
        (dict(candidates=[[1.0]]), r"candidates\[0\]\[0\]=1.0: it must be an integer"),
        (dict(probes=3), "probes=3: give one list of positions a sequence"),
        (dict(draft="hard"), "draft='hard': it must be one of token, expected"),
        (dict(draft=None), "draft=None: it must be a string"),
        (dict(policy="margin"), "policy=margin: only those of boe have influence scores"),
        (dict(policy=3), "policy=3: only those of boe"),
        (dict(policy="boe(alpha=2)"), "alpha must be from 0"),
        (dict(policy="boe", alpha=0.25), "are the policy's own: leave them out"),
        (dict(policy="boe", draft="token"), "are the policy's own: leave them out"),
        (dict(policy="boe_paper", probes=None), "are not its candidates: give probes"),
        (dict(context=None), "context=None: it must be a string"),
        (dict(adjoint=1), "adjoint=1: it must be a string"),
        (dict(alpha="0.5"), "alpha='0.5': it must be a number"),
        (dict(alpha=None), "alpha=None: it must be a number"),
        (dict(alpha=[0.5, "x"]), r"alpha\[1\]='x': it must be a number"),
        (dict(alpha=10**400), "alpha: it must be a number that fits a double"),
        (dict(tau=torch.ones(2)), "tau=.*: it must be a number"),
        (dict(tau="warm"), "tau='warm': it must be a number"),
        (dict(halo=0.5), "halo=0.5: it must be an integer"),
        (dict(halo=2**70), "halo=.*: it must fit 64 bits"),
    ],
)
def test_bad_input_is_refused(demo_model: tabes.Model, change: dict, message: str) -> None:
    given: dict = dict(candidates=[[1]], probes=[[2]]) | change
    tokens = [[1, 3, 3, 3, 3, 3, 3, 2]]
    with pytest.raises(tabes.InputError, match=message):
        tabes.influence(demo_model, tokens, **given)


@pytest.mark.case("N05")
def test_a_policy_s_scores(demo_model: tabes.Model) -> None:
    """They are those of its settings, spelled out."""
    tokens = canvas(demo_model, 40, 20, seed=2)
    candidates, probes = split(tokens, demo_model.info.mask_token_id, 6)
    ours = tabes.influence(demo_model, tokens, [candidates], policy=tabes.BoE())
    spelled = tabes.influence(
        demo_model, tokens, [candidates], [candidates], alpha=0.5, context="frozen", draft="token"
    )
    assert torch.equal(ours.tis[0], spelled.tis[0])
    tau = tabes.influence(demo_model, tokens, [candidates], context="frozen", tau=0.0)
    assert torch.equal(ours.tis[0], tau.tis[0])  # the likeliest token
    paper = tabes.influence(demo_model, tokens, [candidates], [probes], policy="boe_paper")
    spelled = tabes.influence(demo_model, tokens, [candidates], [probes], alpha=1.0, tau=0.5)
    assert torch.equal(paper.tis[0], spelled.tis[0])
    assert not torch.equal(paper.tis[0], ours.tis[0])


@pytest.mark.parametrize(
    "alpha",
    [
        np.float32(0.5), np.array(0.5), torch.tensor(0.5), [0.5], np.array([0.5]),
        torch.tensor([0.5]), (np.float64(0.5),), iter([0.5]),
    ],
    ids=lambda alpha: type(alpha).__name__,
)  # fmt: skip
def test_numbers_of_numpy_and_torch_are_numbers(demo_model: tabes.Model, alpha: Any) -> None:
    tokens = [[1, 3, 3, 3, 3, 3, 3, 2]]
    wanted = tabes.influence(demo_model, tokens, [[1]], [[2]], alpha=0.5).tis[0]
    assert tabes.influence(demo_model, tokens, [[1]], [[2]], alpha=alpha).tis[0] == wanted
    places = np.array([[1]]), torch.tensor([[2]])
    assert tabes.influence(demo_model, tokens, *places, alpha=0.5).tis[0] == wanted


@pytest.mark.parametrize(
    "options",
    [
        dict(rho=0.0),
        dict(rho=1.1),
        dict(alpha=2.0),
        dict(n_candidates=0),
        dict(n_candidates="0"),
        dict(n_candidates="x"),
        dict(n_candidates="1.5xx"),
        dict(probes="all"),
        dict(prefilter="entropy"),
        dict(every=0),
        dict(gamma=-1.0),
        dict(h_max=math.nan),
        dict(factor=-0.1),
        dict(spread=-1.0),
        dict(spread_width=0.0),
        dict(draft="hard"),
    ],
)
def test_bad_policies_are_refused(options: dict) -> None:
    with pytest.raises(tabes.InputError):
        tabes.BoE(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(alhpa=0.5), "policy boe has no setting 'alhpa': did you mean 'alpha'"),
        (dict(candidates=3), "did you mean 'n_candidates'"),
        (dict(zzz=1), "policy boe has no setting 'zzz'; it takes n_candidates, .*, min_masked"),
        (dict(n_candidates=2.5), "n_candidates=2.5: it must be a number of rows, or a multiple"),
        (dict(n_candidates=None), "n_candidates=None: it must be a number of rows"),
        (dict(prefilter=None), "prefilter=None: it must be one of confidence, margin"),
        (dict(alpha="half"), "alpha=half: it must be a number or a list of numbers"),
        (dict(alpha=[0.5, None]), "alpha=.*: it must be a number or a list of numbers"),
        (dict(alpha=None), "alpha=None: it must be a number or a list of numbers"),
        (dict(tau="warm"), "tau=warm: it must be a number"),
        (dict(gamma=True), "gamma=True: it must be a number"),
        (dict(rho=[0.5]), r"rho=\[0.5\]: it must be a number"),
        (dict(probes=3), "probes=3: it must be one of candidates, least_entropic, .*, nearest"),
        (dict(halo=1.5), "halo=1.5: it must be an integer"),
        (dict(every=2**70), "every=.*: it must be an integer"),
        (dict(context=None), "context=None: it must be one of exact, frozen"),
        (dict(adjoint=("active",)), "adjoint=.*: it must be one of active, dense"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(options: dict, message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        tabes.BoE(**options)
    with pytest.raises(tabes.InputError, match="by name"):
        tabes.BoE(3)  # type: ignore[misc]


def test_settings_of_numpy_and_torch() -> None:
    policy = tabes.BoE(
        n_candidates=np.int64(4), alpha=np.array([0.25, 0.5]), tau=np.float32(0.5),
        rho=torch.tensor(0.25), halo=np.int32(1),
    )  # fmt: skip
    assert (policy.n_candidates, policy.alpha, policy.tau) == (4, [0.25, 0.5], 0.5)
    assert (policy.rho, policy.halo) == (0.25, 1)
    assert tabes.BoE(alpha=torch.tensor([0.25, 0.5])).alpha == [0.25, 0.5]
    assert tabes.BoE(alpha=torch.tensor(0.25)).alpha == [0.25]
    assert tabes.BoE(alpha=np.float32(0.25)).alpha == [0.25]


def test_help_says_the_defaults() -> None:
    assert tabes.BoE.__doc__ is not None
    line = re.search(r"Defaults: (.*?)\.\n\n", tabes.BoE.__doc__, re.S)
    assert line is not None
    said = dict(re.findall(r'(\w+)="?([\w.]+)"?', line[1]))
    policy = tabes.BoE()
    for name, value in said.items():
        default = getattr(policy, name)
        assert value == str(default[0] if name == "alpha" else default), name
    assert list(said) == list(policy.settings())


def test_presets_say_what_they_are() -> None:
    paper = tabes.BoE.paper()
    assert (paper.alpha, paper.context, paper.probes) == ([1.0], "exact", "most_entropic")
    assert (paper.draft, paper.rule, paper.factor, paper.spread) == ("expected", "product", 0, 0)
    assert tabes.BoE(n_candidates="2.5x").n_candidates == "2.5x"
    assert tabes.BoE(n_candidates=4).n_candidates == 4
    assert tabes.BoE(alpha=0.3).alpha == [0.3]


def test_plain_weights_give_the_same_scores(demo_model: tabes.Model) -> None:
    plain = tabes.load(tabes.demo_checkpoint(), prepack=False)
    tokens = canvas(plain, 40, 20, seed=4)
    candidates, probes = split(tokens, plain.info.mask_token_id, 6)
    for context in ("exact", "frozen"):
        got, wanted = (
            tabes.influence(m, [tokens], [candidates], [probes], context=context).tis[0]
            for m in (plain, demo_model)
        )
        assert relative(got, wanted) <= 2e-5


def test_threads_share_a_model() -> None:
    """The transposed weights are made once, by whichever thread needs them first."""
    model = tabes.load(tabes.demo_checkpoint())
    tokens = canvas(model, 40, 20, seed=6)
    candidates, probes = split(tokens, model.info.mask_token_id, 6)

    def work(_: int) -> list[float]:
        return tabes.influence(model, [tokens], [candidates], [probes]).tis[0].tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(32)))
    assert all(f == pytest.approx(found[0], abs=1e-5) for f in found)
