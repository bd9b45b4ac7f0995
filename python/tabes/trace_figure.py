"""A decode as a figure, by matplotlib."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from tabes.figure_file import check_figure, plain_style, save_figure
from tabes.trace import Decode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_MOST_LABELS = 80  # positions; beyond, token texts would overlap
_AGAINST_COLOUR = "#d62728"
_PREDICTED_COLOUR, _REALISED_COLOUR = "#1f77b4", "#ff7f0e"


def save(decode: Decode, path: str | os.PathLike[str]) -> None:
    """See `tabes.trace.draw`."""
    check_figure(path)
    with plain_style(**{"font.size": 8}):
        save_figure(_figure(decode), path)


def _figure(decode: Decode) -> Figure:
    from matplotlib.figure import Figure

    steps, length = max(1, len(decode.steps)), len(decode.initial)
    # Cells are near squares while that gives a figure of usual size.
    width = min(max(6.5, 0.19 * length + 1.2), 14)
    height = min(max(1.6, 0.19 * steps + 0.7), 9)
    figure = Figure(figsize=(width, height + 2.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(height, 2.0))
    figure.suptitle(decode.title, parse_math=False, fontsize=9)
    _draw_order(figure, figure.add_subplot(grid[0, :]), decode)
    _draw_entropy(figure.add_subplot(grid[1, 0]), decode)
    _draw_fall(figure.add_subplot(grid[1, 1]), decode)
    return figure


def _draw_order(figure: Figure, axes: Axes, decode: Decode) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch, Rectangle

    length, count = len(decode.initial), max(1, len(decode.steps))
    labelled = length <= _MOST_LABELS
    entropies = [r.entropy for s in decode.steps for r in s.reveals if not math.isnan(r.entropy)]
    colours, scale = colormaps["viridis_r"], Normalize(0, max([*entropies, 1e-3]))
    cell = _cell_style(colours, scale)
    # What is written already, from the given tokens on: one path, as cells below cells would
    # make most of a file.
    given = [-0.5 if t != decode.mask_token_id else count - 0.5 for t in decode.initial]
    written = list(given)
    for row, step in enumerate(decode.steps):
        for position in step.remasked:
            height = row - 0.5 - written[position]
            corner = (position - 0.5, written[position])
            axes.add_patch(Rectangle(corner, 1, height, facecolor="0.95", linewidth=0, zorder=0))
            written[position] = count - 0.5
        for reveal in step.reveals:
            written[reveal.position] = row + 0.5
    edges = [p - 0.5 for p in range(length + 1)]
    for tops, colour in ((written, "0.95"), (given, "0.88")):
        axes.stairs(tops, edges, baseline=count - 0.5, fill=True, color=colour, zorder=0)
    times: Counter[int] = Counter()
    for row, step in enumerate(decode.steps):
        for reveal in step.reveals:
            times[reveal.position] += 1
            name = f"{reveal.position}"
            if times[reveal.position] > 1:  # it was masked again
                name += f"-{times[reveal.position]}"
            corner = (reveal.position - 0.5, row - 0.5)
            patch = Rectangle(corner, 1, 1, facecolor=cell(reveal.entropy)[0], linewidth=0)
            patch.set_gid(f"reveal-{name}")
            axes.add_patch(patch)
            if reveal.against_confidence:
                inside = (corner[0] + 0.08, corner[1] + 0.08)
                frame = Rectangle(inside, 0.84, 0.84, fill=False, edgecolor=_AGAINST_COLOUR)
                frame.set(linewidth=1.5, gid=f"against-{name}", zorder=2)
                axes.add_patch(frame)
            text = decode.label(reveal.token)
            if labelled and cell_len(text) <= 2:
                style: dict[str, Any] = dict(ha="center", va="center", fontsize=6, zorder=3)
                colour = cell(reveal.entropy)[1]
                axes.text(
                    reveal.position,
                    row,
                    text,
                    color=colour,
                    parse_math=False,
                    clip_on=True,
                    **style,
                )
    axes.set_xlim(-0.5, length - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_ylabel("step")
    every = max(1, math.ceil(count / 24))
    axes.set_yticks(
        range(0, len(decode.steps), every), [str(step.number + 1) for step in decode.steps[::every]]
    )
    if labelled:
        texts = [decode.label(token) for token in decode.final]
        axes.set_xticks(range(length), texts, fontsize=6, parse_math=False)
        for tick, text in zip(axes.get_xticklabels(), texts, strict=True):
            tick.set_rotation(90 if cell_len(text) > 2 else 0)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("position, with its last token")
    else:
        axes.set_xlabel("position")
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.01, fraction=0.03)
    bar.set_label("entropy at reveal (nats)")
    if any(r.against_confidence for s in decode.steps for r in s.reveals):
        handle = Patch(fill=False, edgecolor=_AGAINST_COLOUR, linewidth=1.5)
        axes.legend(
            [handle],
            ["revealed against the order of confidence"],
            loc="lower right",
            bbox_to_anchor=(1, 1),
            frameon=False,
            borderpad=0,
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
    axes.legend([entropy, masked], ["entropy", "masks left"], frameon=False)
    _whole_steps(axes)


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
    for name, marker, colour, values in (
        ("predicted", "o-", _PREDICTED_COLOUR, [s.predicted_fall for s in decode.steps]),
        ("realised", "s--", _REALISED_COLOUR, [s.realised_fall for s in decode.steps]),
    ):
        axes.plot(numbers, values, marker, markersize=3, color=colour, label=name)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.legend(frameon=False)
    _whole_steps(axes)


def _whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
