"""What was to be reached on one H100 and what was predicted for it, held against what was measured.
Not reaching a limit is a finding, not an error."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmark_report import Bench, Entry, paired

REACH, PREDICTION = "to be reached", "predicted"


def check(
    name: str, kind: str, measured: float | None, low: float | None, high: float | None
) -> Entry:
    """`met` is None where nothing was measured."""
    met = None
    if measured is not None and math.isfinite(measured):
        met = (low is None or measured >= low) and (high is None or measured <= high)
    else:
        measured = None
    return {"name": name, "kind": kind, "measured": measured, "at_least": low, "at_most": high,
            "met": met}  # fmt: skip


def value(bench: Bench, section: str, variant: str, key: str, **sizes: object) -> float | None:
    for result in bench.find(section, **sizes):
        found = result["variants"].get(variant, {}).get(key)
        return None if found is None else float(found)
    return None


def reach(bench: Bench) -> Iterator[Entry]:
    for way in ("", ", replayed"):
        for variant, batch, limit in (
            ("frozen", 8, 1.65), ("frozen", 1, 2.0), ("exact", 8, 2.4), ("exact", 1, 2.4),
        ):  # fmt: skip
            yield check(
                f"{variant} step, B={batch} L=1024 rho=0.25{way}: in plain steps", REACH,
                in_plain_steps(bench, variant, way, batch), None, limit,
            )  # fmt: skip
    for batch in (1, 8):
        for way in ("", ", replayed"):
            share = value(bench, "step", f"plain{way}", "share_of_gemm", B=batch, L=1024, rho=0.25)
            name = f"plain step, B={batch} L=1024{way}: share of the measured GEMM ceiling"
            yield check(name, REACH, share, 0.55, None)
    yield slowest_own_adjoint(bench)


def in_plain_steps(bench: Bench, variant: str, way: str, batch: int) -> float | None:
    """Replayed steps in replayed plain ones."""
    for result in bench.find("step", B=batch, L=1024, rho=0.25):
        return ratio(result, f"{variant}{way}", f"plain{way}")
    return None


def ratio(result: Entry, variant: str, base: str) -> float | None:
    """Of their times, round by round; None if one of them failed."""
    ours, theirs = (result["variants"].get(name, {}) for name in (variant, base))
    known = ours.get("seconds") and theirs.get("seconds")
    return paired(ours, theirs) if known else None


def slowest_own_adjoint(bench: Bench) -> Entry:
    """Over all cases in which the dispatcher picks our kernels and FlashAttention-2 could run."""
    found = [ratio(result, "auto", "flash") for result in bench.find("attention", picked="own")]
    ratios = [one for one in found if one is not None]
    name = f"our attention adjoint where picked, worst of {len(ratios)}: in FlashAttention-2's time"
    return check(name, REACH, max(ratios, default=None), None, 1.0)


def predictions(bench: Bench) -> Iterator[Entry]:
    """What would show the model of section 1 in the plan of the CUDA path to be wrong."""
    sizes = {"B": 1, "L": 1024, "rho": 0.25}
    plain = value(bench, "step", "plain", "median", **sizes)
    yield check(
        "plain step, B=1 L=1024: ms, 25.8 within 20 %", PREDICTION,
        None if plain is None else 1e3 * plain, 0.8 * 25.8, 1.2 * 25.8,
    )  # fmt: skip
    short = value(bench, "short pass", "plain, host, replayed", "median", rows=64)
    yield check(
        "pass over 64 rows, replayed: ms", PREDICTION,
        None if short is None else 1e3 * short, 5.5, 7.0,
    )  # fmt: skip
    flash = value(
        bench, "attention", "flash", "median", case="uniform", B=1, L=1024, active=128
    )  # fmt: skip
    yield check(
        "FlashAttention-2 backward, L=1024 |A|=128: us a layer", PREDICTION,
        None if flash is None else 1e6 * flash, 20.0, 40.0,
    )  # fmt: skip
    exact = in_plain_steps(bench, "exact", "", 1)
    yield check("exact step, B=1 L=1024 rho=0.25: in plain steps, predicted", PREDICTION, exact,
                None, 2.6)  # fmt: skip


def replays(bench: Bench) -> Entry:
    """Else the lines above that say replayed are of eager passes."""
    counts = [
        value(bench, "step", f"{variant}, replayed", "replayed_passes", B=batch, L=1024, rho=0.25)
        for variant in ("plain", "frozen", "exact")
        for batch in (1, 8)
    ]
    known = [count for count in counts if count is not None]
    return check(
        "replayed steps at L=1024: passes replayed, the fewest", REACH,
        min(known, default=None), 1.0, None,
    )  # fmt: skip


def checks(bench: Bench) -> list[Entry]:
    return [*reach(bench), replays(bench), *predictions(bench)]


def limits(entry: Entry) -> str:
    low, high = entry["at_least"], entry["at_most"]
    if low is not None and high is not None:
        return f"{low:.4g} to {high:.4g}"
    return f">= {low:.4g}" if low is not None else f"<= {high:.4g}"


def table(entries: list[Entry]) -> str:
    words = {True: "met", False: "NOT MET", None: "not measured"}
    wide = max(len(entry["name"]) for entry in entries)
    lines = [f"{'check':<{wide}} {'measured':>9} {'limit':>14}  verdict"]
    for entry in entries:
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.4g}"
        lines.append(
            f"{entry['name']:<{wide}} {measured:>9} {limits(entry):>14}  {words[entry['met']]}"
        )
    return "\n".join(lines)
