"""Compiles every CUDA kernel for sm_80, sm_90 and sm_100 and holds what ptxas says of registers and
spills to limits. Needs nvcc, no GPU and no PyTorch.

    python tests/gpu/compile.py [--arch sm_90 ...] [--json FILE]

Without nvcc it says "skipped: no nvcc" and succeeds; with TABES_REQUIRE_NVCC=1 that is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "cpp" / "src" / "ops" / "cuda").glob("*.cu"))
WITHOUT_KERNELS = {"device_info.cu"}
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# Bytes that ptxas may spill to the stack. The adjoint's sums and scores fill a thread's 255
# registers from 128 numbers a head on; a few spilled addresses cost nothing there. Sample's block
# of 512 is kept at 32 registers, so that four of them fit, at the price of some before its loops.
SPILLS = {"AqaQueries": 64, "AqaKeys": 64, "Sample": 32}
# Registers a thread: what a block's threads may share out of the 65,536 of a multiprocessor, and
# for the kernels of rows, which wait for memory, that at least 1,024 threads are under way.
# The adjoint's, by the first pattern that fits: what decides is how many of its blocks a
# multiprocessor holds at once. A thread has no more than 255.
REGISTERS = (
    (r"AqaQueries<float", 128),
    (r"AqaKeys<float", 168),
    (r"AqaQueries<\w+, \d+, false>", 168),
    (r"AqaQueries<\w+, (32|64|96), true>", 184),
    (r"AqaKeys<\w+, (32|64|96)>", 248),
    (r"AqaQueries|AqaKeys", 255),
)
DEFAULT_SPILLS, DEFAULT_REGISTERS = 0, 64


@dataclass
class Kernel:
    source: str
    architecture: str
    name: str
    registers: int
    spilled: int

    def excess(self) -> str | None:
        spills = SPILLS.get(self.name.split("<")[0], DEFAULT_SPILLS)
        fitting = (most for pattern, most in REGISTERS if re.match(pattern, self.name))
        registers = next(fitting, DEFAULT_REGISTERS)
        if self.spilled > spills:
            return f"{self.name} on {self.architecture} spills {self.spilled} bytes, limit {spills}"
        if self.registers > registers:
            return (
                f"{self.name} on {self.architecture} takes {self.registers} registers, "
                f"limit {registers}"
            )
        return None


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def readable(symbols: list[str]) -> list[str]:
    """The kernels' C++ names: of entry<NAME, SomeParams>(SomeParams) the NAME."""
    filt = shutil.which("cu++filt") or shutil.which("c++filt")
    if filt is None or not symbols:
        return symbols
    done = subprocess.run(
        [filt], input="\n".join(symbols), text=True, capture_output=True, check=True
    )
    names = []
    for line in done.stdout.splitlines():
        name = re.sub(
            r"\(anonymous namespace\)::|<unnamed>::|tabes::gpu::|\(bool\)|\(int\)", "", line
        )
        found = re.match(r"void entry<(.*), \w+>\(", name)
        names.append(found[1] if found else name)
    return names


def report(log: str, source: str, architecture: str) -> list[Kernel]:
    """The kernels of one ptxas -v log."""
    found = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    names = readable([symbol for symbol, _, _ in found])
    return [
        Kernel(source, architecture, name, int(registers), int(spilled))
        for name, (_, spilled, registers) in zip(names, found, strict=True)
    ]


def compile_one(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc, "-std=c++20", "-O3", f"-arch={architecture}", f"-I{ROOT / 'cpp' / 'src'}",
            "-Xptxas", "-v", "-Werror", "all-warnings", "-cubin",
            "-o", f"{folder}/kernels.cubin", str(source),
        ]  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile for {architecture}:\n{done.stderr}")
    kernels = report(done.stderr, source.name, architecture)
    expected = done.stderr.count("Compiling entry function")
    if len(kernels) != expected:
        raise RuntimeError(f"could not read ptxas's report of {source.name}:\n{done.stderr}")
    return kernels


def compile_all(nvcc: str, architectures: tuple[str, ...] = ARCHITECTURES) -> list[Kernel]:
    jobs = [(source, architecture) for source in SOURCES for architecture in architectures]
    # A compiler takes about a gigabyte.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda job: compile_one(nvcc, *job), jobs)
        return [kernel for part in parts for kernel in part]


def table(kernels: list[Kernel], architectures: tuple[str, ...]) -> str:
    """Registers (and spilled bytes) a kernel and architecture."""
    cells = {(k.source, k.name, k.architecture): k for k in kernels}
    lines = [
        f"{'kernel: registers (bytes spilled)':<58}" + "".join(f"{a:>12}" for a in architectures)
    ]
    for source, name in dict.fromkeys((k.source, k.name) for k in kernels):
        row = f"{source.removesuffix('.cu') + ' ' + name:<58}"
        for architecture in architectures:
            k = cells[source, name, architecture]
            row += f"{str(k.registers) + (f' ({k.spilled})' if k.spilled else ''):>12}"
        lines.append(row)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("skipped: no nvcc (neither CUDACXX nor PATH has one)")
        return int(os.environ.get("TABES_REQUIRE_NVCC") == "1")
    architectures = tuple(args.arch)
    kernels = compile_all(nvcc, architectures)
    print(table(kernels, architectures))
    if args.json:
        args.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    excesses = [text for k in kernels if (text := k.excess())]
    print("\n".join(excesses) if excesses else f"{len(kernels)} kernels within limits")
    return int(bool(excesses))


if __name__ == "__main__":
    sys.exit(main())
