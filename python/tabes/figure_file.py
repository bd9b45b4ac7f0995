"""Figures as files. They are drawn by matplotlib, which is optional (extra ``plot``)."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabes.errors import InputError
from tabes.files import check_path, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_TYPES = (".svg", ".png", ".pdf")


def check_drawing() -> None:
    """Raises InputError if matplotlib is missing: better before a run than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"a figure needs matplotlib ({error}): pip install 'matplotlib>=3.8'"
        ) from error


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raises InputError if `save_figure` could not write there, or has nothing to draw with."""
    check_path(path, "figure")
    if Path(path).suffix.lower() not in FIGURE_TYPES:
        raise InputError(
            f"figure {os.fspath(path)}: its name must end in {', '.join(FIGURE_TYPES[:-1])} or "
            f"{FIGURE_TYPES[-1]}"
        )
    check_writable(path, "figure")
    check_drawing()


@contextmanager
def plain_style(**settings: Any) -> Iterator[None]:
    """matplotlib's own defaults and `settings`, within a ``with`` block.

    A user's style file must not change what a figure says, and the same data gives the same bytes.
    Text stays text: the file is small and can be searched.
    """
    check_drawing()
    import matplotlib

    fixed: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tabes",
        "pdf.fonttype": 42,
        "font.sans-serif": ["DejaVu Sans"],  # every text of an SVG repeats this list
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed | settings)
        warnings.filterwarnings("ignore", message="Glyph")  # tokens in scripts the font lacks
        yield


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes `figure` in the format that the file's name ends in. Call it within `plain_style`.

    Raises InputError if it cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=150, metadata=undated.get(kind))
    content = _compact(drawn.getvalue()) if kind == "svg" else drawn.getvalue()
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise InputError(f"figure {os.fspath(path)} cannot be written: {error}") from error


def _compact(svg: bytes) -> bytes:
    """`svg` without indentation and turns by nothing, of which matplotlib writes many."""
    svg = re.sub(rb"^ +", b"", svg, flags=re.MULTILINE)
    return re.sub(rb' transform="rotate\(-0 [-.0-9]+ [-.0-9]+\)"', b"", svg)
