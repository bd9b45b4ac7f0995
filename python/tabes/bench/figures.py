"""One figure a task: quality over forward-equivalents and over wall-clock time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabes.figure_file import plain_style, save_figure

_AXES = {
    "forward_equivalents": "forward-equivalents a sequence",
    "plain_equivalents": "time, in plain confidence steps",
}
# Colour, marker and dashes. Ours are strong and thick, each of its own colour and dashes, so that
# they can be told apart in grey and by those who see few colours; rivals are pale and thin.
_OURS = (
    ("#d00000", "o", "-"),
    ("#0057b8", "s", (0, (5, 1.5))),
    ("#e69500", "^", (0, (3, 1, 1, 1))),
    ("#7b2cbf", "D", (0, (1.2, 1))),
)
_PAPER = ("#000000", "X", (0, (4, 2)))
_RIVALS = (
    "#9aa5b1", "#7d8ca3", "#88a9c3", "#86b8b1", "#a99bc1", "#a3bf9a", "#c9a9ad", "#a5879a",
    "#97b5e0", "#b39b86", "#a3a880", "#7fb0b8", "#bda0d6",
)  # fmt: skip
_MARKERS = "ovs^D<>pPX*hd"


def draw(task: Mapping[str, Any], path: Path) -> None:
    """Every method as a line with the band of its 95 % intervals, ours in front.

    Raises InputError if matplotlib is missing or the file cannot be written.
    """
    with plain_style(**{"font.size": 9}):
        from matplotlib.figure import Figure

        metric = task["metrics"][0]
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        sides = figure.subplots(1, 2, sharey=True)
        styles = _styles(task["methods"])
        for axes, (cost, title) in zip(sides, _AXES.items(), strict=True):
            for method, style in zip(task["methods"], styles, strict=True):
                points = sorted(method["points"], key=lambda p: float(p[cost]))
                x = [p[cost] for p in points]
                found = [p["quality"][metric] for p in points]
                axes.plot(x, [q["mean"] for q in found], **style)
                low, high = [q["low"] for q in found], [q["high"] for q in found]
                strength = 0.15 if method["ours"] else 0.07
                axes.fill_between(x, low, high, color=style["color"], alpha=strength, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(title)
            axes.grid(color="0.92")
        sides[0].set_ylabel(metric)
        handles, labels = sides[0].get_legend_handles_labels()
        # Ours first: they are what a reader looks for.
        order = sorted(range(len(labels)), key=lambda i: not task["methods"][i]["ours"])
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside right center",
            frameon=False,
            handlelength=3.2,
        )
        figure.suptitle(f"{task['title']}: {metric} by cost, with 95 % intervals")
        save_figure(figure, path)


def _styles(methods: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each method's line is drawn, with its label."""
    styles: list[dict[str, Any]] = []
    ours = rivals = 0
    for method in methods:
        name = method["name"]
        if method["ours"]:
            colour, marker, dashes = _OURS[ours % len(_OURS)]
            style = {"linewidth": 2.2, "zorder": 4, "markeredgecolor": "white", "markersize": 6.5}
            name, ours = f"{name} (ours)", ours + 1
        elif method["policy"] == "boe_paper":
            colour, marker, dashes = _PAPER
            style = {"linewidth": 1.6, "zorder": 3, "markersize": 5}
        else:
            colour, marker, dashes = _RIVALS[rivals % len(_RIVALS)], _MARKERS[rivals], "-"
            rivals = (rivals + 1) % len(_MARKERS)
            style = {"linewidth": 1.1, "zorder": 2, "markersize": 4}
        look = {"color": colour, "marker": marker, "linestyle": dashes, "label": name}
        styles.append(look | style)
    return styles
