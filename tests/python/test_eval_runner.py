"""Settings, data files, costs and resuming, with the bundled model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tabes
from scripted import scripted_model
from tabes.evaluation import PRESETS, Settings, evaluate
from tabes.evaluation.data import Data, from_hub, made, read_file
from tabes.evaluation.fill_tasks import Infill
from tabes.evaluation.outcomes import Store
from tabes.evaluation.runner import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

MOLECULES = [
    ("COc1ccc([MASK][MASK][MASK][MASK])cc1", "COc1ccc(C(=O)O)cc1"),
    ("CC(=O)N[MASK]1ccccc1", "CC(=O)Nc1ccccc1"),
    ("c1ccc[MASK]c1", "c1ccccc1"),
    ("[MASK]c1ccc[MASK][MASK]1", "Oc1ccccc1"),
    ("CC[MASK][MASK][MASK]O", "CCCCCO"),
]
ROWS = [{"prompt": prompt, "answer": answer} for prompt, answer in MOLECULES]
DRAWN = Settings(steps=3, temperature=1.0, seed=7)


def infill(
    out: Path, model: tabes.Model, settings: Settings = DRAWN, rows: Any = ROWS, **options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = {"infill": made(rows, "test")}
    report = evaluate(model, ["infill"], settings, out, data=data, **options)
    lines = report.outcomes.read_text().splitlines()
    return report.values["tasks"]["infill"], [json.loads(line) for line in lines]


def what(outcomes: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {o["key"]: (o["answer"], o["metrics"]["exact"]) for o in outcomes}


def test_batches_do_not_matter_and_costs_add_up(tmp_path: Path, demo_model: tabes.Model) -> None:
    one, single = infill(tmp_path / "one", demo_model)
    four, batched = infill(tmp_path / "four", demo_model, batch_size=4)
    assert what(single) == what(batched)
    assert one["run"] == four["run"]
    for result, outcomes in ((one, single), (four, batched)):
        assert result["examples"] == 5
        costs = {o["batch"]: o["cost"] for o in outcomes}
        assert len(costs) == (5 if outcomes is single else 2)
        for part in ("forward_rows", "backward_rows", "head_rows", "canvas_tokens"):
            assert result["cost"][part] == sum(cost[part] for cost in costs.values())
            assert result["cost"][part] == one["cost"][part]
    encode = demo_model.tokenizer.encode
    assert one["cost"]["canvas_tokens"] == sum(len(encode(prompt)) for prompt, _ in MOLECULES)


def test_the_cost_is_that_of_generate(tmp_path: Path, demo_model: tabes.Model) -> None:
    settings = Settings.of({"steps": 2, "policy": "boe(n_candidates=3)"})
    result, outcomes = infill(tmp_path, demo_model, settings, ROWS[:1])
    policy = tabes.BoE(n_candidates=3)
    wanted = tabes.generate(demo_model, MOLECULES[0][0], steps=2, block_length=32, policy=policy)
    assert outcomes[0]["answer"] == (wanted.texts or [""])[0]
    assert result["cost"]["backward_rows"] == wanted.backward_rows > 0
    assert result["cost"]["forward_rows"] == wanted.forward_rows
    assert result["cost"]["head_rows"] == wanted.head_rows
    assert result["cost"]["forward_equivalents"] == pytest.approx(wanted.forward_equivalents)


def test_goes_on_after_a_stop(tmp_path: Path, demo_model: tabes.Model) -> None:
    whole, outcomes = infill(tmp_path / "whole", demo_model, batch_size=2)

    def stop(task: str, done: int, total: int) -> None:
        assert (task, total) == ("infill", 5)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infill(tmp_path / "cut", demo_model, batch_size=2, progress=stop)
    file = tmp_path / "cut" / "outcomes.jsonl"
    kept = file.read_bytes()
    assert kept.count(b"\n") == 4
    file.write_bytes(kept + b'{"run": "half a li')
    seen: list[int] = []
    result, again = infill(
        tmp_path / "cut", demo_model, batch_size=2, progress=lambda *at: seen.append(at[1])
    )
    assert file.read_bytes().startswith(kept)
    assert seen == [4, 5]
    assert what(again) == what(outcomes)
    assert result["metrics"] == whole["metrics"]
    for part in ("forward_rows", "head_rows", "canvas_tokens", "forward_equivalents"):
        assert result["cost"][part] == whole["cost"][part]
    before = file.read_bytes()
    assert infill(tmp_path / "cut", demo_model)[0] == result  # nothing is left to do
    assert file.read_bytes() == before


@pytest.mark.case("F05")
def test_a_reply_that_cannot_be_judged_is_one_wrong_example(
    tmp_path: Path, demo_model: tabes.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Infill.judge
    calls = []

    def fails(task: Any, model: Any, row: Any, where: str, tokens: Any, text: str) -> Any:
        calls.append(where)
        if where.endswith("example 1"):
            raise OverflowError("too large a reply \ud800")
        return judge(task, model, row, where, tokens, text)

    whole, outcomes = infill(tmp_path / "whole", demo_model)
    assert whole["errors"] == 0
    assert {o["error"] for o in outcomes} == {None}
    monkeypatch.setattr(Infill, "judge", fails)
    result, found = infill(tmp_path / "failed", demo_model, batch_size=2)
    assert (result["examples"], result["errors"], len(calls)) == (5, 1, 5)
    assert [o["error"] for o in found] == [None, "OverflowError: too large a reply ?", *[None] * 3]
    assert found[1]["metrics"] == {"exact": 0.0}
    assert found[1]["text"]
    assert [o["metrics"] for i, o in enumerate(found) if i != 1] == [
        o["metrics"] for i, o in enumerate(outcomes) if i != 1
    ]
    # It is done: going on does not ask for it again.
    assert infill(tmp_path / "failed", demo_model)[0] == result
    assert len(calls) == 5

    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    # The machine's trouble is no outcome: nothing is stored, and the example is run again.
    monkeypatch.setattr(Infill, "judge", full)
    with pytest.raises(OSError, match="no space left"):
        infill(tmp_path / "full", demo_model)
    monkeypatch.setattr(Infill, "judge", judge)
    assert infill(tmp_path / "full", demo_model)[0]["metrics"] == whole["metrics"]


@pytest.mark.case("F05")
def test_a_long_number_ends_nothing(tmp_path: Path) -> None:
    digits = "9" * 309
    start = "<reasoning>\n"  # the prefill
    replies = {"Ann": rf"{start}\boxed{{{digits}.5}}", "Bob": rf"{start}\boxed{{7}}"}
    model = scripted_model(replies)
    data = {"gsm8k": made([{"question": q, "answer": "7"} for q in ("Ann", "Bob")], "test")}
    settings = Settings(gen_length=400, steps=2, block_length=None)
    report = evaluate(model, ["gsm8k"], settings, tmp_path, data=data)
    found = [json.loads(line) for line in report.outcomes.read_text().splitlines()]
    assert [o["metrics"]["accuracy"] for o in found] == [0, 1]
    assert [o["answer"] for o in found] == [f"{digits}.5", "7"]
    assert report.values["tasks"]["gsm8k"]["errors"] == 0


@pytest.mark.case("R08")
def test_forbidden_tokens(tmp_path: Path, demo_model: tabes.Model) -> None:
    """By name or id, stored, and not mixed with outcomes that have them."""
    free, found = infill(tmp_path, demo_model)
    used = {c for o in found for c in o["answer"]} & {"C", "c", "O"}
    without = Settings.of({"steps": 3, "temperature": 1.0, "seed": 7, "forbidden": [*used]})
    result, outcomes = infill(tmp_path, demo_model, without)
    assert result["run"] != free["run"]
    for outcome, (prompt, _) in zip(outcomes[5:], MOLECULES, strict=True):
        for token in used:
            assert outcome["answer"].count(token) == prompt.count(token)
    with pytest.raises(tabes.InputError, match="no token 'Xx'"):
        infill(tmp_path, demo_model, Settings(forbidden=("Xx",)))


@pytest.mark.case("R08")
def test_frozen_steps(tmp_path: Path, demo_model: tabes.Model) -> None:
    """They are those of generate, and their outcomes are not mixed with those of full steps."""
    results = {}
    for every in (1, 3, 0):
        settings = Settings.of({"steps": 4, "policy": "spread", "refresh_every": every})
        results[every], outcomes = infill(tmp_path, demo_model, settings)
        wanted = tabes.generate(
            demo_model, [prompt for prompt, _ in MOLECULES], steps=4, block_length=32,
            policy="spread", refresh_every=every,
        )  # fmt: skip
        found = {o["key"]: o["answer"] for o in outcomes if o["run"] == results[every]["run"]}
        assert [found[str(i)] for i in range(5)] == wanted.texts
        assert results[every]["cost"]["forward_rows"] == wanted.forward_rows
    assert len({result["run"] for result in results.values()}) == len(outcomes) / 5 == 3
    rows = [results[every]["cost"]["forward_rows"] for every in (1, 3, 0)]
    assert rows[0] > rows[1] > rows[2]
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("results-spread-*.json")]
    assert sorted(values["settings"]["refresh_every"] for values in stored) == [0, 1, 3]


@pytest.mark.case("N17")
def test_intervals_of_shares(tmp_path: Path, demo_model: tabes.Model) -> None:
    rows = [{"prompt": "c1ccc[MASK]c1", "answer": "c1ccccc1"}] * 5
    result, _ = infill(tmp_path, demo_model, Settings(steps=1), rows)
    exact = result["metrics"]["exact"]
    assert exact["mean"] == exact["high"] == 1
    assert exact["low"] == pytest.approx(0.5655, abs=1e-4)  # Wilson's, not 1


def test_what_changed_is_run_again(tmp_path: Path, demo_model: tabes.Model) -> None:
    first, _ = infill(tmp_path, demo_model, limit=2)
    more, outcomes = infill(tmp_path, demo_model, limit=3)
    assert (first["examples"], more["examples"], len(outcomes)) == (2, 3, 3)
    again, outcomes = infill(tmp_path, demo_model, limit=2)
    assert again == first | {"data": again["data"]}
    assert len(outcomes) == 3
    other, outcomes = infill(tmp_path, demo_model, Settings(steps=3, seed=8), limit=3)
    assert other["run"] != more["run"]
    assert len(outcomes) == 6
    assert len(list(tmp_path.glob("results-*.json"))) == 2
    rows = [ROWS[0], {"prompt": "C[MASK]C", "answer": "CCC"}, ROWS[2]]
    _, outcomes = infill(tmp_path, demo_model, rows=rows)
    assert len(outcomes) == 7
    assert outcomes[-1]["key"] == "1"


def test_fingerprints(demo_model: tabes.Model, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tabes.demo_checkpoint().iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(tabes.Model(demo_model.core, copy)) == fingerprint(demo_model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    assert fingerprint(tabes.Model(demo_model.core, copy)) != fingerprint(demo_model)
    assert fingerprint(scripted_model({})) != fingerprint(demo_model)


def test_all_rows_are_checked_first(tmp_path: Path, demo_model: tabes.Model) -> None:
    for row, message in (
        ({"prompt": "CC"}, "infill, test, example 5 has the fields prompt: infill needs answer"),
        ({"prompt": "CC", "answer": "CC"}, "example 5: the prompt holds no mask"),
        ({"prompt": "[MASK]" * 300, "answer": ""}, "example 5: .* 302 tokens, the model takes 256"),
        ({"prompt": ["C"], "answer": "CC"}, "example 5: prompt is a list, not text"),
        ({"prompt": "xyz[MASK]", "answer": ""}, "not in the model's vocabulary"),
    ):
        with pytest.raises(tabes.InputError, match=message):
            infill(tmp_path, demo_model, rows=[*ROWS, row])
    assert not list(tmp_path.iterdir())


def test_arguments_of_evaluate(tmp_path: Path, demo_model: tabes.Model) -> None:
    data = {"infill": made(ROWS, "test")}

    def fails(message: str, tasks: list[str], **options: Any) -> None:
        with pytest.raises(tabes.InputError, match=message):
            evaluate(demo_model, tasks, DRAWN, tmp_path, **options)

    fails("no task 'gsm9k': choose from gsm8k, math500", ["gsm9k"])
    fails("no tasks", [])
    fails("batch_size=0", ["infill"], data=data, batch_size=0)
    fails("limit=0", ["infill"], data=data, limit=0)
    fails("data for infill, which is not to be run", ["sudoku"], data=data)
    fails("no data of its own", ["infill"])
    with Store.open(tmp_path / "outcomes.jsonl"):
        fails("in use by another evaluation", ["infill"], data=data)
    (tmp_path / "outcomes.jsonl").write_text("a note\n")
    fails("line 1: not an outcome of tabes eval", ["infill"], data=data)


def test_settings() -> None:
    paper = PRESETS["paper"]
    assert (paper.gen_length, paper.steps, paper.block_length) == (256, 128, 32)
    made_of = Settings.of({"max_new_tokens": 8, "alg": "topk_margin", "block_size": None}, paper)
    assert made_of == Settings(gen_length=8, steps=128, block_length=None, policy="margin")
    steered = Settings.of({"policy": "boe(alpha=0.25;0.5, n_candidates=3x; halo=1)"})
    options = steered.to_dict()["policy_settings"]
    assert (options["alpha"], options["n_candidates"], options["halo"]) == ([0.25, 0.5], "3x", 1)
    assert options["tau"] == tabes.BoE().tau
    paper_boe = Settings.of({"policy": "boe_paper(tau=0.5)"}).to_dict()["policy_settings"]
    assert (paper_boe["alpha"], paper_boe["tau"]) == ([1.0], 0.5)
    assert Settings.of({"seed": 3}, steered).policy == steered.policy
    assert Settings.of({"policy": "entropy"}, steered).policy == "entropy"
    same = ("boe(halo=1,n_candidates=3x,alpha=.25,.5)", steered.make_policy().notation())
    assert {Settings.of({"policy": policy}).policy for policy in same} == {steered.policy}
    assert Settings.of({"forbidden": "[UNK]; 7;"}).forbidden == ("[UNK]", 7)
    assert Settings.of({"forbidden": 7}).to_dict()["forbidden"] == [7]
    assert Settings.of({"forbidden": ["7", 8]}).forbidden == (7, 8)
    threshold = Settings.of({"policy": "threshold(tau=0.8)"})
    assert threshold.to_dict()["policy_settings"] == {"tau": 0.8}
    assert threshold.make_policy().name() == "threshold"
    for values, message in (
        ({"step": 4}, "no setting 'step'.*did you mean 'steps'"),
        ({"alpha": 1.0}, "no setting 'alpha'"),
        ({"policy": "confidence(alpha=1)"}, "alpha"),
        ({"policy": "boe", "alpha": 1.0}, r"behind its name: boe\(alpha=1.0\)"),
        ({"policy": "boe(aplha=1)"}, "'aplha'.* did you mean 'alpha'"),
        ({"policy": "threshold(tau=2)"}, "tau must be from 0 to 1"),
        ({"policy": "threshold(tau=x)"}, "tau=x"),
        ({"policy": "best"}, "best"),
        ({"policy": 3}, "policy=3: it must be a string"),
        ({"policy": "boe(alpha=a;b)"}, "alpha"),
        ({"policy": "boe(halo=0.5)"}, "halo=0.5: it must be an integer"),
        ({"policy": "boe(halo=-1)"}, "halo"),
        ({"forbidden": [1.5]}, r"forbidden\[0\]=1.5: it must be an integer"),
        ({"forbidden": [-1]}, r"forbidden\[0\]=-1: it must be at least 0"),
        ({"allow_special": 1}, "allow_special=1"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "many"}, "steps='many'"),
        ({"block_length": 0}, "block_length=0"),
        ({"refresh_every": -1}, "refresh_every=-1"),
        ({"refresh_every": 1.5}, "refresh_every=1.5"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"logits_eos_inf": 1}, "logits_eos_inf=1"),
        ({"gen_length": 4, "max_new_tokens": 4}, "gen_length is given twice"),
    ):
        with pytest.raises(tabes.InputError, match=message):
            Settings.of(values)


def test_data_files(tmp_path: Path) -> None:
    def read(name: str, content: str) -> Data:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", newline="")
        return read_file(path)

    wanted = [{"a": "1", "b": "x, y"}, {"a": "2", "b": "é"}]
    assert read("a.csv", 'a,b\r\n1,"x, y"\r\n2,é\r\n').rows == wanted
    lines = "\ufeff" + "\n".join(json.dumps(row) for row in wanted) + "\n\n"
    same = [read("a.jsonl", lines), read("a.json", json.dumps(wanted, indent=1))]
    assert [data.rows for data in same] == [wanted, wanted]
    assert same[0].sha256 == same[1].sha256
    assert read("b.jsonl", '{"a": "line\u2028separator"}').rows == [{"a": "line\u2028separator"}]
    for name, content, message in (
        ("c.jsonl", '{"a": 1}\n{"a": ', "c.jsonl, line 2: "),
        ("d.jsonl", "[1]", "element 0: a int, not an object"),
        ("e.jsonl", "3", "line 1: a int, not an object"),
        ("f.jsonl", "\n", "holds no rows"),
        ("g.csv", "a,b\n1\n", "row 1 has not as many fields"),
        ("h.csv", "a\n1,2\n", "row 1 has not as many fields"),
        ("i.parquet", "", "read from .jsonl or .csv"),
    ):
        with pytest.raises(tabes.InputError, match=message):
            read(name, content)
    with pytest.raises(tabes.InputError, match="No such file"):
        read_file(tmp_path / "none.csv")


def test_the_hub_fails_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(tabes.InputError, match=r"ConnectionError: no route.*give --data FILE"):
        from_hub("openai/gsm8k", "main", "test", "gsm8k")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"question": "?"}])
    data = from_hub("openai/gsm8k", "main", "test", "gsm8k")
    assert (data.rows, data.source) == ([{"question": "?"}], "openai/gsm8k (main), test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(tabes.InputError, match=r"pip install 'tabes\[eval\]'"):
        from_hub("openai/gsm8k", "main", "test", "gsm8k")


@pytest.mark.case("F26")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.jsonl", "[" * 100_000, "deep.jsonl: maximum recursion depth"),
        ("deep.jsonl", '{"prompt": ' + "[" * 100_000, "deep.jsonl, line 1: maximum recursion"),
        ("digits.jsonl", '\n{"prompt": ' + "9" * 5000 + "}", "digits.jsonl, line 2: Exceeds"),
        ("nan.jsonl", '{"prompt": NaN, "answer": "C"}', "example 0: prompt is nan, not text"),
        ("quote.csv", 'prompt,answer\nC[MASK],CC\n"C[MASK],CC\n', "quote.csv: row 2: unexpected"),
        ("long.csv", "prompt,answer\nC[MASK]," + "C" * 200_000, "long.csv: row 1: field larger"),
        ("twice.csv", "prompt,prompt,answer\nC,C[MASK],CC\n", "names the field 'prompt' twice"),
        (
            "separator.jsonl",
            '{"prompt": "C[MASK]", "answer": "CC"}\n{"prompt": "C[MASK]\u2028", "answer": "CC"}',
            "infill, separator.jsonl, example 1: '.u2028' at character 7",
        ),
        (
            "surrogate.jsonl",
            '{"prompt": "C[MASK]\\ud800", "answer": "CC"}',
            "infill, surrogate.jsonl, example 0: .*lone surrogate",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, demo_model: tabes.Model, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(tabes.InputError, match=message):
        evaluate(
            demo_model, ["infill"], DRAWN, tmp_path, data={"infill": read_file(tmp_path / name)}
        )
    assert not (tmp_path / "outcomes.jsonl").exists()
