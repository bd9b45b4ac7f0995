"""One notation for policies and their settings, in Python as in C++."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tabes
import torch

NAMES = tabes.policy_names()


@pytest.mark.case("N11")
def test_the_same_policy_in_every_spelling() -> None:
    wanted = tabes.BoE(alpha=[0.25, 0.5], n_candidates="3x", context="exact")
    for policy in (
        tabes.make_policy("boe(alpha=0.25,0.5; n_candidates=3x, context=exact)"),
        tabes.make_policy("boe", "alpha=0.25;0.5,n_candidates=3x;context=exact"),
        tabes.make_policy("boe", alpha=[0.25, 0.5], n_candidates="3x", context="exact"),
        tabes.make_policy("boe(context=exact)", "n_candidates=3x", alpha=(0.25, 0.5)),
        tabes.make_policy("boe", alpha=np.array([0.25, 0.5]), n_candidates="3x", context="exact"),
        tabes.make_policy(" boe ( alpha = .25 , 5e-1 ; n_candidates=3x;context=exact)\n"),
    ):
        assert isinstance(policy, tabes.BoE)
        assert policy == wanted
        assert hash(policy) == hash(wanted)
        assert policy.alpha == [0.25, 0.5]


@pytest.mark.case("N11")
def test_generate_takes_the_notation(demo_model: tabes.Model) -> None:
    x = torch.tensor([1, *[3] * 12, 2])
    for text, policy in (
        ("threshold(tau=0.3)", tabes.make_policy("threshold", tau=0.3)),
        ("boe(n_candidates=4x; factor=0)", tabes.BoE(n_candidates="4x", factor=0.0)),
    ):
        got = tabes.generate(demo_model, x, steps=4, policy=text)
        wanted = tabes.generate(demo_model, x, steps=4, policy=policy)
        assert torch.equal(got.tokens, wanted.tokens)
        assert got.forward_equivalents == wanted.forward_equivalents
    with pytest.raises(tabes.InputError, match="did you mean 'tau'"):
        tabes.generate(demo_model, x, policy="threshold(tao=0.3)")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.case("N12")
def test_policies_say_their_settings(name: str) -> None:
    policy = tabes.make_policy(name)
    for again in (
        tabes.make_policy(policy.notation()),
        tabes.make_policy(repr(policy)),
        tabes.make_policy(policy.name(), **policy.settings()),
    ):
        assert again == policy
        assert again.settings() == policy.settings()
    assert list(policy.settings()) == [
        part.split("=")[0] for part in policy.notation().rstrip(")").split("(")[-1].split(", ")
        if "=" in part
    ]  # fmt: skip


@pytest.mark.case("N12")
def test_repr_shows_what_differs() -> None:
    assert repr(tabes.make_policy("threshold")) == "threshold"
    assert repr(tabes.make_policy("threshold", tau=0.5)) == "threshold(tau=0.5)"
    assert repr(tabes.BoE()) == "boe"
    assert repr(tabes.BoE(alpha=[0.1, 1 / 3], halo=2)) == (
        "boe(alpha=0.1;0.3333333333333333, halo=2)"
    )
    assert repr(tabes.BoE.paper()) == repr(tabes.make_policy("boe_paper"))
    assert repr(tabes.BoE.paper()).startswith("boe(n_candidates=3, alpha=1, draft=expected, ")


def test_policies_compare_by_settings() -> None:
    same = {tabes.make_policy("low_confidence"), tabes.make_policy("confidence")}
    assert len(same) == 1
    assert tabes.BoE() != tabes.BoE(alpha=0.4)
    assert tabes.BoE() != tabes.make_policy("confidence")
    assert tabes.BoE() != "boe"
    assert tabes.make_policy("factor", f=1) == tabes.make_policy("factor", f=1.0)


def test_settings_keep_their_kinds() -> None:
    settings = tabes.BoE(alpha=0.5, halo=np.int32(2), n_candidates=3, tau=1).settings()
    assert settings["alpha"] == [0.5]
    assert (settings["halo"], type(settings["halo"])) == (2, int)
    assert (settings["n_candidates"], settings["tau"]) == (3, 1.0)
    assert tabes.make_policy("klass").settings() == {"tau": 0.9, "epsilon": 0.01, "history": 2}
    assert isinstance(tabes.make_policy("klass").settings()["history"], int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tabes.make_policy("threshold(tau=0.9)", tau=0.9), "tau is given twice"),
        (lambda: tabes.make_policy("threshold(tau=0.9"), "does not close"),
        (lambda: tabes.make_policy("boe", "alpha"), "'alpha' is no setting"),
        (lambda: tabes.make_policy("boe", alpha=[]), "alpha names no point"),
        (lambda: tabes.make_policy("boe", alpha=math.nan), "alpha must be"),
        (lambda: tabes.make_policy("threshold", tau=10**400), "tau=.*it must be a number"),
        (lambda: tabes.make_policy("threshold", tau=10**5000), "tau=a int: it must be a number"),
        (lambda: tabes.make_policy("threshold", tau=True), "tau=True: it must be a number"),
        (lambda: tabes.make_policy("threshold", tau=None), "tau=None: it must be a number"),
        (lambda: tabes.make_policy("threshold", tau=[0.9]), r"tau=\[0.9\]: it must be a number"),
        (lambda: tabes.make_policy("threshold", tau=b"0.9"), "tau=b'0.9': it must be a number"),
        (lambda: tabes.make_policy("threshold", **{"t\0u": 1}), r"no setting 't\\x00u'"),
        (lambda: tabes.make_policy("thr\udc80shold"), r"'thr\\udc80shold': it holds a lone"),
        (lambda: tabes.make_policy("boe", context="\udc80"), r"context=\\udc80: it must be one"),
        (lambda: tabes.make_policy("boe\0"), "is unknown"),
        (lambda: tabes.make_policy(3), "name=3: it must be a string"),
        (lambda: tabes.make_policy("boe", 3), "settings=3: it must be a string"),
    ],
)
@pytest.mark.case("N11")
def test_what_is_refused_is_named(call, message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        call()
