"""Every kernel compiles for every target and stays within its limits (see compile.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import compile as kernels

LOG = """
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    40 bytes stack frame, 52 bytes spill stores, 104 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 40 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def test_limits_are_held_to() -> None:
    first, second = kernels.report(LOG, "x.cu", "sm_90")
    assert (first.spilled, first.registers) == (52, 255)
    assert (second.spilled, second.registers) == (0, 32)
    assert "spills 52 bytes, limit 0" in (first.excess() or "")
    assert second.excess() is None
    first.spilled = 0
    assert "takes 255 registers, limit 64" in (first.excess() or "")
    first.name = "AqaKeys<Half, 128>"
    assert first.excess() is None
    first.name = "AqaKeys<Half, 64>"
    assert "takes 255 registers, limit 248" in (first.excess() or "")


def test_without_nvcc_it_says_so() -> None:
    script = [sys.executable, str(Path(kernels.__file__))]
    env = {"PATH": "", "TABES_REQUIRE_NVCC": "0"}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("skipped: no nvcc")
    env["TABES_REQUIRE_NVCC"] = "1"
    assert subprocess.run(script, env=env, capture_output=True, check=False).returncode == 1


def test_every_kernel_compiles_within_limits() -> None:
    nvcc = kernels.find_nvcc()
    if nvcc is None:
        reason = "no nvcc (neither CUDACXX nor PATH has one)"
        if os.environ.get("TABES_REQUIRE_NVCC") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    found = kernels.compile_all(nvcc)
    print(kernels.table(found, kernels.ARCHITECTURES))
    names = {source.name for source in kernels.SOURCES}
    assert {k.source for k in found} == names - kernels.WITHOUT_KERNELS
    assert [text for k in found if (text := k.excess())] == []
