"""A decode in the terminal: a line a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from tabes.display import MASK_SYMBOL, confidence_style
from tabes.trace import Decode, Reveal

_WRITTEN, _AGREED, _AGAINST, _AGAIN, _LEFT_OUT = "·", "●", "◆", "○", "…"
_COLUMNS = f"{'masked':>7}{'entropy':>9}{'predicted':>11}{'realised':>10}"


def lines(decode: Decode, width: int) -> list[RenderableType]:
    """See `tabes.trace.render`."""
    number = len(str(decode.steps[-1].number + 1 if decode.steps else 0))
    number = max(number, len("step"))
    room = max(8, width - number - 1 - len(_COLUMNS))
    places = decode.shown()
    each = max(1, math.ceil(len(places) / room))
    groups = [places[first : first + each] for first in range(0, len(places), each)]
    columns = max(len(groups), len("position"))
    head = Text(f"{'step':>{number}} {'position':<{columns}}{_COLUMNS}", no_wrap=True)
    head.stylize("bold")
    out: list[RenderableType] = [Text(decode.title, style="bold"), head]
    masked = {p for p, token in enumerate(decode.initial) if token == decode.mask_token_id}
    for step in decode.steps:
        revealed = {reveal.position: reveal for reveal in step.reveals}
        masked = masked - revealed.keys() | set(step.remasked)
        line = Text(f"{step.number + 1:>{number}} ", no_wrap=True, overflow="crop")
        for group in groups:
            _append_cell(line, group, masked, revealed, step.remasked)
        line.pad_right(max(0, number + 1 + columns - cell_len(line.plain)))
        line.append(f"{len(masked):>7}{_fixed(step.mean_entropy):>9}")
        line.append(f"{_fixed(step.predicted_fall):>11}{_fixed(step.realised_fall):>10}")
        out.append(line)
    out.append(Text("".join(map(decode.label, decode.final)), overflow="fold"))
    legend = f"{MASK_SYMBOL} masked  {_WRITTEN} written  {_AGREED} revealed"
    legend += f"  {_AGAINST} revealed against the order of confidence"
    if any(step.remasked for step in decode.steps):
        legend += f"  {_AGAIN} masked again"
    if None in places:
        legend += f"  {_LEFT_OUT} positions left out that were never masked"
    legend += "; entropy and its fall in nats"
    if each > 1:
        legend += f"; a column is {each} positions"
    out.append(Text(legend, style="dim"))
    return out


def _append_cell(
    line: Text,
    positions: Sequence[int | None],
    masked: set[int],
    revealed: Mapping[int, Reveal],
    again: Sequence[int],
) -> None:
    """One symbol for `positions`: of what is in them, what matters most."""
    here = [revealed[p] for p in positions if p is not None and p in revealed]
    if here:
        against = [reveal for reveal in here if reveal.against_confidence]
        shown = (against or here)[0]
        line.append(_AGAINST if against else _AGREED, confidence_style(shown.confidence))
    elif any(p in again for p in positions):
        line.append(_AGAIN)
    elif any(p in masked for p in positions):
        line.append(MASK_SYMBOL, "dim")
    else:
        line.append(_LEFT_OUT if set(positions) == {None} else _WRITTEN, "dim")


def _fixed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
