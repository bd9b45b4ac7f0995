"""`tabes bench pareto`: statistics by hand, costs by the trace, resuming, the whole command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tabes
from tabes.bench import campaign as campaigns
from tabes.bench import figures, measure, run
from tabes.bench.cells import collect
from tabes.bench.chemistry import Infill, Molecules
from tabes.bench.fidelities import half_way
from tabes.bench.plan import thinned
from tabes.bench.plan_file import load_plan
from tabes.bench.pool import run_units
from tabes.bench.prepare import Setup
from tabes.bench.progress import Watch
from tabes.bench.report import table
from tabes.bench.spec import Spec, available, effective, policy_from
from tabes.bench.statistics import Point, at_cost, compare, gain, summary
from tabes.bench.store import Cell, Store, Unit
from tabes.bench.task import Example, Sources
from tabes.cli import main
from tabes.figure_file import check_drawing
from tabes.statistics import bootstrap

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "tune": 4,
    "test": 8,
    "slice": 4,
    "batch": 4,
    "seeds": 2,
    "baseline": "confidence",
    "methods": {
        "confidence": {},
        "boe_paper": {"steps": [9]},
        "boe": {"steps": [5, 7], "ours": True, "tune": [{}, {"rho": 0.25}]},
    },
    "tasks": {"molecules": {"steps": [4, 8, 12], "temperature": 0.7}},
    "ablation": {
        "method": "boe",
        "steps": [5],
        "examples": 4,
        "variants": {
            "no gradient": {"weight": 0.0},
            "alpha 1": {"alpha": 1.0},
            "as it is": {"gamma": tabes.BoE().gamma},
        },
    },
}


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)


# Comparisons


def test_interpolation_by_hand() -> None:
    frontier = [Point("b", 8, values(1, 1, 0, 1)), Point("a", 4, values(0, 1, 0, 0))]
    quarter = at_cost(frontier, 5)
    assert quarter is not None
    assert quarter.outcomes.tolist() == [0.25, 1, 0, 0.25]
    assert (quarter.how, quarter.exact) == ("a and b", True)
    same = at_cost(frontier, 4)
    assert same is not None
    assert (same.outcomes.tolist(), same.how) == ([0, 1, 0, 0], "a")
    beyond = at_cost(frontier, 9)
    assert beyond is not None
    assert (beyond.outcomes.tolist(), beyond.exact) == ([1, 1, 0, 1], False)
    assert at_cost(frontier, 3.9) is None
    assert at_cost([], 3.9) is None


def test_comparison_by_hand() -> None:
    frontier = [Point("a", 4, values(0, 1, 0, 0)), Point("b", 8, values(1, 1, 0, 1))]
    found = compare(Point("ours", 6, values(1, 1, 1, 1)), "rival", frontier)
    assert found is not None
    # Against 0.5, 1, 0, 0.5: differences 0.5, 0, 1, 0.5.
    assert found.rival_quality == 0.5
    assert found.difference.mean == 0.5
    assert 0 <= found.difference.low < 0.5 < found.difference.high <= 1
    assert compare(Point("ours", 2, values(1, 1)), "rival", frontier) is None
    # Only examples that both have count.
    short = compare(Point("ours", 6, values(1, 1)), "rival", frontier)
    assert short is not None
    assert (short.examples, short.rival_quality) == (2, 0.75)
    ours = [Point("x", 2, values(9, 9)), Point("y", 6, values(1, 1)), Point("z", 8, values(0, 1))]
    over_all = summary(ours, frontier)
    assert over_all is not None
    # y: 0.5 and 0, z: -1 and 0; x has nothing to be compared with.
    assert (over_all[0].mean, over_all[1]) == (-0.125, 2)
    assert summary(ours[:1], frontier) is None
    # x against a, the cheapest: (9 + 8) / 2; y: 0.25; z: -0.5.
    assert gain(ours, frontier) == pytest.approx((8.5 + 0.25 - 0.5) / 3)


def test_pairing_narrows_the_interval() -> None:
    """Two decoders that differ on few examples are told apart though both vary much."""
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.5).astype(np.float64)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1
    found = compare(Point("ours", 1, better), "rival", [Point("a", 1, base)])
    assert found is not None
    assert found.difference.verdict == "better"
    assert bootstrap(better).low < base.mean()


# Settings


def test_policies_of_settings() -> None:
    assert policy_from(Spec("boe", {"alpha": 0.25})).name() == "boe"
    paper = policy_from(Spec("boe_paper", {"rho": 0.5}))
    assert isinstance(paper, tabes.BoE)
    assert (paper.alpha, paper.rho) == ([1.0], 0.5)
    assert available("confidence")
    assert not available("no_such")
    for spec, message in (
        (Spec("no_such"), "no_such"),
        (Spec("boe", {"alpa": 1}), "'alpa': did you mean 'alpha'"),
        (Spec("boe", {"alpha": 7.0}), "alpha"),
        (Spec("confidence", {"tau": 1}), "confidence"),
    ):
        with pytest.raises(tabes.InputError, match=message):
            policy_from(spec)
    assert effective(Spec("boe", {})) == effective(Spec("boe", {"alpha": tabes.BoE().alpha}))
    assert effective(Spec("boe", {})) != effective(Spec("boe", {"alpha": 1.0}))


def test_options_that_are_not_the_policy_s() -> None:
    base = Spec("remdm_cap", {"eta": 0.1}, steps=4)
    changed = base.changed({"policy": "remdm_rescale", "refresh_every": 3, "eta": 0.2})
    assert changed == Spec("remdm_rescale", {"eta": 0.2}, steps=4, refresh_every=3)
    assert changed.key != base.key
    assert effective(Spec("boe", refresh_every=2)) != effective(Spec("boe"))


# Measuring


def test_shares_add_up_and_are_exact_alone(demo_model: tabes.Model) -> None:
    canvases = [[1] + [3] * n + [2] for n in (6, 11, 16)]
    lengths = [len(c) for c in canvases]
    for policy in ("confidence", "boe"):
        run = dict(steps=5, policy=policy)
        output = tabes.generate(demo_model, canvases, **run)
        found = measure.shares(output.trace, lengths)
        assert sum(found.forward) == pytest.approx(output.forward_rows)
        assert sum(found.backward) == pytest.approx(output.backward_rows)
        assert sum(found.head) == pytest.approx(output.head_rows)
        for b, canvas in enumerate(canvases):
            alone = tabes.generate(demo_model, canvas, **run)
            single = measure.shares(alone.trace, [len(canvas)])
            assert single.forward == pytest.approx([alone.forward_rows])
            assert single.backward == pytest.approx([alone.backward_rows])
            assert single.steps == [len(alone.trace)] == [found.steps[b]]
            if policy == "confidence":
                assert found.forward[b] == pytest.approx(alone.forward_rows)


def test_a_slice(demo_model: tabes.Model) -> None:
    """Outcomes do not depend on the batch, and costs are those of the trace."""
    task = Molecules()
    examples = [Example("[MASK]" * n, None, "all") for n in (9, 12, 15, 18, 21)]
    spec = Spec("confidence", steps=6, temperature=0.7)
    whole = measure.run_slice(demo_model, task, spec, 3, examples, 10, batch=5)
    pieces = measure.run_slice(demo_model, task, spec, 3, examples, 10, batch=2)
    tail = measure.run_slice(demo_model, task, spec, 3, examples[3:], 13, batch=2)
    assert whole["texts"] == pieces["texts"]
    assert tail["texts"] == whole["texts"][3:]
    assert len(set(whole["texts"])) == 5
    assert whole["length"] == [11, 14, 17, 20, 23]
    assert whole["forward_rows"] == [6.0 * n for n in whole["length"]]
    assert whole["steps"] == [6] * 5
    assert set(whole["outcomes"]) == {"valid"}
    assert whole["seconds"] > whole["plain_step_seconds"] > 0
    # Six steps take about as long as six of one.
    assert 2 < whole["cpu_seconds"] / whole["plain_step_cpu_seconds"] < 18
    assert 0 <= whole["added_mib"] < 256


def test_adaptive_policies_get_steps_enough(demo_model: tabes.Model) -> None:
    found = measure.run_slice(
        demo_model, Molecules(), Spec("confidence"), 0, [Example("[MASK]" * 9, None, "all")], 0, 1
    )
    assert found["steps"] == [9]


def test_half_way_canvases(demo_model: tabes.Model) -> None:
    long = Example("[MASK]" * 20, "C" * 20, "all")
    short = Example("[MASK]" * 8, "C" * 8, "all")
    tiny = Example("[MASK]" * 5, "C" * 5, "all")
    unknown = Example("[MASK]" * 20, None, "all")
    found = half_way(demo_model, [tiny, unknown, short, long, long], 3)
    mask = demo_model.info.mask_token_id
    assert [int((t == mask).sum()) for t in found] == [7, 10, 10]
    assert found[1].tolist() != found[2].tolist()


# Plans


def written(path: Path, plan: dict[str, Any]) -> Path:
    path.write_text(json.dumps(plan))
    return path


def test_the_default_plan() -> None:
    plan = load_plan(None, None, small=False)
    for task in plan.tasks:
        names = [m.name for m in task.methods]
        assert {"confidence", "boe", "boe_paper", "threshold", "oracle"} <= set(names)
        assert task.ablation is not None
        assert task.test >= 500
        # The baseline is as cheap as anything else, or comparisons would have gaps.
        boe = task.method("boe")
        if boe.varied == "steps":
            assert min(task.method("confidence").values) <= min(boe.values)
        for method in task.methods:
            if available(method.policy):
                for options in method.candidates:
                    for spec in method.specs(options, task):
                        policy_from(spec)
    small = load_plan(None, ["molecules", "sudoku4"], small=True)
    assert [t.task for t in small.tasks] == ["sudoku4", "molecules"]
    few = load_plan(None, None, small=False).capped(100)
    assert {t.test for t in few.tasks} == {100}
    assert all(m.examples <= 100 for t in few.tasks for m in t.methods)
    oracle = few.tasks[2].method("oracle")
    assert len(oracle.values) <= 2
    assert all(t.test <= 48 and len(m.values) <= 3 for t in small.tasks for m in t.methods)


def test_thinning() -> None:
    assert thinned([1, 2, 3, 4, 5], 3) == (1, 3, 5)
    assert thinned([1, 2, 3, 4], 3) == (1, 3, 4)
    assert thinned([1, 2], 3) == (1, 2)


def test_points_of_a_method(tmp_path: Path) -> None:
    plan = {
        **TINY,
        "methods": {
            "confidence": {},
            "half": {"policy": "confidence", "per_step": 2.0},
            "varied": {"policy": "boe", "vary": {"rho": [0.1, 1.0]}, "options": {"alpha": 0.5}},
        },
        "ablation": {},
    }
    (task,) = load_plan(written(tmp_path / "plan.json", plan), None, small=False).tasks
    assert task.method("confidence").values == (4, 8, 12)
    assert task.method("half").values == (2, 4, 6)
    first, last = task.method("varied").specs({"alpha": 0.25}, task)
    assert first.options == {"alpha": 0.25, "rho": 0.1}
    assert (last.options["rho"], last.steps, last.temperature) == (1.0, None, 0.7)
    assert task.method("half").seeds == 2
    assert task.ablation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": 5}, "there is no 'tests'; did you mean 'test'"),
        ({"test": 0}, "test is 0: it must be a whole number of at least 1"),
        ({"slice": True}, "slice is True"),
        ({"baseline": "margin"}, "the baseline 'margin' is not among them"),
        ({"tasks": {"molecule": {}}}, "did you mean 'molecules'"),
        ({"tasks": {}}, "has no tasks"),
        ({"tasks": {"molecules": {"steps": []}}}, "it has no points"),
        ({"tasks": {"molecules": {"steps": [0]}}}, "steps is 0"),
        ({"tasks": {"molecules": {"steps": [4], "methods": {"bo": {}}}}}, "did you mean 'boe'"),
        ({"methods": {"confidence": {"vary": {"a": [1], "b": [2]}}}}, "vary names one option"),
        ({"methods": {"confidence": {"tune": []}}}, "tune is a list"),
        ({"methods": {"confidence": {"per_step": 0}}}, "per_step is 0"),
        ({"methods": {"confidence": []}}, "it is a list, not an object"),
        ({"ablation": {"method": "boe"}}, "it has no 'steps'"),
    ],
)
def test_plans_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "plan.json", TINY | change)
    with pytest.raises(tabes.InputError, match=message):
        load_plan(path, None, small=False)


# Storing and running


def test_a_torn_line_is_run_again(tmp_path: Path) -> None:
    cell = Cell("molecules", "test", Spec("confidence", steps=4), 0)
    first, second = Unit(cell, 0, 4), Unit(cell, 4, 4)
    path = tmp_path / "slices.jsonl"
    store = Store(path)
    store.add(first, {"seconds": 1 / 3})
    store.add(second, {"seconds": 2.0})
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Store(path)
    assert first in again
    assert second not in again
    again.add(second, {"seconds": 2.0})
    assert path.read_bytes() == whole
    assert [row["first"] for row in Store(path).of(cell)] == [0, 4]
    assert store.lines[first.key]["seconds"] == Store(path).lines[first.key]["seconds"]
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(tabes.InputError, match="line 1 is damaged"):
        Store(path)


def test_slices_follow_on_one_another(tmp_path: Path) -> None:
    """What is left of a run with fewer examples does not stand in the way of more."""
    cell = Cell("molecules", "test", Spec("confidence", steps=4), 0)
    store = Store(tmp_path / "slices.jsonl")
    for first, number in ((0, 4), (4, 2), (4, 4), (12, 4)):
        row: dict[str, Any] = dict.fromkeys(("forward_rows", "backward_rows", "head_rows"))
        row = {name: [6.0] * number for name in (*row, "length", "steps")}
        row |= {name: 1.0 for name in ("seconds", "plain_step_seconds", "cpu_seconds", "load")}
        row |= {"plain_step_cpu_seconds": 0.5, "added_mib": 1.0}
        row |= {"outcomes": {"valid": [1.0] * number}, "texts": None}
        store.add(Unit(cell, first, number), row)
    found = collect(store, "molecules", "test", cell.spec, 1)
    assert found is not None
    assert found.examples == 8
    assert (found.forward_equivalents, found.plain_equivalents) == (2.0, 1.0)
    assert (found.cpu_equivalents, found.added_mib) == (2.0, 1.0)
    assert collect(store, "molecules", "tune", cell.spec, 1) is None


def test_a_worker_that_fails_says_where(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    unit = Unit(Cell("infill", "tune", Spec("boe", {"alpha": 9.0}, steps=4), 0), 0, 2)
    for workers in (0, 1):
        with pytest.raises(tabes.InputError, match="alpha"):
            run_units([unit], setup, {("infill", "tune"): 2}, 2, workers, lambda *_: None)


def test_progress_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Watch("test", 2) as watch:
        watch.step("a")
        watch.step("b")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("test: 2 slices, load ")
    assert lines[-1].startswith("test: 2 of 2, load ")


def outcomes(out: Path) -> dict[str, Any]:
    return {
        key: (row["outcomes"], row["texts"], row["forward_rows"])
        for key, row in Store(out / run.RESULTS).lines.items()
    }


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is killed while a worker computes goes on and ends as one that was not."""
    plan = written(tmp_path / "plan.json", TINY)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["bench", "pareto", "--plan", str(plan), "--workers", "0"]
    assert main([*arguments, "--out", str(whole)]) == 0
    paths = capsys.readouterr().out.split()
    assert [Path(p).name for p in paths] == ["report.md", "results.json", "molecules.svg"]
    check_report(whole)

    process = subprocess.Popen(
        [sys.executable, "-m", "tabes", *arguments[:-1], "1", "--out", str(killed)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    results = killed / run.RESULTS
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with results.open("ab") as file:
        file.write(b'{"unit": "cut off in the mid')
    before = results.read_bytes().count(b"\n")
    assert before < len(outcomes(whole))
    assert main([*arguments, "--out", str(killed)]) == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*arguments, "--out", str(killed), "--report-only"]) == 0
    assert main([*arguments, "--out", str(killed), "--resume"]) == 0
    assert outcomes(killed) == outcomes(whole)
    assert results.read_bytes().count(b"\n") == len(outcomes(whole))

    # Other weights do not mix with these results.
    (killed / "weights.json").write_text('{"moses": "0"}')
    assert main([*arguments, "--out", str(killed), "--resume"]) == 2
    assert "its weights are not those" in capsys.readouterr().err


def check_report(out: Path) -> None:
    found = json.loads((out / "results.json").read_text())
    assert {"date", "tabes", "torch", "cpu", "load"} <= set(found["machine"])
    (task,) = found["tasks"]
    by_name = {m["name"]: m for m in task["methods"]}
    assert [p["label"] for p in by_name["confidence"]["points"]] == [
        "4 steps",
        "8 steps",
        "12 steps",
    ]
    for point in by_name["confidence"]["points"]:
        # Eight molecules of two seeds each, at as many passes as steps.
        assert point["forward_equivalents"] == pytest.approx(point["spec"]["steps"])
        assert (point["examples"], point["seeds"]) == (8, 2)
    assert len(by_name["boe"]["choice"]["gains"]) == 2
    text = (out / "report.md").read_text()
    for wanted in (
        "equal forward-equivalents",
        "equal wall-clock time",
        "fidelity of TIS",
        "no gradient",
        "the same setting",
        "diversity",
        "| boe | rho 0.25 |",
    ):
        assert wanted in text, wanted
    svg = (out / "molecules.svg").read_text()
    assert "boe (ours)" in svg
    assert "forward-equivalents a sequence" in svg
    chosen = json.loads((out / "chosen.json").read_text())
    assert chosen["molecules"]["boe"]["options"] in ({}, {"rho": 0.25})
    ablation = {row["label"]: row for row in task["ablation"]}
    assert ablation["as it is"]["same"]
    assert ablation["alpha 1"]["fidelity"]["texts"] > 0
    assert ablation["no gradient"]["fidelity"] is None
    assert ablation["no gradient"]["forward_equivalents"] == pytest.approx(5)


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaigns, "run_units", interrupted)
    plan = written(tmp_path / "plan.json", TINY)
    assert main(["bench", "pareto", "--plan", str(plan), "--out", str(tmp_path / "out")]) == 130
    assert "--resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "chess"], "there is no 'chess'"),
        (["--tasks", "sudoku4"], "--sudoku-4x4 FILE"),
        (["--tasks", "countdown"], "--countdown FILE"),
        (["--plan", "/no/such/plan"], "/no/such/plan"),
        (["--model", "moses"], "write NAME=FOLDER"),
        (["--model", "mooses=/tmp"], "NAME being one of"),
        (["--model", "moses=/no/such"], "holds no config.json"),
        (["--workers", "-1"], "--workers -1"),
        (["--examples", "0"], "--examples 0"),
        (["--report-only"], "has no results to report"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", "pareto", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tabes: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tabes.bench import prepare
    from tabes.tasks import molecules

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(tabes.InputError, match="pip install 'matplotlib"):
        check_drawing()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "rdkit.RDLogger", None)
    molecules.rdkit.cache_clear()
    with pytest.raises(tabes.InputError, match="pip install rdkit"):
        molecules.rdkit("Chem")
    assert "rdkit" in (Infill().missing(Sources()) or "")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(tabes.InputError, match="pip install --no-deps rxnfp"):
        Setup(tmp_path).checkpoint("rxnfp")
    with pytest.raises(tabes.InputError, match="pip install --no-deps molsets"):
        molecules.moses_file("test")
    with pytest.raises(tabes.InputError, match="--model chess=FOLDER"):
        Setup(tmp_path).checkpoint("chess")


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n|--|--|\n| 1\\|2 | 3 |"
    assert replace(Spec("boe"), steps=3).key != Spec("boe").key


@pytest.mark.case("N15")
def test_our_methods_can_be_told_apart_in_figures(tmp_path: Path) -> None:
    names = ["boe", "boe_full_steps", "spread", "factor_frozen_steps"]
    plan = load_plan(None, None, False)
    assert [m.name for m in plan.tasks[-1].methods if m.ours] == names
    methods = [{"name": name, "ours": True, "policy": "boe"} for name in names]
    methods += [{"name": f"rival {i}", "ours": False, "policy": "x"} for i in range(14)]
    methods.append({"name": "boe_paper", "ours": False, "policy": "boe_paper"})
    styles = figures._styles(methods)
    for look in ("color", "marker", "linestyle"):
        assert len({str(style[look]) for style in styles[:4]}) == 4
    assert len({style["color"] for style in styles[:4]} & {s["color"] for s in styles[4:]}) == 0
    assert [style["label"] for style in styles[:3]] == [
        "boe (ours)", "boe_full_steps (ours)", "spread (ours)",
    ]  # fmt: skip
    quality = {"valid": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    cost = {"forward_equivalents": 2.0, "plain_equivalents": 3.0}
    for method in methods:
        method["points"] = [{"quality": quality, **cost}]
    for kind in ("svg", "png", "pdf"):
        path = tmp_path / f"f.{kind}"
        figures.draw({"title": "T", "metrics": ["valid"], "methods": methods}, path)
        assert path.stat().st_size > 5000
