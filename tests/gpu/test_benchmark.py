"""The benchmark's arithmetic against numbers worked out by hand, what it remembers of failures, and
one whole run of it on the CPU at tiny sizes."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tabes
import torch

sys.path.insert(0, str(Path(__file__).parent))

import benchmark_checks
from benchmark_decodes import kendall_tau, overlap
from benchmark_report import Bench, Work
from benchmark_steps import Point, points
from model_shape import LLADA_8B, TINY, NaiveSteps, roomy_folder, write_checkpoint
from roofline import DOCUMENTED_H100, Canvas, Ceilings, Model, Part

HERE = Path(__file__).parent
LLADA = Model(LLADA_8B)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def canvas(batch: int, length: int, active: int = 3) -> Canvas:
    return Canvas(batch, length, length // 2, 3, active - 3)


# By hand: 2 * 6.98e9 multiplications and additions a row, 4 L d a layer and row in attention, the
# head at half of the rows; 15 GB of weights, 44 numbers of d moved a row and layer.
@pytest.mark.parametrize(
    ("batch", "length", "tera", "giga"),
    [(1, 512, 7.5, 21), (1, 1024, 15.4, 27), (1, 2048, 31.8, 39), (8, 512, 60, 64),
     (8, 1024, 123, 113), (8, 2048, 255, 210)],
)  # fmt: skip
def test_floor_of_a_forward_pass(batch: int, length: int, tera: float, giga: float) -> None:
    cost = LLADA.forward(canvas(batch, length), length, length // 2)
    assert cost.flops / 1e12 == pytest.approx(tera, rel=0.01)
    assert cost.bytes / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize(
    ("batch", "length", "tera", "giga"),
    [(1, 512, 8.0, 22), (1, 1024, 16.7, 30), (1, 2048, 36.2, 44), (8, 1024, 134, 133),
     (8, 2048, 290, 251)],
)  # fmt: skip
def test_floor_of_the_dense_adjoint(batch: int, length: int, tera: float, giga: float) -> None:
    cost = LLADA.adjoint(canvas(batch, length), length, length)
    assert cost.flops / 1e12 == pytest.approx(tera, rel=0.01)
    assert cost.bytes / 1e9 == pytest.approx(giga, rel=0.02)
    # With all rows active there is nothing that FlashAttention-2 computes in vain.
    everything = LLADA.adjoint(canvas(batch, length), length, length, every_key=True)
    assert everything.flops == cost.flops


@pytest.mark.parametrize(
    ("share", "tera", "giga"),
    [(0.0625, 1.05, 17), (0.125, 2.09, 18), (0.25, 4.18, 19.5), (0.5, 8.36, 23)],
)
def test_floor_of_the_row_sparse_adjoint(share: float, tera: float, giga: float) -> None:
    rows = int(share * 1024)
    gathered = LLADA.adjoint(canvas(1, 1024), rows, rows, every_key=True)
    assert gathered.flops / 1e12 == pytest.approx(tera, rel=0.005)
    assert gathered.bytes / 1e9 == pytest.approx(giga, rel=0.03)
    # 6 A L + 4 A^2 products a column in the place of 10 A L.
    needed = LLADA.adjoint(canvas(1, 1024), rows, rows)
    saved = 32 * 4096 * 4 * rows * (1024 - rows)
    assert gathered.flops - needed.flops == pytest.approx(saved, rel=1e-9)


def test_few_rows_take_the_time_of_the_weights() -> None:
    few = LLADA.forward(canvas(1, 1024), 64, 64)
    assert few.seconds(DOCUMENTED_H100) == pytest.approx(5.0e-3, rel=0.1)
    # 720 TFLOP/s and 3 TB/s meet at 240 rows of a product.
    ceilings = Ceilings(3.0e12, 720e12)
    for rows, bound_by_bytes in ((200, True), (280, False)):
        linears = LLADA.forward(canvas(1, 1024), rows, rows).parts[0]
        by_bytes = 32 * linears.bytes / ceilings.bytes_per_second
        assert (linears.seconds(ceilings) == pytest.approx(by_bytes)) is bound_by_bytes


def test_floor_of_a_step() -> None:
    assert Part("", 6.0, 10.0, 3).seconds(Ceilings(2.0, 5.0)) == 9.0
    assert Part("", 6.0, 20.0, 3).seconds(Ceilings(2.0, 5.0)) == 12.0
    one = canvas(1, 1024, 256)
    steps = {v: LLADA.step(v, one) for v in ("plain", "frozen", "exact", "dense", "naive")}
    seconds = {v: cost.seconds(DOCUMENTED_H100) for v, cost in steps.items()}
    assert seconds["plain"] < seconds["frozen"] < seconds["exact"] < seconds["dense"]
    assert seconds["naive"] == seconds["dense"]
    for cost in steps.values():
        whole = Part("", cost.bytes, cost.flops).seconds(DOCUMENTED_H100)
        assert cost.seconds(DOCUMENTED_H100) >= whole
    # The draft reads the embeddings once: 126464 * 4096 numbers of two bytes.
    assert LLADA.draft(one).bytes == pytest.approx(1.036e9, rel=0.01)


@pytest.mark.usefixtures("_one_thread")
def test_the_naive_step_computes_the_ordinary_gradient(tmp_path: Path) -> None:
    weights = write_checkpoint(TINY, tmp_path, "cpu")
    tokens = Point(2, 64, 0.25).tokens()
    naive = NaiveSteps(TINY, weights, torch.stack(tokens))
    masked, logits, order = naive.look()
    entropy = naive.entropy(logits)
    candidates, probes = [], []
    for b in range(2):
        at = masked[b] - 64 * b
        rest = order[b, 3:]
        candidates.append(at[order[b, :3]].tolist())
        probes.append(at[rest[entropy[b, rest].argsort()[:13]]].tolist())
    ours = tabes.influence(tabes.load(tmp_path), tokens, candidates, probes, adjoint="dense")
    # PyTorch's leaves the mask, one of 1000 tokens, in its distributions.
    torch.testing.assert_close(
        naive.steered(3, 13).double(), torch.stack(ours.tis), rtol=0.05, atol=2e-4
    )


def test_a_folder_with_room_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for folder in (small, large):
        folder.mkdir()
    room = {small: 1e9, large: 20e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room[path]))
    missing = tmp_path / "missing"
    assert roomy_folder(16_000_000_000, [missing, small, large]) == large
    with pytest.raises(RuntimeError, match=r"takes 25\.0 GB, .*small 1\.0 GB.*set TMPDIR"):
        roomy_folder(25_000_000_000, [small, large])


def test_failures_are_remembered(tmp_path: Path) -> None:
    bench = Bench("cpu", time.monotonic() + 60, tmp_path / "out.json")

    def fails(text: str) -> None:
        raise RuntimeError(text)

    works = {
        "good": Work(lambda: None),
        "large": Work(lambda: fails("CUDA out of memory. Tried to allocate 9 GiB")),
        "wrong": Work(lambda: fails("illegal access")),
    }

    def compares() -> None:
        bench.note("a", bench.compare("a", works)[0], "good", B=1)

    bench.section("a", compares)
    bench.section("b", lambda: fails("no such thing"))
    bench.results.append({"section": "c", "number": math.nan})
    bench.deadline = 0.0
    bench.section("late", lambda: fails("never run"))
    bench.write()
    written = json.loads((tmp_path / "out.json").read_text())
    variants = written["results"][0]["variants"]
    assert len(variants["good"]["seconds"]) == 2
    assert variants["large"]["failed"].startswith("out of memory")
    assert variants["wrong"]["failed"] == "RuntimeError: illegal access"
    assert written["results"][1]["number"] is None
    assert written["sections"]["late"] == "out of time"
    assert "no such thing" in written["sections"]["b"]
    assert [text.split(":")[0] for text in written["failed"]] == ["a, wrong", "b"]


def test_the_most_telling_sizes_come_first() -> None:
    order = points(True)
    assert order[:2] == [Point(8, 1024, 0.25), Point(1, 1024, 0.25)]
    assert {p.length for p in order[:8]} == {1024}
    assert len(set(order)) == 24


def test_agreement_by_hand() -> None:
    a = torch.tensor([4.0, 3.0, 2.0, 1.0])
    b = torch.tensor([3.0, 4.0, 2.0, 1.0])
    assert kendall_tau(a, a) == 1.0
    assert kendall_tau(a, b) == pytest.approx(4 / 6)
    assert overlap(a, b, 1) == 0.0
    assert overlap(a, b, 2) == 1.0


def test_checks_hold_limits_against_what_was_measured() -> None:
    bench = Bench("cpu", time.monotonic() + 60)
    step = {
        "plain": {"seconds": [0.030, 0.020], "median": 0.025, "share_of_gemm": 0.5},
        "frozen": {"seconds": [0.045, 0.030]},
        "exact": {"seconds": [0.075, 0.050]},
        "frozen, replayed": {"failed": "out of memory"},
    }
    bench.results.append({"section": "step", "B": 1, "L": 1024, "rho": 0.25, "variants": step})
    for auto in (18e-6, 30e-6):
        variants = {
            "auto": {"seconds": [auto]},
            "flash": {"seconds": [25e-6], "median": 25e-6},
        }
        bench.results.append(
            {"section": "attention", "picked": "own", "case": "uniform", "B": 1, "L": 1024,
             "active": 128, "variants": variants}
        )  # fmt: skip
    found = {entry["name"]: entry for entry in benchmark_checks.checks(bench)}
    met = {name: entry["met"] for name, entry in found.items() if entry["met"] is not None}
    assert met == {
        "frozen step, B=1 L=1024 rho=0.25: in plain steps": True,
        "exact step, B=1 L=1024 rho=0.25: in plain steps": False,
        "exact step, B=1 L=1024 rho=0.25: in plain steps, predicted": True,
        "plain step, B=1 L=1024: share of the measured GEMM ceiling": False,
        "our attention adjoint where picked, worst of 2: in FlashAttention-2's time": False,
        "plain step, B=1 L=1024: ms, 25.8 within 20 %": True,
        "FlashAttention-2 backward, L=1024 |A|=128: us a layer": True,
    }
    printed = benchmark_checks.table(list(found.values()))
    assert printed.count("NOT MET") == 3
    assert "not measured" in printed


def test_the_benchmark_runs_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "benchmark.py"), "--device", "cpu", "--json", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = json.loads(out.read_text())
    assert written["failed"] == []
    assert set(written["sections"].values()) == {"done"}
    assert written["ceilings"]["measured"]["flops"] > 0
    assert written["ceilings"]["documented_H100"] == {"bytes_per_second": 3.0e12, "flops": 798e12}
    kinds = {result["section"] for result in written["results"]}
    assert kinds == {
        "naive", "step", "short pass", "decode", "attention", "block-cached", "gradients",
        "statistics", "head", "deterministic",
    }  # fmt: skip
    for result in written["results"]:
        for name, entry in result.get("variants", {}).items():
            assert all(math.isfinite(s) for s in entry["seconds"]), name
            assert math.isfinite(entry["ratio"]), name
            if "floor" in entry:
                assert entry["floor"]["seconds"] > 0
                assert entry["over_floor"] > 0
    steps = [r for r in written["results"] if r["section"] == "step"]
    assert {(r["B"], r["L"]) for r in steps} == {(1, 64), (8, 64)}
    for result in steps:
        assert list(result["variants"]) == ["plain", "frozen", "exact", "dense"]
        assert all("floor" in entry for entry in result["variants"].values())
        assert result["naive_over_plain"] > 0
        assert result["backward"]["exact"]["floor"] < result["backward"]["dense"]["floor"]
    decodes = [r for r in written["results"] if r["section"] == "decode"]
    assert {r["refresh_every"] for r in decodes} == {1, 4}
    kinds = ("plain", "BoE", "ranked probes")
    assert set(decodes[0]["variants"]) == {
        f"{kind}, {where}" for kind in kinds for where in ("host", "device")
    }
    # Steering did take place: rows went through the adjoint.
    assert decodes[0]["variants"]["BoE, device"]["rows"][1] > 0
    (compared,) = (r["compared"] for r in written["results"] if r["section"] == "gradients")
    assert compared["bfloat16 exact against float32 exact"]["kendall_tau"] > 0.5
    assert {entry["met"] for entry in written["checks"]} == {None}
    assert len(written["checks"]) >= 16
    assert "not measured" in done.stdout
