"""How the benchmark measures, and what it remembers: times of interleaved variants, their memory,
what failed and why."""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tabes
import torch
from roofline import Ceilings, Cost

Entry = dict[str, Any]
# More than the second-level cache of any GPU so far, so that writing it empties the cache.
CACHE_BYTES = 256 << 20
# The device waits about 0.15 ms a call first, in which the host enqueues the call.
WAIT_CYCLES = 250_000


@dataclass
class Work:
    """A variant: what is timed, and how often it runs before. A shape that is recorded as a CUDA
    graph is seen in its first run, recorded in the second and replayed from the third on."""

    run: Callable[[], Any]
    warmups: int = 1
    floor: Cost | None = None
    # Seconds read from what `run` returns, in the place of the time it takes.
    seconds: Callable[[Any], float] | None = None


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "p10": ordered[len(ordered) // 10],
        "p90": ordered[-1 - len(ordered) // 10],
    }


def finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: None in their place."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def paired(times: Entry, base: Entry) -> float:
    """The median of the ratios of two variants' times, round by round."""
    rounds = zip(times["seconds"], base["seconds"], strict=False)
    return float(statistics.median(a / b for a, b in rounds))


@dataclass
class Bench:
    device: str
    deadline: float  # by time.monotonic()
    path: Path | None = None
    about: Entry = field(default_factory=dict)
    ceilings: Ceilings | None = None
    documented: Ceilings | None = None
    results: list[Entry] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    checks: list[Entry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def memory(self) -> int:
        return torch.cuda.memory_allocated() if self.on_gpu else 0

    def failed(self, error: BaseException, where: str) -> str:
        """Running out of memory is a finding; anything else makes the benchmark fail."""
        said = str(error).strip() or type(error).__name__
        first = said.splitlines()[0][:300]
        signs = ("out of memory", "cublas_status_alloc_failed")
        if isinstance(error, torch.OutOfMemoryError) or any(s in said.lower() for s in signs):
            return f"out of memory: {first}"
        self.failures.append(f"{where}: {type(error).__name__}: {first}")
        return f"{type(error).__name__}: {first}"

    def wall(self, work: Callable[[], object]) -> float:
        """Of host and device together."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def device_times(self, work: Callable[[], object], calls: int) -> list[float]:
        """Of the device alone, which the host runs ahead of, each call with an empty cache."""
        if not self.on_gpu:
            return [self.wall(work) for _ in range(calls)]
        cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=self.device)
        cuda: Any = torch.cuda
        marks = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        self.synchronize()
        cuda._sleep(WAIT_CYCLES * calls)
        for begin, end in marks:
            cache.zero_()
            begin.record()
            work()
            end.record()
        self.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in marks]

    def compare(
        self, where: str, works: dict[str, Work], *, calls: int = 0, least: int = 3, most: int = 9,
        seconds: float = 4.0,
    ) -> tuple[dict[str, Entry], dict[str, object]]:  # fmt: skip
        """Times the variants in turns, `least` to `most` rounds, until `seconds` have gone by.

        `calls`: so many calls a round, of which the device's time counts; 0: one, by the clock.
        Returns an entry a variant, and what each returned last.
        """
        if not self.on_gpu:
            least, most = 2, 2
        variants: dict[str, Entry] = {}
        last: dict[str, object] = {}

        def attempt(name: str, step: Callable[[], object]) -> None:
            try:
                step()
            except (RuntimeError, tabes.Error, ValueError) as error:
                variants[name] = {"failed": self.failed(error, f"{where}, {name}")}
                last.pop(name, None)
            if "failed" in variants[name]:
                self.free_memory()

        for name, work in works.items():
            variants[name] = {"seconds": []}
            attempt(name, partial(self._warm_up, name, work, variants[name], last))
        start = time.perf_counter()
        for turn in range(most):
            enough = turn >= least and time.perf_counter() - start > seconds
            if enough or (turn > 0 and self.late()):
                break
            for name, work in works.items():
                if "failed" not in variants[name]:
                    attempt(name, partial(self._turn, work, variants[name], calls))
        for name, entry in variants.items():
            if "failed" not in entry:
                entry |= spread(entry["seconds"])
                self._add_floor(entry, works[name].floor)
        return variants, last

    def _warm_up(self, name: str, work: Work, entry: Entry, last: dict[str, object]) -> None:
        before = self.memory()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(work.warmups):
            last[name] = work.run()
        self.synchronize()
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated()
            entry |= {"peak_MiB": peak >> 20, "working_MiB": (peak - before) >> 20}

    def _turn(self, work: Work, entry: Entry, calls: int) -> None:
        if work.seconds is not None:
            entry["seconds"].append(work.seconds(work.run()))
        elif calls:
            entry["seconds"] += self.device_times(work.run, calls)
        else:
            entry["seconds"].append(self.wall(work.run))

    def _add_floor(self, entry: Entry, floor: Cost | None) -> None:
        if floor is None or self.ceilings is None:
            return
        seconds = floor.seconds(self.ceilings)
        entry["floor"] = {"seconds": seconds, "GB": floor.bytes / 1e9, "TFLOP": floor.flops / 1e12}
        if self.documented:
            entry["floor"]["seconds_documented"] = floor.seconds(self.documented)
        entry["over_floor"] = entry["median"] / seconds

    def note(
        self, section: str, variants: dict[str, Entry], base: str | None = None, **sizes: Any
    ) -> Entry:
        """Remembers and prints a comparison, with ratios to the variant `base`."""
        print(f"{section:<12} " + " ".join(f"{k}={v}" for k, v in sizes.items()))
        for name, entry in variants.items():
            if "failed" in entry:
                print(f"    {name:<26} {entry['failed'][:100]}")
                continue
            low, middle, high = (1e6 * entry[key] for key in ("p10", "median", "p90"))
            line = f"    {name:<26} {middle:11.1f} us ({low:.1f}-{high:.1f})"
            if base in variants and "failed" not in variants[base]:
                entry["ratio"] = paired(entry, variants[base])
                line += f"  {entry['ratio']:6.2f} x {base}"
            if "over_floor" in entry:
                line += f"  {entry['over_floor']:6.2f} x floor"
            if "working_MiB" in entry:
                line += f"  {entry['working_MiB']} MiB"
            if entry.get("replayed_passes"):
                line += f"  {entry['replayed_passes']} replayed"
            print(line, flush=True)
        result: Entry = {"section": section, **sizes, "base": base, "variants": variants}
        self.results.append(result)
        return result

    def section(self, name: str, work: Callable[[], None]) -> None:
        """Runs a part of the benchmark, whose failure is remembered and does not end the others."""
        if self.late():
            self.sections[name] = "out of time"
            print(f"{name}: out of time")
            return
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        try:
            work()
            self.sections[name] = "cut short" if self.late() else "done"
        except Exception as error:
            self.sections[name] = f"failed: {self.failed(error, name)}"
            print(f"{name} {self.sections[name]}", flush=True)
        self.about.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        self.free_memory()
        self.write()

    def find(self, section: str, **sizes: Any) -> Iterable[Entry]:
        """The results of a section at these sizes."""
        for result in self.results:
            if result["section"] == section and all(
                result.get(key) == value for key, value in sizes.items()
            ):
                yield result

    def write(self) -> None:
        """The whole record; a half-written file never takes the place of a whole one."""
        if self.path is None:
            return
        record = {
            "about": self.about,
            "ceilings": {
                name: {"bytes_per_second": c.bytes_per_second, "flops": c.flops}
                for name, c in (("measured", self.ceilings), ("documented_H100", self.documented))
                if c is not None
            },
            "sections": self.sections,
            "results": self.results,
            "checks": self.checks,
            "failed": self.failures,
        }
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")
        os.replace(scratch, self.path)


def measure_ceilings(bench: Bench) -> Ceilings:
    """The fastest product of large matrices and the fastest copy, by this process on this device:
    bytes read and written a second, multiplications and additions a second."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    shapes = [(8192, 8192, 8192), (8192, 4096, 12288)] if bench.on_gpu else [(256, 256, 256)]
    flops = 0.0
    for m, k, n in shapes:
        a = torch.randn(m, k, device=bench.device, dtype=dtype)
        b = torch.randn(k, n, device=bench.device, dtype=dtype)
        out = torch.empty(m, n, device=bench.device, dtype=dtype)
        product = partial(torch.mm, a, b, out=out)
        bench.device_times(product, 3)
        times = bench.device_times(product, 20)
        flops = max(flops, 2 * m * k * n / statistics.median(times))
    source = torch.randn((1 << 30 if bench.on_gpu else 1 << 22) // 4, device=bench.device)
    target = torch.empty_like(source)
    bench.device_times(partial(target.copy_, source), 3)
    times = bench.device_times(partial(target.copy_, source), 20)
    return Ceilings(2 * 4 * source.numel() / statistics.median(times), flops)
