"""P14 of tests/python/test_properties.py: C++ decodes to the tokens of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tabes
import torch
from hypothesis import given, settings

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "python"), str(TESTS.parent / "python" / "training")]

from decode_cases import LAYOUTS, POLICIES, Case, cases, folder, tokens_of  # noqa: E402

many = settings(max_examples=int(os.environ.get("TABES_EXAMPLES", "200")), deadline=None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """decode_lines, built against the package; TABES_DECODE_LINES names one that is built."""
    if built := os.environ.get("TABES_DECODE_LINES"):
        return Path(built)
    build = tmp_path_factory.mktemp("decode_lines")
    source = Path(__file__).parent / "decode_lines"
    where = [f"-Dtabes_DIR={tabes.cmake_dir()}", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (["cmake", "-S", source, "-B", build, *where], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "decode_lines"


@pytest.fixture(scope="module")
def running(program: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One process for each layout, which answers line by line."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {
        layout: subprocess.Popen(
            [program, folder(layout)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for layout in LAYOUTS
    }
    yield found
    for process in found.values():
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None
        process.stdout.close()
    torch.set_num_threads(threads)


def as_line(case: Case) -> str:
    o = case.options
    numbers = [
        o["steps"],
        o.get("block_length", 0),
        o.get("refresh_every", 1),
        o["seed"],
        repr(o["temperature"]),
        o.get("top_k", 0),
        repr(o.get("top_p", 1.0)),
        repr(o.get("cfg_scale", 0.0)),
        int(o["logits_eos_inf"]),
        int(o["confidence_eos_eot_inf"]),
        *[len(o["forbidden"]), *o["forbidden"]],
        len(case.prompts),
    ]
    for prompt in case.prompts:
        numbers += [len(prompt), *prompt]
    return f"{POLICIES[case.policy]().notation()}\t{' '.join(map(str, numbers))}\n"


@many
@given(case=cases())
def test_p14_tokens_of_cpp_are_those_of_python(
    running: dict[str, subprocess.Popen[str]], case: Case
) -> None:
    process = running[case.layout]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(as_line(case))
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    out = case.run()
    written = [token for tokens in tokens_of(out) for token in tokens]
    wanted = [*written, out.forward_rows, out.backward_rows]
    assert answer == " ".join(map(str, wanted))
