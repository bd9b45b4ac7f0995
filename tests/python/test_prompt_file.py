"""``tabes generate``: prompts from files, samples, bundled models, policies in one notation."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tabes
from tabes.cli import main

Capture = pytest.CaptureFixture[str]
PROMPTS = ["CC[MASK][MASK]O", "c1ccc[MASK][MASK]1", "N[MASK][MASK][MASK]C", "O[MASK]C[MASK]"]
HOT = ("--steps", 3, "--temperature", 1.5, "--seed", 7)


def command(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main(["generate", "moses", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def lines(capsys: Capture, *arguments: object) -> list[str]:
    code, out, err = command(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    return out[:-1].split("\n")


def file_of(folder: Path, prompts: Sequence[str], end: str = "\n") -> Path:
    file = folder / "prompts.txt"
    file.write_bytes("".join(prompt + end for prompt in prompts).encode())
    return file


# --- Every line is a prompt ------------------------------------------------------------------


@pytest.mark.case("N07")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_results_do_not_depend_on_the_batch(tmp_path: Path, capsys: Capture, size: int) -> None:
    file = file_of(tmp_path, PROMPTS)
    wanted = lines(capsys, *(f"--prompt={p}" for p in PROMPTS), *HOT)
    assert lines(capsys, "--prompt-file", file, "--batch-size", size, *HOT) == wanted
    assert len(set(wanted)) == 4


@pytest.mark.case("N07", "F26")
def test_marks_and_line_ends_change_nothing(tmp_path: Path, capsys: Capture) -> None:
    wanted = lines(capsys, "--prompt-file", file_of(tmp_path, PROMPTS), *HOT)
    text = "\r\n".join(PROMPTS)
    (tmp_path / "dos").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert lines(capsys, "--prompt-file", tmp_path / "dos", *HOT) == wanted


@pytest.mark.case("F26")
@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x0c"])
def test_other_separators_are_text(tmp_path: Path, capsys: Capture, character: str) -> None:
    """They are no part of a molecule, so that the line they stand in is the one that fails."""
    file = file_of(tmp_path, ["CC[MASK]", f"CC{character}[MASK]", "CO[MASK]"])
    code, out, err = command(capsys, "--prompt-file", file, "--steps", 1)
    assert code == 1
    first, second, third, end = out.split("\n")
    assert (first[:2], second, third[:2], end) == ("CC", "", "CO", "")
    assert err.startswith(f"{file}:2: ")


@pytest.mark.case("N07")
def test_blank_lines_are_prompts_with_gen_length(tmp_path: Path, capsys: Capture) -> None:
    file = file_of(tmp_path, ["CC", "", "CO", ""])
    records = [
        json.loads(line)
        for line in lines(capsys, "--prompt-file", file, "--gen-length", 4, "--json", *HOT)
    ]
    assert [record["line"] for record in records] == [1, 2, 3, 4]
    assert [len(record["tokens"]) for record in records] == [8, 6, 8, 6]  # with both ends
    with_prompts = lines(
        capsys, "-p", "CC", "-p", "", "-p", "CO", "-p", "", "--gen-length", 4, *HOT
    )
    assert [record["text"] for record in records] == with_prompts


@pytest.mark.case("N07", "F26")
def test_bad_lines_are_named_and_the_others_decoded(tmp_path: Path, capsys: Capture) -> None:
    good = ["CC[MASK]O", "N[MASK][MASK]C"]
    content = ["", good[0], "CC", "C\u00fc[MASK]", good[1], "C" * 300 + "[MASK]"]
    file = tmp_path / "prompts.txt"
    file.write_bytes("\n".join(content).encode() + b"\nC\xff[MASK]\n")
    for size in (1, 2, 16):
        code, out, err = command(capsys, "--prompt-file", file, "--batch-size", size, *HOT)
        assert code == 1
        complaints = dict(line.split(": ", 1) for line in err.splitlines())
        assert list(complaints) == [f"{file}:{n}" for n in (1, 3, 4, 6, 7)]
        assert "nothing to fill" in complaints[f"{file}:1"]
        assert "nothing to fill" in complaints[f"{file}:3"]
        assert "\u00fc" in complaints[f"{file}:4"]
        assert "at most" in complaints[f"{file}:6"]
        assert complaints[f"{file}:7"] == "0xff is not UTF-8"
        texts = out[:-1].split("\n")
        assert [bool(text) for text in texts] == [False, True, False, False, True, False, False]
        # The good ones are what they are among good ones in the same lines.
        alone = file_of(tmp_path / "..", ["C[MASK]", good[0], *["C[MASK]"] * 2, good[1]])
        assert texts[1] == lines(capsys, "--prompt-file", alone, *HOT)[1]
        assert texts[4] == lines(capsys, "--prompt-file", alone, *HOT)[4]

    code, out, _ = command(capsys, "--prompt-file", file, "--json", *HOT)
    assert code == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["line"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [sorted(record) for record in records[:2]] == [
        ["error", "line"],
        ["line", "sample", "text", "tokens"],
    ]
    assert records[6]["error"] == {"type": "InputError", "message": "0xff is not UTF-8"}
    assert records[1]["text"] == texts[1]


@pytest.mark.case("N07")
def test_samples(tmp_path: Path, capsys: Capture) -> None:
    file = file_of(tmp_path, [PROMPTS[0], "CC", PROMPTS[1]])
    options = ("--samples", 5, *HOT)
    _, wanted, _ = command(capsys, "--prompt-file", file, *options)
    texts = wanted[:-1].split("\n")
    assert [bool(text) for text in texts] == [True] * 5 + [False] * 5 + [True] * 5
    assert len(set(texts[:5])) > 1
    for size in (1, 4, 7):  # a prompt's samples may lie in several batches
        code, out, err = command(capsys, "--prompt-file", file, *options, "--batch-size", size)
        assert (code, out) == (1, wanted)
        assert err.count("\n") == 1
    _, out, _ = command(capsys, "--prompt-file", file, *options, "--json", "--batch-size", 4)
    records = [json.loads(line) for line in out.splitlines()]
    assert [(r["line"], r.get("sample")) for r in records] == [
        *((1, sample) for sample in range(5)),
        (2, None),
        *((3, sample) for sample in range(5)),
    ]
    # The same numbers as prompts that are written out.
    (whole,) = lines(
        capsys, "-p", PROMPTS[0], "-p", "C[MASK]", "-p", PROMPTS[1], *options, "--json"
    )
    assert json.loads(whole)["texts"][:5] == texts[:5]
    assert json.loads(whole)["texts"][10:] == texts[10:]


@pytest.mark.case("N07")
def test_results_come_as_they_are_made(tmp_path: Path) -> None:
    """A second prompt is asked for only when the first one's result has arrived."""
    words = "-m tabes generate moses --prompt-file - --batch-size 1 --steps 1"
    process = subprocess.Popen(
        [sys.executable, *words.split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for prompt in (b"CC[MASK]\n", b"CO[MASK]\n"):
        process.stdin.write(prompt)
        process.stdin.flush()
        assert process.stdout.readline()[:2] == prompt[:2]
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.wait() == 0
    process.stdout.close()


# --- What is wrong with all of them ----------------------------------------------------------


@pytest.mark.case("N07")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", 0), "steps must be at least 1"),
        (("--top-p", 2), "top_p must be in"),
        (("--gen-length", 0), "--gen-length 0: it must be at least 1"),
        (("--gen-length", 100_000), "exceed the model's 256 positions"),
        (("--chat",), "chat template"),
        (("--samples", 0), "--samples 0: it must be at least 1"),
        (("--batch-size", -1), "--batch-size -1: it must be at least 1"),
        (("--policy", "no_such"), "no_such"),
        (("--trace", "/no/such/folder/t"), "/no/such/folder does not exist"),
        (("--system", "x"), "--system needs --chat"),
        (("--seed", 2**64), "seed"),
        (("--seed", -1), "seed"),
    ],
)
def test_options_are_no_lines_fault(
    tmp_path: Path, capsys: Capture, arguments: tuple[Any, ...], says: str
) -> None:
    file = file_of(tmp_path, PROMPTS)
    code, out, err = command(capsys, "--prompt-file", file, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tabes: error: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.case("F26")
def test_files_without_prompts(tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(tabes.model, "load", None)  # there is no need to load a model for these
    for content, says in (
        (b"", "it holds no prompts"),
        (b"\xef\xbb\xbf", "it holds no prompts"),
        ("CC[MASK]\n".encode("utf-16"), "is UTF-16 or no text at all: save it as UTF-8"),
    ):
        (tmp_path / "f").write_bytes(content)
        code, out, err = command(capsys, "--prompt-file", tmp_path / "f")
        assert (code, out) == (2, "")
        assert f"--prompt-file {tmp_path / 'f'}" in err
        assert says in err
    assert command(capsys, "--prompt-file", tmp_path / "none")[0] == 2
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = command(capsys, "--prompt-file", "-")
    assert (code, err) == (2, "tabes: error: --prompt-file standard input is closed\n")


@pytest.mark.case("F26")
def test_standard_input_is_read_as_files_are(capsys: Capture, monkeypatch: Any) -> None:
    given = b"\xef\xbb\xbfCC[MASK]\r\nC\xff[MASK]\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    code, out, err = command(capsys, "--prompt-file", "-", "--steps", 1)
    assert code == 1
    assert out.startswith("CC")
    assert out.count("\n") == 2
    assert err == "stdin:2: 0xff is not UTF-8\n"


# --- Beside ----------------------------------------------------------------------------------


@pytest.mark.case("N07")
def test_a_trace_is_of_one_batch(tmp_path: Path, capsys: Capture) -> None:
    trace = tmp_path / "t.json"
    file = file_of(tmp_path, [*PROMPTS[:2], "C" * 300 + "[MASK]", PROMPTS[2]])
    options = ("--prompt-file", file, "--trace", trace, "--steps", 2)
    code, _, err = command(capsys, *options)
    assert (code, err.count("\n")) == (1, 1)
    decodes = tabes.trace.read(trace)
    assert len(decodes) == 3  # without the line that could not be decoded
    code, _, err = command(capsys, *options, "--batch-size", 2)
    assert code == 2
    assert "--trace keeps one batch" in err


def test_batch_size_is_for_files(capsys: Capture) -> None:
    code, _, err = command(capsys, "-p", "C[MASK]", "--batch-size", 2)
    assert code == 2
    assert "--batch-size is of --prompt-file" in err


@pytest.mark.case("N11")
@pytest.mark.parametrize(
    "notation", ["threshold(tau=0.5)", "boe(alpha=0.25, 0.5; n_candidates=3x)", "margin"]
)
def test_policies_have_one_notation(capsys: Capture, notation: str) -> None:
    model = tabes.load("moses")
    policy = tabes.make_policy(notation)
    wanted = tabes.generate(model, [PROMPTS[2]], steps=2, policy=policy).to_dict()
    (line,) = lines(capsys, "-p", PROMPTS[2], "--steps", 2, "--policy", notation, "--json")
    got = json.loads(line)
    assert got["tokens"] == wanted["tokens"]
    assert got["backward_rows"] == wanted["backward_rows"]
    code = main(["demo", "--number", "1", "--length", "5", "--policy", notation, "--json"])
    assert code == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["policy"], run["policy_settings"]) == (policy.name(), policy.settings())


@pytest.mark.case("N11")
def test_policies_are_listed_as_they_are_given(capsys: Capture) -> None:
    assert main(["policies"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in listed] == tabes.policy_names()
    for line, name in zip(listed, tabes.policy_names(), strict=True):
        assert tabes.make_policy(line) == tabes.make_policy(name)
    assert "threshold(tau=0.9)" in listed
    assert main(["policies", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values) == tabes.policy_names()
    assert values["threshold"] == {"tau": 0.9}


@pytest.mark.case("N16")
def test_bundled_models_have_names(capsys: Capture, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("moses", "sudoku", "countdown"):
        assert tabes.load(name).path == tabes.demo_checkpoint(name)
    assert main(["info", "countdown", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["path"] == str(tabes.demo_checkpoint("countdown"))
    with pytest.raises(tabes.CheckpointError, match="there are countdown, moses, sudoku"):
        tabes.load("mosses")
    # A folder of that name is what is meant by it, and a path is a path.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moses").mkdir()
    with pytest.raises(tabes.CheckpointError, match=r"config\.json"):
        tabes.load("moses")
    with pytest.raises(tabes.CheckpointError, match=r"no such folder$"):
        tabes.load("./sudoku")


@pytest.mark.case("N16", "F01")
def test_how_a_model_is_loaded(capsys: Capture) -> None:
    assert main(["info", "moses", "--json", "--eos-token-id", "5", "--eos-token-id", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["eos_token_ids"] == [5, 7]
    assert main(["info", "moses", "--mask-token-id", "999"]) != 0
    assert "999" in capsys.readouterr().err
    plain = lines(capsys, "-p", PROMPTS[0], *HOT)
    assert lines(capsys, "-p", PROMPTS[0], *HOT, "--no-prepack") == plain
