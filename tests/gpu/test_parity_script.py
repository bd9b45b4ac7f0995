"""parity.py where there is no GPU: it runs on the CPU, and its comparisons can fail."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attention_cases
import parity
import parity_attention
import parity_decodes
import pytest
import tabes
import torch
from attention_cases import AttentionCase
from naive_model import NaiveModel
from parity_models import KINDS, Questions, norm
from parity_report import Report, relative_error
from torch import Tensor

# Where a line is not called as the operator is.
NAMES = {"active_query_attention_backward": "attention adjoint, own"}
DTYPES = {"float32", "bfloat16"}  # float16 has no kernels on the CPU


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for each other take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The lines of a run on the CPU, all within limits, and what it printed."""
    out = folder / "parity.json"
    done = subprocess.run(
        [sys.executable, "parity.py", "--device", "cpu", "--json", str(out), *options],
        cwd=Path(__file__).parent, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines: list[dict[str, Any]] = json.loads(out.read_text())
    assert f"parity: {len(lines)} of {len(lines)} within limits" in done.stdout
    for line in lines:
        assert line["ok"] is True
        assert 0 <= line["error"] <= line["limit"]
        assert line["dtype"] in DTYPES
    # Each of them once.
    assert len({(line["name"], line["dtype"]) for line in lines}) == len(lines)
    return lines, done.stdout


def dtypes_of(lines: list[dict[str, Any]], start: str) -> set[str]:
    return {line["dtype"] for line in lines if line["name"].startswith(start)}


def operators() -> set[str]:
    names = (name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names())
    return {name.removeprefix("tabes::") for name in names if name.startswith("tabes::")}


def test_small_sizes_cover_every_operator(tmp_path: Path) -> None:
    lines, said = run(tmp_path, "--small")
    assert len(lines) >= 80
    found = operators()
    assert len(found) >= 11
    for operator in found:
        assert dtypes_of(lines, NAMES.get(operator, operator)) == DTYPES, operator
    assert "left out: NaNs in the memory of results" in said
    assert not any("decode" in line["name"] or "again" in line["name"] for line in lines)


def test_all_of_it(tmp_path: Path) -> None:
    lines, said = run(tmp_path)
    assert len(lines) >= 300
    again = "  the same bits again: "
    for operator in operators() - {"active_query_attention"}:
        assert dtypes_of(lines, again + NAMES.get(operator, operator)) == DTYPES, operator
    for what in ("model.logits", "tabes.influence, own", "decode boe by quota, host"):
        assert dtypes_of(lines, again + what) == DTYPES
    assert dtypes_of(lines, "model.logits") == DTYPES
    for kind in KINDS:
        assert dtypes_of(lines, f"tabes.influence, own: {kind}") == DTYPES
    for case in parity_decodes.CASES:
        assert dtypes_of(lines, f"decode {case.name}, temperature 0.0, host") == {"float32"}
        if case.counts_known:
            name = f"decode {case.name}, temperature 0.7: tokens not the host's"
            assert dtypes_of(lines, name) == DTYPES
    (shares,) = (line for line in lines if line["name"].startswith("decodes: share"))
    assert shares["dtype"] == "bfloat16"
    assert shares["limit"] < 0.3
    for what in ("decodes in {} replayed as CUDA graphs", "attention adjoint in {} from PyTorch's"):
        for dtype in DTYPES:
            assert f"left out: {what.format(f'torch.{dtype}')}" in said
    assert not any("graphs" in line["name"] or "stock" in line["name"] for line in lines)


def compared(got: Tensor, naive: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether `got` passes for 1, 2, 3."""
    report = Report("cpu")
    truth = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    report.compare("numbers", dtype, (got,), (truth,), None if naive is None else (naive,))
    (line,) = report.lines
    return line.ok


def test_a_wrong_result_fails() -> None:
    right = torch.tensor([1.0, 2.0, 3.0])
    plain = right + torch.tensor([0.0, 0.1, 0.0])
    assert compared(right)
    assert compared(right + 1e-5)
    assert not compared(right + 1e-3)
    assert compared(right - torch.tensor([0.19, 0.0, 0.0]), plain)
    assert not compared(right - torch.tensor([0.21, 0.0, 0.0]), plain)
    # Plain PyTorch's error is no excuse in float32.
    assert not compared(right + 1e-3, plain, torch.float32)


def test_what_cannot_be_compared_fails() -> None:
    right = torch.tensor([1.0, 2.0, 3.0])
    for bad in (torch.nan, torch.inf):
        wrong = torch.tensor([1.0, bad, 3.0])
        assert not compared(wrong)
        assert not compared(wrong, right + 0.1)
        # Nor does a plain result that is not one allow anything.
        assert not compared(right + 1e-3, wrong)
    assert not compared(torch.tensor(2.0))  # would be broadcast
    assert not compared(right[:2])
    with pytest.raises(ValueError, match="zip"):
        Report("cpu").compare("none", torch.float32, (), (right.double(),), None)


def test_the_worst_of_several_results_counts() -> None:
    report = Report("cpu")
    right, truth = torch.ones(2), torch.ones(2, dtype=torch.float64)
    for results in ((right, right * 2, right), (right * torch.nan, right, right)):
        report.compare("three", torch.float32, results, (truth,) * 3, None)
    assert [line.ok for line in report.lines] == [False, False]


def test_bits_that_differ_fail() -> None:
    report = Report("cpu")
    x = torch.tensor([1.0, torch.nan, 0.0], dtype=torch.bfloat16)
    report.same("itself", x.dtype, (x,), (x.clone(),))
    others = (torch.nextafter(x, x + 1), x * torch.tensor([1, 1, -1]), x.float(), x[:2])
    for other in others:
        report.same("another", x.dtype, (x,), (other,))
    assert [line.ok for line in report.lines] == [True, *[False] * len(others)]


def test_a_failed_line_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("rows", "logits", "draws", "attention"):
        monkeypatch.setattr(parity, part, lambda *_: None)
    argv = ["parity.py", "--small", "--device", "cpu", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", argv)
    assert parity.main() == 0
    monkeypatch.setattr(parity, "draws", lambda report, dtype: report.add("bad", dtype, 1, 0))
    assert parity.main() == 1
    assert "FAILED" in capsys.readouterr().out
    assert [line["ok"] for line in json.loads((tmp_path / "out.json").read_text())] == [False] * 2


def test_the_naive_model_is_the_same_function() -> None:
    """In float64 it is the truth, so that in 16 bits its error is that of rounding alone."""
    questions, naive = Questions(), NaiveModel("cpu", torch.float64)
    truth = questions.logits(questions.truth)
    # The module's rotary angles are float32.
    assert relative_error(questions.naive_logits(naive), truth) <= 1e-5
    for kind in KINDS:
        tis = questions.influence(questions.truth, kind)
        assert relative_error(questions.naive_influence(naive, kind), tis, norm) <= 1e-4, kind
    canvas = parity_decodes.MORE_CANVASES[1]
    policy = parity_decodes.QUOTA
    for context in ("frozen", "exact"):
        boe = tabes.BoE(factor=policy.factor, context=context)
        wanted = tabes.generate(questions.truth, canvas, policy=boe, steps=8).tokens
        assert isinstance(wanted, torch.Tensor)
        assert naive.steered_decode(canvas, 8, boe).equal(wanted)
    wrapped = tabes.generate(naive.wrapped(), canvas, steps=8).tokens
    assert isinstance(wrapped, torch.Tensor)
    assert wrapped.equal(torch.as_tensor(tabes.generate(questions.truth, canvas, steps=8).tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("lengths", "active", "heads", "groups"),
    [
        ([130, 9, 9, 70], [65, 0, 4, 17], 4, 2),
        ([64, 64], [5, 5], 2, 2),
        ([40, 40, 7], [3, 3, 3], 2, 1),
    ],
)
def test_stock_results_are_put_in_order(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lengths: list[int], active: list[int],
    heads: int, groups: int,
) -> None:  # fmt: skip
    """With the CPU's kernel in the place of the GPU's, whose layouts it gets."""

    def flash(q: Tensor, k: Tensor, v: Tensor, *rest: object, scale: float) -> tuple[Tensor, ...]:
        assert dtype != torch.float32
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        both = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
        return (*both, torch.empty(0))

    def efficient(q: Tensor, k: Tensor, v: Tensor, *rest: object, scale: float) -> tuple[Any, ...]:
        assert dtype == torch.float32
        assert rest == (None, True, 0.0, False)
        assert q.shape[1] == k.shape[1] == v.shape[1]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
        spare = -q.shape[2] % 32
        return out, torch.nn.functional.pad(lse, (0, spare), value=torch.inf), None

    monkeypatch.setattr(
        attention_cases, "aten",
        SimpleNamespace(_scaled_dot_product_flash_attention=flash,
                        _scaled_dot_product_efficient_attention=efficient),
    )  # fmt: skip
    case = AttentionCase("", dtype, lengths, active, heads, groups, 64)
    report = Report("cpu")
    out, lse = parity_attention.stock(report, case)
    assert [line.ok for line in report.lines] == [True, True]
    assert out.dtype == dtype
    assert lse.shape == (sum(active), heads)
    assert lse.dtype == torch.float32
    # And the operator takes them.
    assert case.adjoint("cpu", dtype, (out, lse))[0].shape == (sum(active), heads, 64)


def test_graphs_that_replay_nothing_or_something_else_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With decodes that only say that they replayed, since nothing replays on the CPU."""
    cases = [parity_decodes.Case("confidence", dict(policy="confidence")),
             parity_decodes.Case("boe exact", dict(policy=tabes.BoE(context="exact")))]  # fmt: skip
    monkeypatch.setattr(parity_decodes, "CASES", cases)
    monkeypatch.setattr(
        parity_decodes, "CANVASES", [torch.tensor([1] + [3] * n + [2]) for n in (5, 9)]
    )
    real = parity_decodes.decode
    model = tabes.load(tabes.demo_checkpoint(), dtype="bfloat16")

    def lines(spoil: str) -> dict[str, bool]:
        runs = 0

        def decode(
            model: tabes.Model, case: parity_decodes.Case, temperature: float, on_device: bool,
            cuda_graphs: bool,
        ) -> tabes.GenerateOutput:  # fmt: skip
            nonlocal runs
            out = real(model, case, temperature, on_device=on_device, cuda_graphs=False)
            if not cuda_graphs:
                runs = 0
                return out
            runs += 1
            assert isinstance(out.tokens, list)
            if spoil == "tokens" and runs == 3:
                out.tokens[0][4] += 1
            # Each step's pass, and a gradient in half of them and more: twice is enough.
            replayed = 0 if spoil == "replays" else 2 * len(out.trace) if runs == 3 else 0
            return dataclasses.replace(out, replayed_passes=replayed)

        monkeypatch.setattr(parity_decodes, "decode", decode)
        report = Report("cpu")
        parity_decodes.graphs(report, torch.bfloat16, model, 0.03)
        return {line.name: line.ok for line in report.lines}

    good = lines("")
    assert all(good.values())
    for case in cases:
        for said in (": as the first run", ": of ", ": tokens not those without"):
            assert any(n.startswith(f"graphs, {case.name}, host{said}") for n in good), said
    for spoil, said in (("replays", "not replayed"), ("tokens", "as the first run")):
        bad = lines(spoil)
        assert not any(ok for name, ok in bad.items() if said in name)
    assert not lines("tokens")["graphs, confidence, host: tokens not those without"]
