"""Steering from the command line, and its decodes as files, drawings and a live canvas."""

from __future__ import annotations

import io
import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
from rich.console import Console
from rich.text import Text
from tabes import trace
from tabes.canvas import Canvas
from tabes.cli import main

BOS, EOS, MASK = 1, 2, 3
TOKENS = f"{BOS} {f'{MASK} ' * 12}{EOS}"
SVG = "{http://www.w3.org/2000/svg}"


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """What a successful command prints; off a terminal that is never decorated."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    assert "\x1b" not in shown.out
    return shown.out.splitlines()


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that fails for wrong input."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith("tabes: error: ")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.fixture
def steered(demo_model: tabes.Model, tmp_path: Path) -> Path:
    """A trace of two sequences of different lengths, one with given tokens between its masks."""
    batch = [[BOS] + [MASK] * 12 + [EOS], [BOS, MASK, MASK, 7, MASK, MASK, MASK, EOS]]
    policy = tabes.BoE(factor=0.0)
    out = tabes.generate(demo_model, batch, steps=6, policy=policy)
    trace.save(tmp_path / "trace.json", out, demo_model)
    return tmp_path / "trace.json"


def against(decode: trace.Decode) -> list[int]:
    return [r.position for s in decode.steps for r in s.reveals if r.against_confidence]


# --- Policies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "margn"], "did you mean 'margin'? Known are random, confidence"),
        (["--policy", "threshold(tau=2)"], "tau must be from 0 to 1"),
        (["--policy", "boe(alpha=high)"], "alpha=high"),
        (["--refresh-every", "-1"], "refresh_every must be 0"),
        (["--trace", "/no/such/folder/t.json"], "/no/such/folder does not exist"),
        (["--trace", "/"], "this is a folder"),
        (["--forbid", "no such token"], "no such token"),
    ],
)
def test_generate_refuses(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in complaint(capsys, "generate", "--tokens", TOKENS, *arguments)


def test_generate_refuses_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--tokens", TOKENS, "--temperature", "warm"])
    assert stop.value.code == 2
    assert "--temperature" in capsys.readouterr().err


def test_demo_compares_confidence_with_boe(capsys: pytest.CaptureFixture[str]) -> None:
    demo = ("demo", "--number", 2, "--length", 14, "--steps", 5)
    runs = json.loads(lines_of(capsys, *demo, "--json")[0])["runs"]
    assert [run["policy"] for run in runs] == ["confidence", "boe", "confidence"]
    assert [len(run["trace"]) for run in runs[:2]] == [5, 5]
    # The third run is what makes the comparison fair.
    assert abs(runs[2]["forward_equivalents"] - runs[1]["forward_equivalents"]) <= 0.5
    assert runs[0]["backward_rows"] == 0 < runs[1]["backward_rows"]
    printed = lines_of(capsys, *demo)
    heads = ["# confidence", "# boe", "# confidence at the cost of boe"]
    assert [line for line in printed if line in heads] == heads
    assert [line.split("\t")[0] for line in printed if not line.startswith("#")] == [
        text for run in runs for text in run["smiles"]
    ]


@pytest.mark.parametrize("policy", ["boe", "boe_paper", "margin"])
def test_demo_with_one_policy(capsys: pytest.CaptureFixture[str], policy: str) -> None:
    demo = ("demo", "--number", 1, "--length", 10, "--policy", policy, "--json")
    (run,) = json.loads(lines_of(capsys, *demo)[0])["runs"]
    made = tabes.make_policy(policy)
    assert (run["policy"], run["policy_settings"]) == (made.name(), made.settings())
    assert sum(len(step["position"]) for step in run["trace"]) == 10
    if policy != "boe":  # which reveals more than the schedule asks for where that is safe
        assert len(run["trace"]) == 10


# --- Files -----------------------------------------------------------------------------------


def test_a_trace_file_holds_the_decode(demo_model: tabes.Model, steered: Path) -> None:
    value = json.loads(steered.read_text())
    assert (value["format"], value["version"]) == ("tabes-trace", 1)
    assert (value["model"], value["policy"]) == ("moses", "boe")
    assert value["policy_settings"]["n_candidates"] == "2x"
    assert value["pieces"][str(MASK)] == "[MASK]"
    batch = [[BOS] + [MASK] * 12 + [EOS], [BOS, MASK, MASK, 7, MASK, MASK, MASK, EOS]]
    assert value["initial"] == batch
    out = tabes.generate(demo_model, batch, steps=6, policy=tabes.BoE(factor=0.0))
    assert value["tokens"] == [row.tolist() for row in out.tokens]

    decodes = trace.read(steered)
    assert [decode.final for decode in decodes] == value["tokens"]
    for b, decode in enumerate(decodes):
        records = [r for r in out.trace if b in r.sequence.tolist()]
        assert [step.number for step in decode.steps] == [r.step for r in records]
        for step, record in zip(decode.steps, records, strict=True):
            mine = record.sequence == b
            assert step.masked == record.masked[b]
            assert [r.position for r in step.reveals] == record.position[mine].tolist()
            assert [r.by_confidence for r in step.reveals] == record.by_confidence[mine].tolist()
            assert [r.entropy for r in step.reveals] == pytest.approx(record.entropy[mine].tolist())
            for got, wanted in (
                (step.predicted_fall, record.predicted_fall[b]),
                (step.realised_fall, record.realised_fall[b]),
            ):
                assert got == pytest.approx(wanted, rel=1e-4, nan_ok=True)
    assert against(decodes[0])  # the canvas is one where the gradient matters
    assert math.isnan(decodes[0].steps[-1].predicted_fall)


def test_a_single_sequence_and_an_unfinished_run(demo_model: tabes.Model, tmp_path: Path) -> None:
    canvas = [BOS] + [MASK] * 6 + [EOS]
    out = tabes.generate(
        demo_model, canvas, steps=3, policy="margin", callback=lambda record, _: record.step < 1
    )
    trace.save(tmp_path / "t.json", out, demo_model)
    (decode,) = trace.read(tmp_path / "t.json")
    assert list(decode.initial) == canvas
    assert decode.final == out.tokens.tolist()
    assert MASK in decode.final
    assert len(decode.steps) == 2
    assert against(decode) == []  # nothing was steered, whatever confidence would have done
    trace.draw(decode, tmp_path / "t.svg")
    assert "not steered" in (tmp_path / "t.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="gif"), "the file is not a trace"),
        (lambda v: v.update(version=2), "version is 2: this tabes"),
        (lambda v: v.update(version="1"), 'version is "1": an integer'),
        (lambda v: v.pop("initial"), "the file has no member 'initial'"),
        (lambda v: v.update(initial=5), "initial is 5: a list"),
        (lambda v: v["initial"][1].__setitem__(0, -4), "initial[1][0] is -4: an integer"),
        (lambda v: v.update(pieces=["C"]), "pieces must be an object"),
        (lambda v: v["pieces"].update(C="C"), "pieces has the member 'C'"),
        (lambda v: v["pieces"].update({"": "C"}), "pieces has the member ''"),
        (lambda v: v["pieces"].update({"1" * 5000: "C"}), "which is no token id"),
        (lambda v: v["pieces"].update({"5": 5}), "pieces.5 is 5: a string"),
        (lambda v: v["trace"].__setitem__(1, None), "trace[1] is null: an object"),
        (lambda v: v["trace"][1].pop("token"), "trace[1] has no member 'token'"),
        (lambda v: v["trace"][2]["entropy"].pop(), "trace[2].entropy has"),
        (lambda v: v["trace"][2]["masked"].pop(), "trace[2].masked has 1 entries"),
        (lambda v: v["trace"][0]["sequence"].__setitem__(0, 2), "sequence[0] is 2: an integer"),
        (lambda v: v["trace"][0]["position"].__setitem__(0, 99), "position[0] is 99: an integer"),
        (lambda v: v["trace"][0]["position"].__setitem__(0, 0), "which is not masked"),
        (lambda v: v["trace"].append(v["trace"][0]), "trace[6].position[0] is"),
        (lambda v: v["trace"][0]["confidence"].__setitem__(0, "x"), 'confidence[0] is "x"'),
        (lambda v: v["trace"][0]["entropy"].__setitem__(0, 10**400), "a finite number"),
        (lambda v: v["trace"][0]["by_confidence"].__setitem__(0, 1), "true or false"),
    ],
)
def test_damaged_files(
    steered: Path, capsys: pytest.CaptureFixture[str], change: object, message: str
) -> None:
    value = json.loads(steered.read_text())
    change(value)
    steered.write_text(json.dumps(value))
    said = complaint(capsys, "trace", steered)
    assert str(steered) in said
    assert message in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"format": ', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "is UTF-16 or no text"),
        (b"[1, 2]", "is not a trace: tabes generate --trace"),
    ],
)
def test_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(content)
    assert message in complaint(capsys, "trace", file)
    assert "cannot be read" in complaint(capsys, "trace", tmp_path / "none.json")


def stops(record: tabes.StepRecord, tokens: list[torch.Tensor]) -> bool:
    return record.step < 2


@pytest.mark.case("R05")
@pytest.mark.parametrize("policy", tabes.policy_names())
@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(block_length=4, temperature=0.9, seed=3),
        dict(cfg_scale=0.5, callback=stops),
        dict(refresh_every=2, confidence_eos_eot_inf=True),
        dict(on_device=True),
    ],
    ids=["plain", "blocks", "stopped", "frozen", "device"],
)
def test_what_is_saved_is_read_and_drawn(
    demo_model: tabes.Model, tmp_path: Path, policy: str, how: dict[str, Any]
) -> None:
    batch = [[BOS] + [MASK] * 12 + [EOS], [BOS, MASK, 7, MASK, EOS]]
    made = tabes.make_policy(policy)
    if "on_device" in how and made.name() not in ON_DEVICE:
        with pytest.raises(tabes.InputError, match="needs the host"):
            tabes.generate(demo_model, batch, steps=6, policy=made, **how)
        return
    out = tabes.generate(demo_model, batch, steps=6, policy=made, **how)
    file = tmp_path / "t.json"
    trace.save(file, out, demo_model)
    value = json.loads(file.read_text())
    assert tabes.make_policy(value["policy"], **value["policy_settings"]) == made
    decodes = trace.read(file)
    for b, decode in enumerate(decodes):
        assert list(decode.initial) == batch[b]
        assert decode.final == out.tokens[b].tolist()
        masks = batch[b].count(MASK)
        for step in decode.steps:
            assert step.masked == masks == out.trace[step.number].masked[b]
            masks = step.left
        assert masks == decode.final.count(MASK)
        again = sum((r.remasked_sequence == b).sum().item() for r in out.trace)
        assert sum(len(step.remasked) for step in decode.steps) == again
        assert "masked again" in plain(decode, 80) if again else "●" in plain(decode, 80)


ON_DEVICE = {
    "random", "confidence", "margin", "entropy", "threshold", "factor", "entropy_bound", "spread",
    "pc_sampler", "boe",
}  # fmt: skip


@pytest.mark.case("R05")
def test_a_trace_that_masks_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.json"
    how = ("--steps", 8, "--policy", "remdm_cap(eta=0.9)", "--trace", file)
    lines_of(capsys, "generate", "--tokens", TOKENS, *how)
    (decode,) = trace.read(file)
    again = [p for step in decode.steps for p in step.remasked]
    assert again
    assert json.loads(file.read_text())["policy_settings"] == {"eta": 0.9}
    printed = "\n".join(lines_of(capsys, "trace", file))
    assert printed.count("○") - 1 == sum(
        1 for s in decode.steps for p in s.remasked if p not in {r.position for r in s.reveals}
    )
    figure = tmp_path / "t.svg"
    lines_of(capsys, "trace", file, "--out", figure)
    names = [e.get("id", "") for e in ET.parse(figure).iter(f"{SVG}g")]
    drawn = [n.removeprefix("reveal-").split("-") for n in names if n.startswith("reveal-")]
    assert len({tuple(n) for n in drawn}) == len(drawn) == sum(len(s.reveals) for s in decode.steps)
    # Each position once for every time it was revealed: once, and again after each masking.
    times = {p: sum(int(n[0]) == p for n in drawn) for p in range(1, 13)}
    assert times == {p: 1 + again.count(p) for p in range(1, 13)}


@pytest.mark.case("R05")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["remasked_position"].pop(), "remasked_position has"),
        (lambda r: r["remasked_position"].__setitem__(0, 0), "is no revealed token of sequence 0"),
        (lambda r: r["remasked_sequence"].__setitem__(0, 1), "an integer below 1"),
        (
            lambda r: [r[k].append(r[k][0]) for k in ("remasked_sequence", "remasked_position")],
            "which is no revealed token",
        ),
        (lambda r: r.pop("remasked_sequence"), "has no member 'remasked_sequence'"),
    ],
)
def test_damaged_maskings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    file = tmp_path / "t.json"
    how = ("--steps", 8, "--policy", "remdm_cap(eta=0.9)", "--trace", file)
    lines_of(capsys, "generate", "--tokens", TOKENS, *how)
    value = json.loads(file.read_text())
    change(next(r for r in value["trace"] if r["remasked_position"]))
    file.write_text(json.dumps(value))
    assert message in complaint(capsys, "trace", file)


class Waits(tabes.Policy):
    """Reveals nothing for two steps."""

    def pace(self) -> str:
        return "timed"

    def settings(self) -> dict[str, Any]:
        return {"steps": 2, "why": "test"}

    def decide(self, context: tabes.StepContext) -> tabes.Decision:
        count = [0 if context.step[0] < 2 else len(context.rows)]
        return tabes.Decision(context.predictions.confidence, count)


@pytest.mark.case("R05", "N12")
def test_steps_that_do_nothing_and_models_without_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = torch.randn(12, 6)
    wrapped = tabes.wrap(
        lambda inputs_embeds: torch.tanh(inputs_embeds.cumsum(1)) @ table.T,
        mask_token_id=3,
        embedding_table=table,
    )
    out = tabes.generate(wrapped, [5, 3, 3, 3, 6], steps=4, policy=Waits())
    assert [len(r.position) for r in out.trace] == [0, 0, 3, 0]
    trace.save(tmp_path / "t.json", out, wrapped)
    value = json.loads((tmp_path / "t.json").read_text())
    assert value["policy_settings"] == {"steps": 2, "why": "test"}
    assert value["pieces"] is None
    (decode,) = trace.read(tmp_path / "t.json")
    assert [step.number for step in decode.steps] == [2]
    assert decode.final == out.tokens.tolist()
    assert str(decode.final[1]) in plain(decode, 80)
    trace.draw(decode, tmp_path / "t.svg")


@pytest.mark.case("N11")
def test_a_trace_names_a_policy_in_any_notation(demo_model: tabes.Model, tmp_path: Path) -> None:
    out = tabes.generate(demo_model, [BOS, MASK, MASK, EOS], policy="eb(gamma=0.5)")
    trace.save(tmp_path / "t.json", out, demo_model)
    value = json.loads((tmp_path / "t.json").read_text())
    assert (value["policy"], value["policy_settings"]) == ("entropy_bound", {"gamma": 0.5})


# --- Drawings --------------------------------------------------------------------------------


def test_the_figure_has_every_reveal(steered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decodes = trace.read(steered)
    for b, decode in enumerate(decodes):
        file = steered.with_name(f"{b}.svg")
        assert lines_of(capsys, "trace", steered, "--out", file, "--sequence", b) == [str(file)]
        names = [e.get("id", "") for e in ET.parse(file).iter(f"{SVG}g")]
        drawn = [int(n.removeprefix("reveal-")) for n in names if n.startswith("reveal-")]
        masked = [p for p, token in enumerate(decode.initial) if token == MASK]
        assert sorted(drawn) == masked
        marked = [int(n.removeprefix("against-")) for n in names if n.startswith("against-")]
        assert sorted(marked) == sorted(against(decode))
    again = steered.with_name("again.svg")
    trace.draw(decodes[0], again)
    assert again.read_bytes() == steered.with_name("0.svg").read_bytes()


def test_the_figure_as_pixels(steered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = steered.with_suffix(".png")
    lines_of(capsys, "trace", steered, "-o", file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 10_000


def test_odd_texts_and_sizes_can_be_drawn(tmp_path: Path) -> None:
    # Markup of matplotlib, XML and rich, half a character, and a script that the font lacks.
    texts = ["$a_", "<&>", "[bold]", "\ud83d", "語", "\x00\n"]
    reveals = tuple(
        trace.Reveal(i, 10 + i, 0.5, math.nan if i else 1.0, math.nan, False) for i in range(6)
    )
    for length in (6, 200):
        decode = trace.Decode(
            model="$m^",
            policy="<p>",
            forward_equivalents=1.0,
            sequence=0,
            sequences=1,
            initial=(MASK,) * length,
            mask_token_id=MASK,
            pieces={10 + i: text for i, text in enumerate(texts)},
            steps=(trace.Step(0, length, reveals, math.nan, math.nan),),
        )
        trace.draw(decode, tmp_path / "t.svg")
        ET.parse(tmp_path / "t.svg")
        assert "[bold]" in plain(decode, 80)
    nothing = trace.Decode("m", "p", 0.0, 0, 1, (MASK,), MASK, {}, ())
    trace.draw(nothing, tmp_path / "t.svg")
    assert "0 steps" in plain(nothing, 80)


def plain(decode: trace.Decode, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(trace.render(decode, width))
    return console.file.getvalue()


def test_the_terminal_drawing_has_a_line_a_step(
    steered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = trace.read(steered)[0]
    title, head, *rows = lines_of(capsys, "trace", steered)
    assert title.startswith("moses, boe: 6 steps, ")
    assert "predicted" in head
    rows, (text, legend) = rows[:-2], rows[-2:]
    assert len(rows) == len(decode.steps) == 6
    assert "◆" in legend
    assert text == "".join(decode.label(token) for token in decode.final)
    for row, step in zip(rows, decode.steps, strict=True):
        number, cells, left, entropy, predicted, _ = row.split()
        assert int(number) == step.number + 1
        assert len(cells) == 14
        assert [p for p, c in enumerate(cells) if c in "●◆"] == [r.position for r in step.reveals]
        assert cells.count("░") == int(left) == step.masked - len(step.reveals)
        assert float(entropy) == pytest.approx(step.mean_entropy, abs=1e-3)
        assert (predicted == "-") == math.isnan(step.predicted_fall)
    assert [c for row in rows for c in row].count("◆") == len(against(decode))
    # On a narrow terminal a column stands for several positions and there is still a line a step.
    # (Its title may need more than one.)
    narrow = plain(decode, 50).splitlines()
    start = narrow.index(next(line for line in narrow if line.startswith("step "))) + 1
    assert [line.split()[0] for line in narrow[start : start + 6]] == list("123456")
    assert len(narrow[start].split()[1]) == 7
    assert "a column is 2 positions" in " ".join(narrow)


def test_the_trace_command_refuses(
    steered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (("--sequence", 2), "--sequence 2: "),
        (("--sequence", -1), "has 2 sequences, counted from 0"),
        (("--out", "figure.gif"), "must end in .svg, .png or .pdf"),
        (("--out", "/no/such/folder/f.svg"), "/no/such/folder does not exist"),
    ):
        assert message in complaint(capsys, "trace", steered, *arguments)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    figure = steered.with_suffix(".svg")
    said = complaint(capsys, "trace", steered, "--out", figure)
    assert "pip install 'matplotlib>=3.8'" in said
    assert not figure.exists()


@pytest.mark.case("N15")
def test_only_what_lies_near_masks_is_drawn(tmp_path: Path) -> None:
    masked = [*range(30, 38), *range(100, 108)]
    initial = [MASK if p in masked else 9 for p in range(127)]
    steps = tuple(
        trace.Step(
            number=i,
            masked=16 - i,
            reveals=(trace.Reveal(p, 10 + i % 3, 0.5, 1.0, math.nan, True),),
            predicted_fall=math.nan,
            realised_fall=math.nan,
        )
        for i, p in enumerate(masked)
    )
    pieces = {9: "g", 10: "c", 11: " word", 12: "informational"}
    decode = trace.Decode("m", "p", 16.0, 0, 1, tuple(initial), MASK, pieces, steps)
    shown = decode.shown(3)
    assert shown == [None, *range(27, 41), None, *range(97, 111), None]
    assert decode.shown(0) == [None, *range(30, 38), None, *range(100, 108), None]
    # A gap of one position is no shorter than what would stand for it.
    assert trace.Decode("m", "p", 0.0, 0, 1, (MASK, 9, MASK, 9), MASK, {}, ()).shown(0) == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert trace.Decode("m", "p", 0.0, 0, 1, (9, 9), MASK, {}, ()).shown() == [0, 1]

    trace.draw(decode, tmp_path / "t.svg")
    texts = [e.text for e in ET.parse(tmp_path / "t.svg").iter(f"{SVG}text")]
    assert [text for text in texts if str(text).endswith(" more")] == [
        "27 more", "56 more", "16 more",
    ]  # fmt: skip
    assert texts.count("g") == 12  # given, on either side of both runs
    assert texts.count("c") == 2 * 6  # in their cells and below
    assert texts.count("word") == 2 * 5  # without the space in front of it
    head, *rows = plain(decode, 120).splitlines()[1:18]
    assert head.startswith("step position")
    assert [len(row.split()[1]) for row in rows] == [len(shown)] * 16


@pytest.mark.case("N15")
def test_an_output_is_drawn_without_a_file(demo_model: tabes.Model, tmp_path: Path) -> None:
    batch = ["CC[MASK][MASK]O", "N[MASK][MASK][MASK]C"]
    out = tabes.generate(demo_model, batch, steps=2, policy="boe(alpha=0.3)")
    assert (out.policy, out.policy_settings["alpha"]) == ("boe", [0.3])
    trace.save(tmp_path / "t.json", out, demo_model)
    assert [d.final for d in trace.decodes(out, demo_model)] == [
        d.final for d in trace.read(tmp_path / "t.json")
    ]
    for sequence in (0, 1):
        trace.draw(out, tmp_path / "out.svg", demo_model, sequence=sequence)
        trace.draw(trace.read(tmp_path / "t.json")[sequence], tmp_path / "file.svg")
        assert (tmp_path / "out.svg").read_bytes() == (tmp_path / "file.svg").read_bytes()
    with pytest.raises(tabes.InputError, match=r"draw\(output, path, model\)"):
        trace.draw(out, tmp_path / "out.svg")
    with pytest.raises(tabes.InputError, match=r"sequence=2: there are 2, counted from 0"):
        trace.draw(out, tmp_path / "out.svg", demo_model, sequence=2)


@pytest.mark.case("N15")
def test_the_figure_as_pdf(steered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, again = steered.with_suffix(".pdf"), steered.with_suffix(".PDF")
    lines_of(capsys, "trace", steered, "--out", file)
    assert file.read_bytes().startswith(b"%PDF")
    lines_of(capsys, "trace", steered, "--out", again)
    assert again.read_bytes() == file.read_bytes()  # no date in it


# --- The live canvas -------------------------------------------------------------------------


def test_the_canvas_shows_guesses(demo_model: tabes.Model) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20)
    canvas = Canvas(console, demo_model.tokenizer.piece, MASK)
    guessed: list[tuple[int, int]] = []

    def watch(record: tabes.StepRecord, tokens: list) -> None:
        _, row = canvas.render(record, tokens).renderables
        assert isinstance(row, Text)
        dim = sum("italic" in str(span.style) for span in row.spans)
        guessed.append((dim, int((tokens[0] == MASK).sum())))

    tabes.generate(demo_model, [BOS] + [MASK] * 12 + [EOS], steps=6, callback=watch)
    assert guessed == [(n, n) for n in (10, 8, 6, 4, 2, 0)]


@pytest.mark.case("N09")
def test_the_canvas_shows_the_masks_before_the_first_step(demo_model: tabes.Model) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=60, height=10)
    canvas = Canvas(console, demo_model.tokenizer.piece, MASK, "llada boe")
    first = [torch.tensor([BOS, 7, 7, *[MASK] * 12, EOS])]
    far = [torch.tensor([BOS, *[7] * 900, *[MASK] * 12, EOS])]
    with canvas:
        canvas.start(first)
        assert written.getvalue().count("░") == 12
        assert "llada boe masked 12" in written.getvalue()
    # Of a long prompt the part with the masks is seen.
    _, row = canvas.opening(far).renderables
    assert isinstance(row, Text)
    assert "░" * 12 in row.plain


def test_the_canvas_marks_what_the_gradient_chose(demo_model: tabes.Model) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20)
    canvas = Canvas(console, demo_model.tokenizer.piece, MASK, "boe")
    shown: list[tuple[str, int, list[str]]] = []

    def watch(record: tabes.StepRecord, tokens: list) -> None:
        canvas(record, tokens)
        head, row, *legend = canvas.render(record, tokens).renderables
        assert isinstance(row, Text)
        marked = sum("reverse" in str(span.style) for span in row.spans)
        shown.append((head.plain, marked, [line.plain for line in legend]))

    tokens = [BOS] + [MASK] * 12 + [EOS]
    with canvas:
        out = tabes.generate(demo_model, tokens, steps=6, policy="boe", callback=watch)
    for (head, marked, legend), record in zip(shown, out.trace, strict=True):
        steered = record.influence.isfinite()
        assert marked == int((steered & ~record.by_confidence).sum())
        assert ("predicted fall" in head) == bool(steered.any())
        assert "the gradient's choice" in legend[0]
    assert sum(marked for _, marked, _ in shown) > 0
    assert f"cost {out.forward_equivalents:.1f} forward-equivalents" in shown[-1][0]

    shown.clear()
    canvas = Canvas(console, demo_model.tokenizer.piece, MASK, "margin")
    with canvas:
        tabes.generate(demo_model, tokens, steps=6, policy="margin", callback=watch)
    assert all(marked == 0 and not legend for _, marked, legend in shown)


@pytest.mark.case("N15")
def test_what_is_no_path_no_output_and_no_model(demo_model: tabes.Model, tmp_path: Path) -> None:
    out: Any = tabes.generate(demo_model, "C[MASK]", steps=1)
    model: Any = demo_model
    decode, file = tabes.trace.decodes(out, model)[0], tmp_path / "f.json"
    for wrong in (None, 3, b"f.svg"):
        path: Any = wrong
        with pytest.raises(tabes.InputError, match="give a path"):
            tabes.trace.save(path, out, model)
        with pytest.raises(tabes.InputError, match="give a path"):
            tabes.trace.read(path)
        with pytest.raises(tabes.InputError, match="give a path"):
            tabes.trace.draw(decode, path)
    with pytest.raises(tabes.InputError, match="output is a Model: pass what"):
        tabes.trace.save(file, model, out)
    with pytest.raises(tabes.InputError, match="model is a GenerateOutput: pass the one"):
        tabes.trace.decodes(out, out)
    assert not file.exists()
