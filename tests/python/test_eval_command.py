"""The command ``tabes eval``: the bundled model, and every task with the preset of the paper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tabes
from scripted import CHAT
from tabes.cli import main
from test_eval_runner import ROWS
from test_eval_tasks import HUMANEVAL, MBPP, SUDOKU
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tabes", "eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "molecules.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    how = ("--policy", "boe(n_candidates=3; alpha=0.25, 0.5)", "--steps", 2, "--batch-size", 5)
    how += ("--refresh-every", 2)
    model = tabes.demo_checkpoint()
    done = command(model, "--tasks", "infill", "--data", file, *how, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("infill exact 0.")
    assert "protocol: infill, in place, exact text" in done.stdout
    outcomes = tmp_path / "tabes-eval" / "moses" / "outcomes.jsonl"
    assert done.stdout.endswith(f"{outcomes.relative_to(tmp_path)}\n")
    (results,) = outcomes.parent.glob("results-boe-*.json")
    values = json.loads(results.read_text())
    assert values["format"] == "tabes-eval"
    assert values["settings"]["policy"] == "boe(n_candidates=3, alpha=0.25;0.5)"
    assert values["settings"]["policy_settings"]["n_candidates"] == 3
    assert values["settings"]["steps"] == values["settings"]["refresh_every"] == 2
    assert values["settings"]["gen_length"] == 256
    assert values["versions"]["tabes"] == tabes.__version__
    assert values["tasks"]["infill"]["cost"]["backward_rows"] > 0
    assert len(outcomes.read_text().splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    assert (
        main(["eval", str(model), "-t=infill", "--data", str(file), *map(str, how), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["tasks"] == values["tasks"]
    assert len(outcomes.read_text().splitlines()) == 5


def test_a_question_to_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows SMILES only, so the prompt is one and ring numbers are its answers."""
    file = tmp_path / "rings.jsonl"
    rows = [{"question": "COc1ccc", "answer": "1"}, {"question": "CC(=O)N", "answer": "#### 1"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    template = tmp_path / "template.txt"
    template.write_text("{question}")
    arguments = ["eval", str(tabes.demo_checkpoint()), "-t", "gsm8k", "--data", f"gsm8k={file}"]
    arguments += ["--template", str(template), "--gen-length", "20", "--steps", "10", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["prompting"]["template"] == "{question}"
    task = values["tasks"]["gsm8k"]
    assert task["examples"] == 2
    assert task["protocol"].startswith("gsm8k, d1-style number, 0-shot, plain, template ")
    first, second = map(json.loads, (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines())
    assert first["text"]
    assert first["text"] != second["text"]


SPECIAL = ["<pad>", "<bos>", "<eos>", "<mask>", "<user>", "<reply>"]


@pytest.fixture
def tiny_chat(tiny_llada: Callable[..., Any]) -> Path:
    """A checkpoint as LLaDA's with a chat template: bytes as tokens, random weights."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    folder: Path = tiny_llada(vocab=len(pieces))[0]
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_sequence_length": 4096}))
    return folder


def test_every_task_with_the_preset_of_the_paper(
    tmp_path: Path, tiny_chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "gsm8k": [{"question": "Two and two?", "answer": "2+2=4\n#### 4"}],
        "math500": [{"problem": "What is $1+1$?", "answer": "2"}],
        "mbpp": MBPP[:1],
        "humaneval": [HUMANEVAL],
        "sudoku": SUDOKU,
    }
    files = []
    for task, rows in data.items():
        file = tmp_path / f"{task}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        files += ["--data", f"{task}={file}"]
    arguments = ["eval", str(tiny_chat), "--tasks", ",".join(data), "--preset", "paper", *files]
    arguments += ["--out", str(tmp_path / "out"), "--allow-code-execution", "--json"]
    assert main(arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["tasks"]) == list(data)
    for name, task in values["tasks"].items():
        assert task["examples"] == len(data[name])
        assert all(0 <= value["mean"] <= 1 for value in task["metrics"].values())
        # As many steps as the preset has, or as there are cells to fill.
        assert task["cost"]["forward_equivalents"] == (8 if name == "sudoku" else 128)
        assert "chat" in task["protocol"]
    assert values["peak_memory_mib"]["host"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "mbpp"), "mbpp runs the programs that the model writes"),
        (("-t", "none"), "there is no task 'none'"),
        (("-t", "infill", "--data", "no.jsonl"), "No such file"),
        (("-t", "infill,sudoku", "--data", "no.jsonl"), "write TASK=no.jsonl"),
        (("-t", "infill", "--policy", "boe(alpha"), "does not close"),
        (
            ("-t", "infill", "--policy", "confidence(alpha=1)"),
            "policy confidence has no setting 'alpha'",
        ),
        (("-t", "infill", "--template", "no.txt"), "--template no.txt"),
        (("-t", "infill", "--block-length", "x"), "'x' is neither a number nor none"),
        (("-t", "infill", "--code-seconds", "inf"), "code seconds inf: they must be above 0 and"),
        (("-t", "infill", "--code-memory", "9" * 20), f"code memory {'9' * 20} MiB: at most"),
    ],
)
def test_errors_of_the_command(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them before the checkpoint is looked at."""
    try:
        code = main(["eval", "no such folder", *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
