"""The command line as a process: streams that are closed, full or gone, and the cost to start."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tabes
import torch
import transformers
from tabes.cli import main

TABES = f"{sys.executable} -m tabes"


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a command that prints and needs no torch."""
    model = tabes.load("moses")
    file = tmp_path_factory.mktemp("trace") / "t.json"
    out = tabes.generate(model, "CC[MASK][MASK]O", steps=2, policy="margin")
    tabes.trace.save(file, out, model)
    return file


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash; its stdout and stderr are pipes where it does not redirect them."""
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.case("N03")
def test_special_tokens_are_written_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`generate` has the option that `tabes eval` has, and it says the same as in Python."""
    model = special_model(tmp_path)
    assert model.info.special_token_ids == [0, 1, 2, 3]
    found = {}
    for allowed in (False, True):
        option = ["--allow-special"] if allowed else []
        command = ["generate", str(tmp_path), "--tokens", "2 7 4 4 4 4 3", "--steps", "2", "--json"]
        assert main([*command, *option]) == 0
        found[allowed] = json.loads(capsys.readouterr().out)["tokens"][0]
        prompt = [2, 7, 4, 4, 4, 4, 3]
        out = tabes.generate(model, prompt, steps=2, allow_special=allowed)
        assert found[allowed] == out.tokens.tolist()
    assert not {0, 1, 2, 3} & set(found[False][2:6])
    assert set(found[True][2:6]) == {1}  # what the head's bias makes most likely


def special_model(folder: Path) -> tabes.Model:
    """A BERT that writes [UNK] wherever it may."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        theirs.cls.predictions.bias[1] = 50.0
    theirs.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return tabes.load(folder)


@pytest.mark.case("F21")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("generate moses --prompt C --gen-length {huge}", "--gen-length {huge}: it must be at"),
        ("generate moses --prompt-file {file} --gen-length {huge}", "--gen-length {huge}: it must"),
        ("generate moses --prompt-file {file} --gen-length 10000000000000", "256 positions"),
        ("generate moses --prompt-file {file} --batch-size {huge}", "--batch-size {huge}: it must"),
        ("generate moses --prompt C --steps {huge}", "steps={huge}: it must fit 64 bits"),
        ("generate moses --prompt [MASK] --samples {huge}", "--samples {huge}: it must be at"),
        ("generate moses --prompt [MASK] --samples 1000000000", "--prompt-file decodes them in"),
        ("demo --length {huge}", "--length {huge}: it must be at most 254"),
        ("demo --length 255", "--length 255: it must be at most 254"),
        ("demo --number {huge}", "--number {huge}: it must be at most 10000"),
        ("generate moses --tokens {huge},3", "does not fit 64 bits"),
    ],
)
def test_numbers_that_are_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    file, huge = tmp_path / "prompts", 10**20
    file.write_text("C[MASK]\n")
    assert main(command.format(huge=huge, file=file).split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("tabes: error: ")
    assert said.count("\n") == 1
    assert says.format(huge=huge) in said


# --- Streams ---------------------------------------------------------------------------------


@pytest.mark.case("F26")
@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- 2>&-", "2>/dev/full"])
def test_output_needs_no_other_stream(trace_file: Path, closed: str) -> None:
    done = shell(f"{TABES} trace {trace_file} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "margin: 2 steps" in done.stdout


@pytest.mark.case("F26")
def test_a_decode_needs_no_stderr() -> None:
    command = f"{TABES} generate moses --prompt 'CC[MASK]O' --steps 1"
    done = shell(f"{command} 2>&-")
    assert done.returncode == 0
    assert done.stdout == shell(command).stdout != ""


@pytest.mark.case("F26")
@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("trace {file}", 1),
        ("trace {file} --out {file}.svg", 1),
        ("--help", 1),
        ("--version", 1),
        ("trace --help", 1),
        ("trace {file}.none", 1),
        ("trace {file} --no-such-option", 2),
        ("no-such-command", 2),
    ],
)
def test_closed_output_is_a_failure(trace_file: Path, closed: str, command: str, code: int) -> None:
    done = shell(f"{TABES} {command.format(file=trace_file)} {closed}")
    assert done.returncode == code
    assert done.stdout == ""
    silent = "2>&-" in closed
    assert done.stderr.count("\n") == (not silent)
    if not silent:
        assert done.stderr.startswith("tabes: error: ")
        assert code == 2 or done.stderr == "tabes: error: standard output is closed\n"


@pytest.mark.case("F26")
@pytest.mark.parametrize("command", ["trace {file}", "--help", "--version", "trace --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device(trace_file: Path, command: str, unbuffered: str) -> None:
    command = f"{TABES} {command.format(file=trace_file)}"
    done = shell(f"{command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "tabes: error: [Errno 28] No space left on device\n"
    done = shell(f"{command} > /dev/full 2>&1", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.case("F26")
@pytest.mark.parametrize("nowhere", ["2>/dev/full", "2>&-"])
def test_a_complaint_that_nobody_hears_keeps_its_exit_code(nowhere: str) -> None:
    assert shell(f"{TABES} trace /no/such/file {nowhere}").returncode == 2
    assert shell(f"{TABES} no-such-command {nowhere}").returncode == 2
    assert shell(f"{TABES} info /no/such/folder {nowhere}").returncode == 1


@pytest.mark.case("F26")
@pytest.mark.parametrize("command", ["--help", "trace {file}", "no-such-command"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away(trace_file: Path, command: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "tabes", *command.format(file=trace_file).split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, env=environment)
    wrong = command.startswith("no")
    assert (done.returncode, bool(done.stderr)) == ((2, True) if wrong else (1, False))
    both = subprocess.run(words, stdout=writer, stderr=writer, env=environment)
    assert both.returncode == done.returncode
    os.close(writer)


def test_files_do_not_take_the_place_of_closed_streams(tmp_path: Path) -> None:
    """What C code prints must not end in the next file that is opened."""
    code = (
        "import os; from tabes.streams import settle; settle(); f = open('kept', 'w'); "
        "os.write(1, b'x') and os.write(2, b'x'); f.write(str(f.fileno())); f.close()"
    )
    done = shell(f'cd {tmp_path} && {sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.returncode == 0
    assert int((tmp_path / "kept").read_text()) > 2


def test_characters_that_the_encoding_lacks(tmp_path: Path, trace_file: Path) -> None:
    value = json.loads(trace_file.read_text())
    value["pieces"] = {token: "語" for token in value["pieces"]}
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(value))
    done = shell(f"{TABES} trace {odd}", PYTHONIOENCODING="ascii", PYTHONUTF8="0", NO_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u8a9e" in done.stdout


# --- What starting costs ---------------------------------------------------------------------


def seconds(command: str) -> float:
    """CPU time of a command, the least of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "tabes", command], stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


@pytest.mark.case("N09")
@pytest.mark.parametrize("command", ["--help", "--version"])
def test_help_is_quick(command: str) -> None:
    assert seconds(command) < 0.3


@pytest.mark.case("N09")
@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "no-such-command", "trace {file}", "trace --help", "generate --help",
     "generate --no-such-option", "info --help", "demo --help", "policies --help",
     "convert --help", "eval --help", "fidelity --help", "bench --help", "bench pareto --help",
     "eval --no-such-option"],
)  # fmt: skip
def test_what_needs_no_torch_does_not_import_it(trace_file: Path, command: str) -> None:
    code = (
        "import sys; from tabes.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    words = command.format(file=trace_file).split()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "False"
