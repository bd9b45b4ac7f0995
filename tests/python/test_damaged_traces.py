"""A trace file that somebody or something has damaged: read as it stands, or one InputError."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import tabes
from tabes import trace

PIECES = [
    "null", "true", "-1", "0", "1e999", "NaN", "Infinity", "99999999999999999999", "[]", "{}", '""',
    "[[", "]", "{", "}", ",", ":", '"tokens"', '"trace"', '"\\ud800"', "1.5", '"step":', "[null]",
]  # fmt: skip


def damaged(text: str, draw: random.Random) -> str:
    """`text` with a few pieces cut, doubled, moved or replaced."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text))
        end = min(len(text), at + draw.choice([0, 1, 2, 5, 40]))
        kind = draw.randrange(4)
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:at] + text[at:end] * 2 + text[end:]
        elif kind == 2:
            other = draw.randrange(len(text))
            text = text[:at] + text[other : other + 30] + text[end:]
        else:
            text = text[:at] + draw.choice(PIECES) + text[end:]
        text = text or " "
    return text


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_damaged_traces_are_read_or_refused(
    demo_model: tabes.Model, tmp_path: Path, count: int
) -> None:
    out = tabes.generate(
        demo_model, ["CC[MASK][MASK]", "c1cc[MASK]cc1[MASK]"], steps=3, policy="remdm_cap", seed=1
    )
    file = tmp_path / "trace.json"
    trace.save(file, out, demo_model)
    text = file.read_text(encoding="utf-8")
    assert len(trace.read(file)) == 2
    draw = random.Random(count)
    refused, slowest = 0, 0.0
    for _ in range(count):
        file.write_text(damaged(text, draw), encoding="utf-8", errors="surrogatepass")
        start = time.perf_counter()
        try:
            for decode in trace.read(file):
                trace.render(decode, 80)
        except tabes.InputError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
    assert count // 2 < refused < count  # most damage is seen; some changes a number only
    assert slowest < 5
