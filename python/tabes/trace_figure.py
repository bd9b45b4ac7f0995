"""A decode as a figure, by matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from tabes.figure_file import check_figure, plain_style, save_figure
from tabes.trace import Decode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_AGAINST_COLOUR = "#d62728"
_PREDICTED_COLOUR, _REALISED_COLOUR = "#1f77b4", "#ff7f0e"
# Of a cell in inches; of letters in points, the width of one as a share of their size.
_LEAST_CELL, _WIDEST_CELL, _ROW = 0.19, 0.5, 0.19
_LEAST_LETTERS, _LETTERS, _LETTER_WIDTH = 4.5, 6.5, 0.62
_WIDTHS, _MOST_HEIGHT = (6.5, 14.0), 9.0
_MARGIN = 1.2  # axis and colour bar
_ROUND = [digit * 10**power for power in range(19) for digit in (1, 2, 5)]


def save(decode: Decode, path: str | os.PathLike[str]) -> None:
    """See `tabes.trace.draw`."""
    check_figure(path)
    with plain_style(**{"font.size": 8}):
        save_figure(_figure(decode), path)


@dataclass(frozen=True)
class _Layout:
    """Columns of the drawing and the size of its cells in points."""

    places: list[int | None]
    cell_width: float
    cell_height: float

    @property
    def column(self) -> dict[int, int]:
        """Of every position that is shown."""
        return {p: i for i, p in enumerate(self.places) if p is not None}

    def letters(self, text: str) -> float | None:
        """The size at which `text` fits a cell, None if none can be read."""
        if not text:
            return None
        widest = 0.95 * self.cell_width / (_LETTER_WIDTH * cell_len(text))
        size = min(_LETTERS, 0.75 * self.cell_height, widest)
        return size if size >= _LEAST_LETTERS else None


def _figure(decode: Decode) -> Figure:
    from matplotlib.figure import Figure

    places, steps = decode.shown(), max(1, len(decode.steps))
    # Cells are near squares, wider where tokens are words, while the figure has a usual size.
    lengths = sorted(cell_len(_text(decode, r.token)) for s in decode.steps for r in s.reveals)
    usual = lengths[len(lengths) * 9 // 10] if lengths else 1
    cell = min(max(_LEAST_CELL, _LETTER_WIDTH * _LETTERS * usual / 72 + 0.04), _WIDEST_CELL)
    width = min(max(_WIDTHS[0], cell * len(places) + _MARGIN), _WIDTHS[1])
    height = min(max(1.6, _ROW * steps + 0.7), _MOST_HEIGHT)
    figure = Figure(figsize=(width, height + 2.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(height, 2.0))
    figure.suptitle(decode.title, parse_math=False, fontsize=9, wrap=True)
    layout = _Layout(places, 72 * (width - _MARGIN) / len(places), 72 * (height - 0.5) / steps)
    _draw_order(figure, figure.add_subplot(grid[0, :]), decode, layout)
    _draw_entropy(figure.add_subplot(grid[1, 0]), decode)
    _draw_fall(figure.add_subplot(grid[1, 1]), decode)
    return figure


def _text(decode: Decode, token: int) -> str:
    """What a cell says of a token: without the spaces around it, if there is more."""
    label = decode.label(token)
    return label.strip() or label.replace(" ", "\N{OPEN BOX}")


def _draw_order(figure: Figure, axes: Axes, decode: Decode, layout: _Layout) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    columns, count = len(layout.places), max(1, len(decode.steps))
    entropies = [r.entropy for s in decode.steps for r in s.reveals if not math.isnan(r.entropy)]
    colours, scale = colormaps["viridis_r"], Normalize(0, max([*entropies, 1e-3]))
    cell = _cell_style(colours, scale)
    _draw_written(axes, decode, layout)
    times: dict[int, int] = {}
    for row, step in enumerate(decode.steps):
        for reveal in step.reveals:
            column = layout.column[reveal.position]
            times[reveal.position] = time = times.get(reveal.position, 0) + 1
            name = f"{reveal.position}" if time == 1 else f"{reveal.position}-{time}"
            face, letters = cell(reveal.entropy)
            patch = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, linewidth=0)
            patch.set_gid(f"reveal-{name}")
            axes.add_patch(patch)
            if reveal.against_confidence:
                frame = Rectangle((column - 0.42, row - 0.42), 0.84, 0.84, fill=False)
                frame.set(edgecolor=_AGAINST_COLOUR, linewidth=1.5, zorder=2)
                frame.set_gid(f"against-{name}")
                axes.add_patch(frame)
            text = _text(decode, reveal.token)
            size = layout.letters(text)
            if size is not None:
                style: dict[str, Any] = dict(ha="center", va="center", zorder=3, clip_on=True)
                axes.text(
                    column, row, text, fontsize=size, color=letters, parse_math=False, **style
                )
        for position in step.remasked:
            style = dict(marker="x", markersize=3, color="0.4", markeredgewidth=0.8, zorder=3)
            axes.plot(layout.column[position], row, gid=f"remask-{position}-{row}", **style)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_ylabel("step")
    every = max(1, math.ceil(count / 24))
    axes.set_yticks(
        range(0, len(decode.steps), every), [str(step.number + 1) for step in decode.steps[::every]]
    )
    _label_positions(axes, decode, layout)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.01, fraction=0.03)
    bar.set_label("entropy at reveal (nats)")
    _explain(axes, _marks(decode))


def _draw_written(axes: Axes, decode: Decode, layout: _Layout) -> None:
    """Shades of what is written already, given tokens darker, and gaps between the columns."""
    from matplotlib.patches import Rectangle

    bottom = max(1, len(decode.steps)) - 0.5
    # The last writing of every position as one path: cells below cells would make most of a file.
    given, written = [bottom] * len(layout.places), [bottom] * len(layout.places)
    for column, p in enumerate(layout.places):
        if p is not None and decode.initial[p] != decode.mask_token_id:
            given[column] = written[column] = -0.5
    for row, step in enumerate(decode.steps):
        for reveal in step.reveals:
            written[layout.column[reveal.position]] = row + 0.5
        for position in step.remasked:
            column = layout.column[position]
            top = written[column]
            until = Rectangle((column - 0.5, top), 1, row - 0.5 - top, color="0.95", zorder=0)
            axes.add_patch(until)
            written[column] = bottom
    edges = [column - 0.5 for column in range(len(layout.places) + 1)]
    for tops, colour in ((written, "0.95"), (given, "0.88")):
        axes.stairs(tops, edges, baseline=bottom, fill=True, color=colour, zorder=0)
    for column, p in enumerate(layout.places):
        if p is None:
            axes.axvline(column, color="0.6", linestyle=(0, (1, 2)), linewidth=1.0)


def _label_positions(axes: Axes, decode: Decode, layout: _Layout) -> None:
    """The last token under every column if there is room, how many were left out under gaps."""
    final, labels = decode.final, []
    for column, p in enumerate(layout.places):
        if p is not None:
            labels.append(_text(decode, final[p]))
            continue
        before = layout.places[column - 1] if column else -1
        after = layout.places[column + 1] if column + 1 < len(layout.places) else len(final)
        assert before is not None  # gaps have positions on both sides
        assert after is not None
        labels.append(f"{after - before - 1} more")
    axes.tick_params(axis="x", length=0)
    size = min(_LETTERS, 0.9 * layout.cell_width)
    if size >= _LEAST_LETTERS:
        axes.set_xticks(range(len(labels)), labels, fontsize=size, parse_math=False)
        for tick, text, p in zip(axes.get_xticklabels(), labels, layout.places, strict=True):
            fits = layout.letters(text)
            tick.set_rotation(0 if fits is not None and fits >= size else 90)
            tick.set_color("0.4" if p is None else "black")
        axes.set_xlabel("position, with its last token")
        return
    every = next(n for n in _ROUND if len(layout.column) <= 16 * n)
    ticks = {column: p for p, column in layout.column.items() if p % every == 0}
    axes.set_xticks(list(ticks), [str(p) for p in ticks.values()])
    axes.set_xlabel("position")


def _marks(decode: Decode) -> list[tuple[Any, str]]:
    """The marks of the drawing's cells, with what they say."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    known: list[tuple[Any, str]] = []
    if any(r.against_confidence for s in decode.steps for r in s.reveals):
        frame = Patch(fill=False, edgecolor=_AGAINST_COLOUR, linewidth=1.5)
        known.append((frame, "revealed against the order of confidence"))
    if any(step.remasked for step in decode.steps):
        cross = Line2D([], [], linestyle="", marker="x", markersize=3, color="0.4")
        known.append((cross, "masked again"))
    return known


def _explain(axes: Axes, known: list[tuple[Any, str]]) -> None:
    """A legend above the axes, where it hides nothing."""
    if not known:
        return
    handles, texts = zip(*known, strict=True)
    axes.legend(
        handles,
        texts,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        borderpad=0,
        ncols=len(known),
    )


def _cell_style(
    colours: Colormap, scale: Normalize
) -> Callable[[float], tuple[tuple[float, float, float, float] | str, str]]:
    """Colours of a cell and of the text on it, by entropy."""

    def style(entropy: float) -> tuple[tuple[float, float, float, float] | str, str]:
        if math.isnan(entropy):
            return "white", "black"
        red, green, blue, alpha = colours(float(scale(entropy)))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        return (red, green, blue, alpha), "white" if dark else "black"

    return style


def _draw_entropy(axes: Axes, decode: Decode) -> None:
    numbers = [step.number + 1 for step in decode.steps]
    (entropy,) = axes.plot(
        numbers, [step.mean_entropy for step in decode.steps], "o-", markersize=3, color="#440154"
    )
    axes.set_xlabel("step")
    axes.set_ylabel("mean entropy\nof the revealed (nats)")
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    (masked,) = other.plot(
        numbers,
        [step.left for step in decode.steps],
        "--",
        color="0.5",
    )
    other.set_ylabel("masks left")
    other.set_ylim(bottom=0)
    _explain(axes, [(entropy, "entropy"), (masked, "masks left")])
    _whole_steps(axes, numbers)


def _draw_fall(axes: Axes, decode: Decode) -> None:
    numbers = [step.number + 1 for step in decode.steps]
    axes.set_xlabel("step")
    axes.set_ylabel("fall of the probes'\nentropy (nats)")
    if all(math.isnan(step.predicted_fall) for step in decode.steps):
        axes.set_xticks([])
        axes.set_yticks([])
        style: dict[str, Any] = dict(ha="center", va="center", color="0.4")
        axes.text(0.5, 0.5, "not steered", transform=axes.transAxes, **style)
        return
    known = []
    for name, marker, colour, values in (
        ("predicted", "o-", _PREDICTED_COLOUR, [s.predicted_fall for s in decode.steps]),
        ("realised", "s--", _REALISED_COLOUR, [s.realised_fall for s in decode.steps]),
    ):
        (line,) = axes.plot(numbers, values, marker, markersize=3, color=colour)
        known.append((line, name))
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    _explain(axes, known)
    _whole_steps(axes, numbers)


def _whole_steps(axes: Axes, numbers: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    if not numbers:
        axes.set_xticks([])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
