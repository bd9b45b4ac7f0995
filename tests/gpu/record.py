"""One record of a run of tests/gpu/run: what its parts wrote, on which device and with which
versions, and a table of verdicts.

    python tests/gpu/record.py FOLDER SECONDS LIMIT [--json FILE]

FOLDER holds a file `verdicts`, one "part<tab>verdict" a line, and the parts' JSON files. Without
--json the record goes to tests/gpu/results/<date>.json, or <date>-2.json and so on after the first
of a day. The exit status is 0 if all parts passed, 1 if one failed, 2 if none failed but something
was not checked.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def said(*command: str) -> str:
    """What a command prints; nothing if it cannot be run."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.strip()


def versions() -> dict[str, Any]:
    import torch

    cudnn: Any = torch.backends.cudnn
    nvcc = re.search(r"V[\d.]+", said(os.environ.get("CUDACXX") or "nvcc", "--version"))
    try:
        tabes = importlib.metadata.version("tabes")
    except importlib.metadata.PackageNotFoundError:
        tabes = None
    found: dict[str, Any] = {
        "tabes": tabes,
        "revision": said("git", "rev-parse", "HEAD"),
        "uncommitted_changes": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "nvcc": nvcc[0] if nvcc else None,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpus": os.cpu_count(),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found |= {
            "device": device.name,
            "multiprocessors": device.multi_processor_count,
            "memory_GiB": round(device.total_memory / 2**30, 1),
            "compute_capability": f"{device.major}.{device.minor}",
        }
    return found


def status_of(verdicts: dict[str, str]) -> str:
    """A part that did not run or did not finish is no failure and no pass."""
    words = set(verdicts.values())
    if words & {"failed", "errors"}:
        return "failed"
    return "passed" if words <= {"passed", "0 errors"} else "incomplete"


def all_verdicts(verdicts: dict[str, str], parts: dict[str, Any]) -> dict[str, str]:
    """The sanitizer's tools, and sections that the benchmark had no time for, count as parts."""
    every = dict(verdicts)
    for tool, entry in parts.get("sanitizer", {}).items():
        every[f"compute-sanitizer {tool}"] = entry["verdict"]
    if parts.get("sanitizer"):
        every.pop("sanitizer", None)
    unfinished = [
        name for name, said in parts.get("benchmark", {}).get("sections", {}).items()
        if said != "done"
    ]  # fmt: skip
    if every.get("benchmark") == "passed" and unfinished:
        every["benchmark"] = "incomplete"
    return every


def detail(part: str, parts: dict[str, Any]) -> str:
    if part == "parity" and isinstance(parts.get("parity"), list):
        lines = parts["parity"]
        return f"{sum(bool(line.get('ok')) for line in lines)} of {len(lines)} within limits"
    if part.startswith("compute-sanitizer"):
        return str(parts["sanitizer"][part.split()[-1]].get("detail", ""))
    if part == "benchmark":
        sections = parts.get("benchmark", {}).get("sections", {})
        return ", ".join(f"{name}: {word}" for name, word in sections.items() if word != "done")
    return ""


def checked(parts: dict[str, Any]) -> str:
    words = [entry["met"] for entry in parts.get("benchmark", {}).get("checks", [])]
    return (
        f"{words.count(True)} met, {words.count(False)} NOT MET, {words.count(None)} not measured"
    )


def free_name(folder: Path, day: str) -> Path:
    number, path = 1, folder / f"{day}.json"
    while path.exists():
        number += 1
        path = folder / f"{day}-{number}.json"
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("limit", type=float)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parts = {p.stem: json.loads(p.read_text()) for p in sorted(args.folder.glob("*.json"))}
    lines = (args.folder / "verdicts").read_text().splitlines()
    verdicts = all_verdicts(dict(line.split("\t", 1) for line in lines), parts)
    status = status_of(verdicts)
    now = datetime.datetime.now(datetime.timezone.utc)
    about = {
        "date": now.isoformat(timespec="seconds"),
        **versions(),
        "status": status,
        "passed": status == "passed",
        "verdicts": verdicts,
        "seconds": args.seconds,
        "within_time": args.seconds <= args.limit,
    }
    path = args.json or free_name(ROOT / "tests" / "gpu" / "results", now.strftime("%Y-%m-%d"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about} | parts, indent=1) + "\n")
    print(f"\n{about.get('device', 'no GPU')}, torch {about['torch']}, {args.seconds:.0f} s")
    for part, verdict in verdicts.items():
        print(f"{part:<28} {verdict:<14} {detail(part, parts)}")
    print(f"{'limits and predictions':<28} {checked(parts)}")
    if not about["within_time"]:
        print(f"the run took longer than {args.limit:.0f} s")
    print(f"{'FAILED' if status == 'failed' else status} | record in {path}")
    return {"passed": 0, "failed": 1}.get(status, 2)


if __name__ == "__main__":
    sys.exit(main())
