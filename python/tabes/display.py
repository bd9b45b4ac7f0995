"""How tokens are shown, in the terminal and in figures."""

from __future__ import annotations

from functools import lru_cache

from rich.style import Style

MASK_SYMBOL = "░"


@lru_cache(maxsize=8192)
def printable(text: str) -> str:
    """`text` with line breaks and tabs as symbols and other control characters as a dot."""
    table = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(table.get(c, c if c.isprintable() else "·") for c in text)


def confidence_style(confidence: float) -> Style:
    """Red for a token revealed at confidence 0, over yellow, to green at 1."""
    c = min(max(confidence, 0.0), 1.0) if confidence == confidence else 0.0
    red, green = min(1.0, 2 - 2 * c), min(1.0, 2 * c)
    return Style(color=f"rgb({55 + int(200 * red)},{55 + int(200 * green)},60)", bold=True)
