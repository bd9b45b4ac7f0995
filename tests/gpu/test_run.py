"""What tests/gpu/run claims: verdicts of the sanitizer, of parts that fail or run out of time, and
a record that takes the place of no other. A stand-in for Python plays the parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import record
import sanitize

HERE = Path(__file__).parent


def sanitizer(folder: Path, script: str) -> str:
    path = folder / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("tool", "script", "verdict"),
    [
        ("memcheck", "exit 0", "0 errors"),
        ("memcheck", "exit 9", "errors"),
        ("racecheck", "exit 1", "errors"),
        ("racecheck", "sleep 30", "timed out"),
        ("initcheck", "echo '===== Uninitialized'; echo '=====   at gemm'; exit 9", "0 errors"),
        ("initcheck", "echo '=====   at void tabes::gpu::entry<A>(B)'; exit 9", "errors"),
        ("initcheck", "echo '=====   at void tabes::gpu::entry<A>(B)'; sleep 30", "errors"),
    ],
)
def test_verdicts_of_the_sanitizer(
    tool: str, script: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", sanitizer(tmp_path, script))
    found = sanitize.check(tool, 1.0, ["true"], tmp_path / "log")
    assert found["verdict"] == verdict


def test_without_a_sanitizer_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.check("memcheck", 1.0, ["true"], tmp_path / "log")["verdict"] == "not installed"
    assert record.status_of({"parity": "passed", "memcheck": "not installed"}) == "incomplete"
    assert record.status_of({"parity": "passed", "memcheck": "0 errors"}) == "passed"
    assert record.status_of({"parity": "failed", "memcheck": "timed out"}) == "failed"


def test_a_record_never_takes_the_place_of_another(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(record.free_name(tmp_path, "2026-01-02"))
        names[-1].write_text("{}")
    assert [p.name for p in names] == ["2026-01-02.json", "2026-01-02-2.json", "2026-01-02-3.json"]


def test_a_record_says_what_was_not_checked(tmp_path: Path) -> None:
    (tmp_path / "verdicts").write_text("parity\tpassed\nsanitizer\tincomplete\nbenchmark\tpassed\n")
    parts = {
        "sanitizer": {"memcheck": {"verdict": "timed out", "detail": "after 60 s"}},
        "benchmark": {"sections": {"steps": "done", "head": "out of time"}, "checks": []},
    }
    for name, part in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    out = tmp_path / "record" / "out.json"
    command = [sys.executable, str(HERE / "record.py"), str(tmp_path), "500", "600"]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    about = json.loads(out.read_text())["about"]
    assert about["status"] == "incomplete"
    assert about["verdicts"] == {
        "parity": "passed", "compute-sanitizer memcheck": "timed out", "benchmark": "incomplete",
    }  # fmt: skip
    assert {"tabes", "torch", "cudnn", "nvcc", "driver", "revision"} <= set(about)
    assert "head: out of time" in done.stdout


def test_without_a_gpu_the_run_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = subprocess.run(
        ["bash", str(HERE / "run")], env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no CUDA device is visible" in done.stderr


# Answers for the parts of the run; what PARITY, TESTS and SANITIZE say are their exit statuses.
STAND_IN = """#!/bin/sh
case "$*" in
  *record.py*) exec %s "$@" ;;
  *sys.executable*) echo "$0" ;;
  -c*) echo 90 ;;
  -) echo "a GPU" ;;
  *pip*) exit 0 ;;
  *compile.py*) echo "kernels compiled" ;;
  *parity.py*) exit $PARITY ;;
  *pytest*) exit $TESTS ;;
  *sanitize.py*) exit $SANITIZE ;;
  *benchmark.py*) echo "measured $*" ;;
esac
"""


@pytest.mark.parametrize(
    ("statuses", "skip", "code", "said"),
    [
        ((0, 0, 0), "", 0, "passed | record"),
        ((0, 0, 2), "", 2, "incomplete | record"),
        ((0, 0, 0), "tests", 2, "skipped"),
        ((0, 1, 0), "", 1, "FAILED | record"),
        ((124, 0, 0), "", 2, "timed out"),
    ],
)
def test_the_run_puts_its_parts_together(
    statuses: tuple[int, int, int], skip: str, code: int, said: str, tmp_path: Path
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN % sys.executable)
    stand_in.chmod(0o755)
    parity, tests, sanitizers = map(str, statuses)
    environment = {
        "PYTHON": str(stand_in), "PARITY": parity, "TESTS": tests, "SANITIZE": sanitizers,
        "TABES_GPU_SKIP": skip, "TABES_GPU_JSON": str(tmp_path / "out.json"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(HERE / "run")], env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert "kernels compiled" in done.stdout
    about = json.loads((tmp_path / "out.json").read_text())["about"]
    assert next(iter(about["verdicts"])) == "build"
    assert about["passed"] == (code == 0)
    # The benchmark gets what is left of ten minutes.
    seconds = float(done.stdout.split("--seconds ")[1].split()[0])
    assert 500 < seconds < 580
