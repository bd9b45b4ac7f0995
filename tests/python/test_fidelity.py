"""Fidelity: the one-step truth against plain PyTorch, its statistics by hand, and the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import tabes
import torch
import transformers
from reference import bert, distribution, entropy
from tabes import _core
from tabes.cli import main
from tabes.fidelity import (
    DEFAULT_SETTINGS,
    Setting,
    default_settings,
    fidelity,
    mask_at_random,
    spearman,
)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 0, 1, 2 against 1, 0, 2: 1 - 6 * (1 + 1) / (3 * 8) = 0.5.
    assert spearman([5, 6, 7], [2, 1, 9]) == pytest.approx(0.5)
    # Ties share a rank: 0.5, 0.5, 2 against 0, 1, 2.
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_one_step_truth_equals_plain_pytorch(
    rxnfp_model: tabes.Model, rxnfp_checkpoint: Path
) -> None:
    mask = rxnfp_model.info.mask_token_id
    reference = bert(rxnfp_checkpoint, 4, mask)
    tokens = torch.randint(12, 60, (30,), generator=torch.Generator().manual_seed(1))
    tokens[[3, 4, 9, 15, 16, 22]] = mask
    other = tokens[:20].clone()
    candidates, probes = [[15, 3], [9]], [[4, 22, 16], [3, 15]]
    never = [mask, 7, *rxnfp_model.info.special_token_ids]
    got = _core.one_step_fall(rxnfp_model.core, [tokens, other], candidates, probes, [7])
    for t, c, p, fall in zip((tokens, other), candidates, probes, got, strict=True):
        base = distribution(reference.logits(reference.table[t], None), never)
        for i, at in enumerate(c):
            written = t.clone()
            written[at] = base[at].argmax()
            after = distribution(reference.logits(reference.table[written], None), never)
            wanted = entropy(base[p]).sum() - entropy(after[p]).sum()
            assert fall[i].item() == pytest.approx(wanted.item(), abs=1e-4)


def test_masks_lie_where_asked(demo_model: tabes.Model) -> None:
    tokens = torch.arange(5, 25)
    masked = mask_at_random(demo_model, [tokens, tokens], 0.5, seed=0, after=8)
    at = (masked[0] == demo_model.info.mask_token_id).nonzero()[:, 0].tolist()
    assert len(at) == round(0.5 * 11)
    assert min(at) >= 8
    assert max(at) < 19
    assert masked[0].tolist() != masked[1].tolist()


def test_influence_predicts_better_than_chance(rxnfp_model: tabes.Model) -> None:
    """On real weights and real molecules; the paper's point does worse than half way."""
    assert rxnfp_model.tokenizer is not None
    smiles = ["CC(=O)Nc1ccc(O)cc1", "COc1ccc(CNC(C)=O)cc1", "c1ccc(-c2ccccn2)cc1", "CCN1CCN(C)CC1"]
    tokens = [torch.tensor(rxnfp_model.tokenizer.encode(f"{s}>>{s}")) for s in smiles * 6]
    texts = [
        mask_at_random(rxnfp_model, [t], 0.6, seed=i, after=len(t) // 2)[0]
        for i, t in enumerate(tokens)
    ]
    half, paper = fidelity(
        rxnfp_model,
        texts,
        [Setting(alpha=(0.4,), halo=1, context="frozen"), Setting(alpha=(1.0,))],
    )
    assert half.low > 0.2
    assert half.mean > paper.mean
    assert half.cost < 2.2 < paper.cost
    with pytest.raises(tabes.InputError, match="no text has 7 masked"):
        fidelity(rxnfp_model, [tokens[0]])


def positions(tokens: torch.Tensor, mask: int) -> list[int]:
    return (tokens == mask).nonzero()[:, 0].tolist()


@pytest.mark.case("N05")
def test_the_default_policy_is_asked_first(rxnfp_model: tabes.Model) -> None:
    """Its score is the one that it decides by: what a decode's first step records."""
    assert rxnfp_model.tokenizer is not None
    text = "CC(=O)Nc1ccc(O)cc1>>CC(=O)Nc1ccc(O)cc1"
    tokens = torch.tensor(rxnfp_model.tokenizer.encode(text))
    tokens = mask_at_random(rxnfp_model, [tokens], 0.8, seed=3, after=len(tokens) // 2)[0]
    masked = positions(tokens, rxnfp_model.info.mask_token_id)
    for policy in (tabes.BoE(factor=0.0), tabes.BoE(factor=0.0, alpha=[0.25, 0.5], halo=1)):
        # Every masked position is a candidate.
        policy = tabes.make_policy(policy.notation().replace("n_candidates=2x", "n_candidates=99"))
        first = tabes.generate(rxnfp_model, tokens, steps=4, policy=policy).trace[0]
        assert first.scored == len(masked)
        at = [masked.index(p) for p in first.position.tolist()]
        got = tabes.influence(rxnfp_model, tokens, [masked], policy=policy)
        assert torch.allclose(got.tis[0][at] * got.scale[0], first.influence, atol=1e-5)
        setting = Setting.of(policy)
        assert (setting.draft, setting.context, setting.probes) == ("token", "frozen", "candidates")
        spelled = tabes.influence(
            rxnfp_model, tokens, [masked], [masked], policy.alpha, halo=policy.halo,
            context="frozen", draft="token",
        )  # fmt: skip
        assert torch.equal(spelled.tis[0], got.tis[0])
    settings = default_settings(rxnfp_model)
    assert settings[0] == Setting.of(tabes.BoE())
    assert settings[1:] == list(DEFAULT_SETTINGS)


def reactions(model: tabes.Model) -> list[torch.Tensor]:
    """Reactions without a right side but a few atoms of it."""
    assert model.tokenizer is not None
    smiles = ["CC(=O)Nc1ccc(O)cc1", "COc1ccc(CNC(C)=O)cc1", "c1ccc(-c2ccccn2)cc1", "CCN1CCN(C)CC1"]
    tokens = [torch.tensor(model.tokenizer.encode(f"{s}>>{s}")) for s in smiles * 2]
    return [
        mask_at_random(model, [t], 0.7, seed=i, after=len(t) // 2)[0] for i, t in enumerate(tokens)
    ]


def entropy_at(model: tabes.Model, tokens: torch.Tensor, at: list[int]) -> float:
    never = [model.info.mask_token_id, *model.info.special_token_ids]
    return entropy(distribution(model.logits(tokens)[0][at].double(), never)).sum().item()


@pytest.mark.case("N05")
@pytest.mark.parametrize("probes", ["candidates", "other"])
def test_scores_do_not_add_up_to_more_than_there_is(rxnfp_model: tabes.Model, probes: str) -> None:
    """The first order at half way can fall by a multiple of all entropy that is left."""
    scaled = []
    for tokens in reactions(rxnfp_model):
        masked = positions(tokens, rxnfp_model.info.mask_token_id)
        chosen, of = (masked, masked) if probes == "candidates" else (masked[::2], masked[1::2])
        # In any order, as positions may be given.
        got = tabes.influence(rxnfp_model, tokens, [chosen[::-1]], [of[::-1]], policy="boe")
        there = entropy_at(rxnfp_model, tokens, of)
        assert got.entropy[0] == pytest.approx(there, abs=1e-3)
        rising = got.tis[0].clamp_min(0).sum().item()
        assert got.scale[0] == pytest.approx(min(1.0, there / rising), rel=1e-3)
        scaled.append(got.scale[0] < 0.7)
    assert sum(scaled) > (4 if probes == "candidates" else 0)


@pytest.mark.case("N05")
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("probes", ["candidates", "most_entropic"])
def test_a_decode_predicts_no_more_than_there_is(
    rxnfp_model: tabes.Model, probes: str, on_device: bool
) -> None:
    """Unscaled it predicts a multiple of it."""
    batch = reactions(rxnfp_model)
    n = 99 if probes == "candidates" else "1.5x"
    policy = tabes.BoE(factor=0.0, spread=0.0, n_candidates=n, probes=probes)
    out = tabes.generate(rxnfp_model, batch, steps=2, policy=policy, on_device=on_device)
    first = out.trace[0]
    more = 0
    for b, tokens in enumerate(batch):
        masked = positions(tokens, rxnfp_model.info.mask_token_id)
        own = first.position[first.sequence == b].tolist()
        chosen, of = masked, masked
        if probes != "candidates":
            shown = rxnfp_model.logits(tokens)[0][masked].double()
            never = [rxnfp_model.info.mask_token_id, *rxnfp_model.info.special_token_ids]
            sure = distribution(shown, never).softmax(-1).amax(-1)
            best = sure.argsort(descending=True)[: math.ceil(1.5 * len(own))].tolist()
            chosen = [masked[i] for i in best]
            of = [p for p in masked if p not in chosen]
        raw = tabes.influence(rxnfp_model, tokens, [chosen], [of], policy=policy)
        tis = raw.tis[0][[chosen.index(p) for p in own]]
        there, rising = entropy_at(rxnfp_model, tokens, of), raw.tis[0].clamp_min(0).sum().item()
        wanted = tis * min(1.0, there / rising)
        got = first.influence[first.sequence == b]
        assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-4)
        assert first.predicted_fall[b] == pytest.approx(wanted.sum().item(), abs=1e-2)
        assert first.predicted_fall[b] <= there + 1e-3
        more += tis.sum().item() > 1.5 * there
    assert more > 0


@pytest.mark.case("N05")
@pytest.mark.parametrize("on_device", [False, True])
def test_the_paper_s_influences_stay_as_they_are(rxnfp_model: tabes.Model, on_device: bool) -> None:
    """Its product does not count in nats."""
    policy = tabes.BoE(rule="product", factor=0.0, spread=0.0, n_candidates=99)
    scales = []
    for tokens in reactions(rxnfp_model):
        masked = positions(tokens, rxnfp_model.info.mask_token_id)
        first = tabes.generate(
            rxnfp_model, tokens, steps=2, policy=policy, on_device=on_device
        ).trace[0]
        raw = tabes.influence(rxnfp_model, tokens, [masked], policy=policy)
        scales.append(raw.scale[0])
        tis = raw.tis[0][[masked.index(p) for p in first.position.tolist()]]
        assert torch.allclose(first.influence, tis, rtol=1e-3, atol=1e-4)
    assert min(scales) < 0.7


def test_wrapped_models_go_without_frozen_settings() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tabes.wrap(transformers.BertForMaskedLM(config).eval(), mask_token_id=3)
    tokens = torch.tensor([5, 3, 3, 3, 6, 3, 3, 3, 3, 7])
    with pytest.warns(UserWarning, match="12 settings with a frozen context are not measured"):
        found = fidelity(model, [tokens])
    first, *others = [f.setting for f in found]
    assert others == [s for s in DEFAULT_SETTINGS if s.context == "exact"]
    assert first == Setting.of(tabes.BoE(context="exact"))
    # What is asked for by name is never left out in silence.
    with pytest.raises(tabes.InputError, match="no frozen context"):
        fidelity(model, [tokens], [Setting(context="frozen")])


def test_the_figure_is_checked_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(out: Path) -> str:
        # Neither checkpoint nor data exist: a complaint about the figure comes first.
        assert main(["fidelity", "no-model", "no-data", "--out", str(out)]) == 2
        return capsys.readouterr().err

    assert "must end in" in refused(tmp_path / "f.gif")
    assert "does not exist" in refused(tmp_path / "no" / "f.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'matplotlib" in refused(tmp_path / "f.svg")


def test_command(
    rxnfp_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "reactions.txt"
    smiles = ["CC(=O)Nc1ccc(O)cc1", "COc1ccc(CNC(C)=O)cc1"]
    data.write_text("".join(f"{s}>>{s}\n" for s in smiles * 2))
    arguments = ["fidelity", str(rxnfp_checkpoint), str(data), "--mask-after", ">>"]
    figure = tmp_path / "fidelity.svg"
    policies = ["--policy", "boe(alpha=0.25, 0.5)", "--policy", "boe_paper"]
    command = [*arguments, *policies, "--json", "--out", str(figure)]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == 4
    assert [s["setting"]["alpha"] for s in found["settings"]] == [[0.25, 0.5], [1.0]]
    assert [s["setting"]["draft"] for s in found["settings"]] == ["token", "expected"]
    assert [s["setting"]["probes"] for s in found["settings"]] == ["candidates", "other"]
    assert all(s["true"] > 0 for s in found["settings"])
    assert "alpha 0.25+0.5" in figure.read_text()
    assert main([*arguments, "--policy", "boe"]) == 0
    assert "alpha 0.5, token, frozen, own probes, active, halo 0" in capsys.readouterr().out
    for wrong, message in (
        (["--policy", "boe(alpha=x)"], "alpha"),
        (["--policy", "boe(alpha=3)"], "alpha must be from 0"),
        (["--policy", "confidence"], "only those of boe have influence scores"),
        (["--mask-rate", "0"], "--mask-rate"),
        (["--candidates", "1"], "--candidates"),
        (["--mask-after", "!"], "does not hold"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["fidelity", str(rxnfp_checkpoint), str(tmp_path / "none")]) == 2


@pytest.mark.case("U6")
def test_seeds_of_64_bits(
    rxnfp_model: tabes.Model,
    rxnfp_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = tmp_path / "texts"
    texts.write_text("CCOC(=O)CCNCCOC(=O)CCNCC\nCC(=O)OCCNCCOC(=O)CCNCCN\n")
    command = ["fidelity", str(rxnfp_checkpoint), str(texts), "--candidates", "2", "--json"]
    command += ["--policy", "boe"]
    found = []
    for seed in (2**63 - 1, 2**63, 2**64 - 1):
        assert main([*command, "--seed", str(seed)]) == 0
        found.append(capsys.readouterr().out)
    assert len(set(found)) == 3
    for seed in (2**64, -1):
        assert main([*command, "--seed", str(seed)]) == 2
        assert f"--seed={seed}: it must " in capsys.readouterr().err
    tokens = [torch.tensor([5, 6, 7, 8, 9])]
    with pytest.raises(tabes.InputError, match=r"the largest is 2\^64 - 1"):
        mask_at_random(rxnfp_model, tokens, 0.5, 2**64)
