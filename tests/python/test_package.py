"""Arguments, inputs, conversion, the import check and the command line, as a user meets them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tabes
import torch

MASK, BOS, EOS = 3, 1, 2
CANVAS = [BOS] + [MASK] * 5 + [EOS]


def test_inputs_of_every_kind_give_the_same(demo_model: tabes.Model) -> None:
    wanted = tabes.generate(demo_model, CANVAS).tokens
    assert wanted.dtype == torch.int64
    assert wanted.shape == (7,)
    for one in (torch.tensor(CANVAS), np.array(CANVAS), np.array(CANVAS, dtype=np.int32)):
        assert torch.equal(tabes.generate(demo_model, one).tokens, wanted)
    for batch in ([CANVAS, CANVAS], np.array([CANVAS] * 2), torch.tensor([CANVAS] * 2)):
        tokens = tabes.generate(demo_model, batch).tokens
        assert tokens.shape == (2, 7)
        assert torch.equal(tokens[1], wanted)
    ragged = tabes.generate(demo_model, [CANVAS, CANVAS[:4]]).tokens
    assert [len(t) for t in ragged] == [7, 4]
    text = tabes.generate(demo_model, "[MASK]" * 5)
    assert torch.equal(text.tokens, wanted)
    assert text.texts == tabes.generate(demo_model, CANVAS).texts


def test_a_prompt_is_continued_inside_its_frame(demo_model: tabes.Model) -> None:
    out = tabes.generate(demo_model, "CC(=O)N", gen_length=4)
    assert out.tokens[0] == BOS
    assert out.tokens[-1] == EOS
    assert len(out.tokens) == 1 + 7 + 4 + 1
    assert out.texts[0].startswith("CC(=O)N")
    json.dumps(out.to_dict())


def test_aliases(demo_model: tabes.Model) -> None:
    wanted = tabes.generate(demo_model, [BOS], gen_length=6, block_length=3, policy="margin").tokens
    got = tabes.generate(
        demo_model, [BOS], max_new_tokens=6, block_size=3, alg="topk_margin"
    ).tokens
    assert torch.equal(got, wanted)
    assert tabes.generate(demo_model, CANVAS, remasking="low_confidence").finished


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(step=3), "steps"),
        (dict(temprature=1.0), "temperature"),
        (dict(gen_length=4, max_new_tokens=4), "mean the same"),
        (dict(steps=0), "steps"),
        (dict(steps=1.5), "steps"),
        (dict(block_length=0), "block_length"),
        (dict(temperature=-1), "temperature"),
        (dict(temperature="hot"), "temperature"),
        (dict(top_p=0.0), "top_p"),
        (dict(top_k=-1), "top_k"),
        (dict(cfg_scale=-1.0), "cfg_scale"),
        (dict(seed=-1), "seed"),
        (dict(seed=2**70), "seed"),
        (dict(policy="greedy"), "known are random, confidence, margin"),
        (dict(policy=3), "policy"),
        (dict(forbidden=[99]), "forbidden token 99"),
        (dict(forbidden="C"), "forbidden"),
        (dict(gen_length=0), "gen_length"),
        (dict(gen_length=10**6), "exceed the model's 256 positions"),
        (dict(callback=3), "callback"),
        (dict(attention_mask=[1]), "must agree"),
    ],
)
def test_bad_arguments(demo_model: tabes.Model, arguments: dict, message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        tabes.generate(demo_model, CANVAS, **arguments)


@pytest.mark.parametrize(
    "prompt", [[], [1.5], [[1], ["C"]], np.zeros((2, 2, 2), dtype=int), [99], [-1], None]
)
def test_bad_prompts(demo_model: tabes.Model, prompt: object) -> None:
    with pytest.raises(tabes.InputError):
        tabes.generate(demo_model, prompt, gen_length=2)


def test_nothing_to_fill(demo_model: tabes.Model) -> None:
    with pytest.raises(tabes.InputError, match="nothing to fill"):
        tabes.generate(demo_model, [BOS, 7, EOS])
    with pytest.raises(tabes.InputError, match="gen_length"):
        tabes.generate(demo_model, "CC")


def test_logits_shapes(demo_model: tabes.Model) -> None:
    batch = demo_model.logits([CANVAS, CANVAS])
    assert batch.shape == (2, 7, demo_model.info.vocab_size)
    assert batch.dtype == torch.float32


def test_load_errors(tmp_path: Path, rxnfp_folder: Path) -> None:
    with pytest.raises(tabes.CheckpointError, match="no such folder"):
        tabes.load(tmp_path / "nowhere")
    with pytest.raises(tabes.CheckpointError, match="tabes convert"):
        tabes.load(rxnfp_folder)
    with pytest.raises(tabes.Error, match="dtype"):
        tabes.load(tabes.demo_checkpoint(), dtype="int8")
    with pytest.raises(tabes.Error, match="device"):
        tabes.load(tabes.demo_checkpoint(), device="toaster")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(path=None), "path=None: give the checkpoint folder"),
        (dict(path=3), "path=3: give the checkpoint folder"),
        (dict(mask_token_id="3"), "mask_token_id='3': it must be an integer"),
        (dict(mask_token_id=2**70), "mask_token_id=.*: it must fit 64 bits"),
        (dict(mask_token_id=3.0), "mask_token_id=3.0: it must be an integer"),
        (dict(prepack="x"), "prepack='x': it must be True or False"),
        (dict(progress=3), "progress=3: it must be callable"),
    ],
)
def test_bad_load_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        tabes.load(**(dict(path=tabes.demo_checkpoint()) | arguments))


def test_help_of_the_trace_format() -> None:
    # As the README says it: nothing but `import tabes` before.
    done = subprocess.run(
        [sys.executable, "-c", "import tabes; help(tabes.trace)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tabes-trace" in done.stdout


def test_convert_keeps_every_weight(rxnfp_folder: Path, rxnfp_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    before = torch.load(rxnfp_folder / "pytorch_model.bin", weights_only=True)
    after = load_file(rxnfp_checkpoint / "model.safetensors")
    assert set(after) <= set(before)
    assert all(torch.equal(before[k], v) for k, v in after.items())
    with pytest.raises(tabes.Error):
        tabes.convert(rxnfp_folder, rxnfp_checkpoint)  # never over an existing folder


def test_convert_runs_no_code_from_a_pickle(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"weight": Payload()}, source / "pytorch_model.bin")
    with pytest.raises(tabes.CheckpointError):
        tabes.convert(source, tmp_path / "out")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def test_rxnfp_fills_reactions(rxnfp_model: tabes.Model) -> None:
    reactions = [
        "CCO.CC(=O)Cl>>CCOC(C)=[MASK]",
        "Brc1ccccc1.OB(O)c1ccncc1>>c1ccc(-c2cc[MASK]cc2)cc1",
    ]
    out = tabes.generate(rxnfp_model, reactions, steps=1)
    # The ester's oxygen, and the pyridine's nitrogen carried over from the boronic acid.
    assert out.texts == [r.replace("[MASK]", a) for r, a in zip(reactions, "On", strict=True)]


def stub_import(tmp_path: Path, version: str | None) -> subprocess.CompletedProcess[str]:
    """Imports tabes where the only torch is a stub of that version, or none at all."""
    source = Path(tabes.__file__).parent
    (tmp_path / "tabes").mkdir()
    for file in source.iterdir():
        if file.suffix in {".py", ".so"}:
            (tmp_path / "tabes" / file.name).symlink_to(file.resolve())
    if version is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n")
        info = tmp_path / f"torch-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tabes"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True
    )


@pytest.mark.parametrize("version", [None, "2.11.0", "2.14.1", "2.12.0+cu130", "1.13.1"])
def test_another_torch_is_refused_before_loading(tmp_path: Path, version: str | None) -> None:
    done = stub_import(tmp_path, version)
    last = done.stderr.strip().splitlines()[-1]
    assert "ImportError" in last or "ImportError" in done.stderr
    assert "2.13.0" in done.stderr
    assert "pip install" in done.stderr
    assert "undefined symbol" not in done.stderr
    if version:
        assert version in done.stderr


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tabes", *map(str, arguments)], capture_output=True, text=True
    )


def test_cli_info_and_generate() -> None:
    info = run("info", tabes.demo_checkpoint(), "--json")
    assert json.loads(info.stdout)["family"] == "llada"
    done = run("generate", tabes.demo_checkpoint(), "--prompt", "CC[MASK]O", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True
    plain = run("generate", tabes.demo_checkpoint(), "--prompt", "CC[MASK]O")
    assert plain.stdout.startswith("CC")
    assert "\x1b" not in plain.stdout + plain.stderr  # no decoration off a terminal
    assert plain.stderr == ""


def test_cli_errors_are_one_line() -> None:
    for arguments, code in (
        (("info", "/no/such/folder"), 1),
        (("generate", tabes.demo_checkpoint(), "--prompt", "CC"), 2),
        (("generate", tabes.demo_checkpoint(), "--prompt", "C[MASK]", "--steps", "0"), 2),
    ):
        done = run(*arguments)
        assert done.returncode == code
        assert done.stderr.startswith("tabes: error: ")
        assert done.stderr.count("\n") == 1


def on_terminal(*arguments: object, stdout: int | None = None) -> tuple[int, bytes]:
    """Runs Python with a terminal as stderr, and as stdout unless given; what was written there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=follower if stdout is None else stdout,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end has closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    return process.wait(), seen


def test_cli_draws_a_canvas_on_a_terminal() -> None:
    code, seen = on_terminal("-m", "tabes", "demo", "--number", "1", "--seed", "1")
    assert code == 0
    assert b"\x1b[" in seen


def test_cli_shows_a_bar_where_only_stderr_is_a_terminal() -> None:
    prompt = "CC" + "[MASK]" * 20
    command = ("-m", "tabes", "generate", tabes.demo_checkpoint(), "--prompt", prompt, "--json")
    code, seen = on_terminal(*command, stdout=subprocess.DEVNULL)
    assert code == 0
    assert b"denoising" in seen
    assert b"/20" in seen  # steps, counted


# The bar is for loads of a gigabyte and more; a test cannot wait for one, so every load is long.
LONG_LOAD = """
import tabes, tabes.model
tabes.model._LONG_LOAD = 0
tabes.load(tabes.demo_checkpoint())
"""


def test_a_long_load_shows_a_bar_on_a_terminal_only() -> None:
    code, seen = on_terminal("-c", LONG_LOAD)
    assert code == 0
    assert b"loading" in seen
    assert b"MiB" in seen
    quiet = subprocess.run([sys.executable, "-c", LONG_LOAD], capture_output=True, text=True)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_silence_off_a_terminal_in_a_long_decode() -> None:
    prompt = "CC" + "[MASK]" * 60
    for json_flag in ([], ["--json"]):
        done = run("generate", tabes.demo_checkpoint(), "--prompt", prompt, *json_flag)
        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
