"""Runs programs that a model wrote, in a process of their own with limits on time and memory.

The limits guard against accidents: endless loops, runaway memory, large files. They are no
protection against malice, since the process runs as the same user with the same network.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tabes._core import InputError

PASSED = "passed"
_LONGEST, _LARGEST = 86_400, 1 << 40  # seconds and MiB: more is no limit, and fits none

# The report is written only when the program has run to its end: a program that leaves early by
# exit(0) has passed nothing. Standard input is empty and nobody reads the output.
_LAUNCHER = """
import resource, sys
program, report, seconds, memory = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
limits = ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
          (resource.RLIMIT_FSIZE, 16 << 20), (resource.RLIMIT_CORE, 0))
for kind, limit in limits:
    resource.setrlimit(kind, (limit, limit))
with open(program, encoding="utf-8") as file:
    source = file.read()
sys.argv = [program]
try:
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    verdict = "passed"
except BaseException as error:
    verdict = type(error).__name__
with open(report, "w", encoding="utf-8") as file:
    file.write(verdict)
"""


@dataclass(frozen=True)
class Limits:
    """Of one program: wall-clock `seconds`, and address space in MiB."""

    seconds: float = 10.0
    memory_mib: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _LONGEST:
            raise InputError(
                f"code seconds {self.seconds}: they must be above 0 and at most {_LONGEST}"
            )
        if self.memory_mib < 64:
            raise InputError(f"code memory {self.memory_mib} MiB: Python itself needs 64")
        if self.memory_mib > _LARGEST:
            raise InputError(f"code memory {self.memory_mib} MiB: at most {_LARGEST}")


def run_program(source: str, limits: Limits) -> str:
    """Runs Python source to its end.

    Returns:
        `PASSED`, or why not: the name of the exception (SystemExit for a program that ended
        itself), "timed out", or "ended early" for one that was killed or left without a trace.
    """
    with tempfile.TemporaryDirectory(prefix="tabes-program-") as name:
        folder = Path(name)
        program, report = folder / "program.py", folder / secrets.token_hex(8)
        program.write_text(source, encoding="utf-8", errors="replace")
        cpu_seconds = int(limits.seconds) + 1  # the wall clock decides, this is the second line
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",  # neither the user's site-packages nor this folder's modules
                "-c",
                _LAUNCHER,
                str(program),
                str(report),
                str(cpu_seconds),
                str(limits.memory_mib << 20),
            ],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "HOME": name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # The whole group goes: what the program started must not outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if timed_out:
            return "timed out"
        return report.read_text(encoding="utf-8") if report.is_file() else "ended early"
