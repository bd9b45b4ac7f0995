"""Our kernels under compute-sanitizer: accesses out of bounds, races, reads of what nobody wrote.

    python tests/gpu/sanitize.py [--seconds 240] [--json FILE]

The tools run parity.py on its small sizes, side by side, since each keeps the device waiting most
of the time. The verdict is "0 errors", "errors", "timed out" or "not installed"; the exit status is
1 for errors, 2 if a tool did not finish.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck")
# Part of the name of every kernel of ours, as the compiler writes it (cpp/src/ops/cuda/launch.h).
MANGLED = "5tabes3gpu5entry"
OURS = re.compile(rf"=+\s+at .*(?:tabes::gpu::entry|{MANGLED})")
ERRORS_FOUND = 9


def command(sanitizer: str, tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(ERRORS_FOUND)]
    if tool == "initcheck":
        # What other kernels write counts as written only if they are watched as well, so this tool
        # watches all; what it says of theirs is not for us to judge.
        options += ["--print-limit", "100000"]
    else:
        options += ["--kernel-name", f"kernel_substring={MANGLED}"]
    if tool == "memcheck":
        # PyTorch asks CUDA for things to see whether they are there.
        options += ["--report-api-errors", "no"]
    return [sanitizer, *options]


def verdict_of(tool: str, code: int, log: str) -> tuple[str, str]:
    """The verdict, and what it rests on."""
    ours = len(OURS.findall(log))
    if tool == "initcheck":
        others = max(0, log.count("Uninitialized") - ours)
        if ours:
            return "errors", f"{ours} in our kernels"
        if code in (0, ERRORS_FOUND):
            return "0 errors", f"{others} in kernels of others" if others else ""
    elif code == 0:
        return "0 errors", ""
    if code == ERRORS_FOUND:
        return "errors", f"{ours} in our kernels"
    return "errors", f"the program under it ended with status {code}"


def check(tool: str, seconds: float, program: Sequence[str], log: Path) -> dict[str, object]:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return {"verdict": "not installed", "detail": "no compute-sanitizer on PATH"}
    # Without its cache every tensor is an allocation of its own, whose ends the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command(sanitizer, tool), *program], stdout=out, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # The sanitizer and the program it started.
            os.killpg(process.pid, 9)
            process.wait()
            code = None
    said = log.read_text(errors="replace")
    if code is not None:
        verdict, detail = verdict_of(tool, code, said)
    elif OURS.search(said):
        verdict, detail = "errors", "found before its time was up"
    else:
        verdict, detail = "timed out", f"after {seconds:.0f} s, without an error so far"
    took = round(time.monotonic() - start, 1)
    return {"verdict": verdict, "detail": detail, "seconds": took}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, default=Path())
    args = parser.parse_args()
    parity = [sys.executable, str(Path(__file__).with_name("parity.py")), "--small"]
    logs = {tool: args.logs / f"sanitizer-{tool}.log" for tool in TOOLS}
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        running = {
            tool: pool.submit(check, tool, args.seconds, parity, log) for tool, log in logs.items()
        }
        found = {tool: one.result() for tool, one in running.items()}
    for tool, entry in found.items():
        print(f"compute-sanitizer {tool}: {entry['verdict']}", entry["detail"])
        if entry["verdict"] == "errors":
            print("\n".join(logs[tool].read_text(errors="replace").splitlines()[-40:]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    verdicts = {entry["verdict"] for entry in found.values()}
    return 1 if "errors" in verdicts else 0 if verdicts == {"0 errors"} else 2


if __name__ == "__main__":
    sys.exit(main())
