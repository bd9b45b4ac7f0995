"""One figure a task: quality over forward-equivalents and over wall-clock time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabes._core import InputError

_AXES = {
    "forward_equivalents": "forward-equivalents a sequence",
    "plain_equivalents": "time, in plain confidence steps",
}
_OURS, _PAPER = "#c1121f", "#e07a1f"
_RIVALS = (
    "#8d99ae", "#1d3557", "#457b9d", "#2a9d8f", "#6a4c93", "#8ab17d", "#b5838d", "#5f0f40",
    "#3a86ff", "#7f5539", "#606c38", "#00798c", "#9d4edd",
)  # fmt: skip
_MARKERS = "ovs^D<>pPX*hd"


def check_drawing() -> None:
    """Raises InputError if matplotlib is missing: better before a run than after it."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "drawing needs matplotlib, which is not installed: pip install 'matplotlib>=3.8'"
        ) from None


def draw(task: Mapping[str, Any], path: Path) -> None:
    """Every method as a line with the band of its 95 % intervals, ours in front."""
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    metric = task["metrics"][0]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tabes", "font.size": 9}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        sides = figure.subplots(1, 2, sharey=True)
        for axes, (cost, title) in zip(sides, _AXES.items(), strict=True):
            rival = 0
            for method in task["methods"]:
                if method["ours"] or method["policy"] == "boe_paper":
                    colour = _OURS if method["ours"] else _PAPER
                    style: dict[str, Any] = {"marker": "o", "linewidth": 2.4, "zorder": 4}
                else:
                    colour = _RIVALS[rival % len(_RIVALS)]
                    marker = _MARKERS[rival % len(_MARKERS)]
                    style = {"marker": marker, "linewidth": 1.1, "zorder": 2}
                    rival += 1
                points = sorted(method["points"], key=lambda p: float(p[cost]))
                x = [p[cost] for p in points]
                found = [p["quality"][metric] for p in points]
                label = f"{method['name']} (ours)" if method["ours"] else method["name"]
                axes.plot(
                    x, [q["mean"] for q in found], color=colour, markersize=4, label=label, **style
                )
                low, high = [q["low"] for q in found], [q["high"] for q in found]
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(title)
            axes.grid(color="0.92")
        sides[0].set_ylabel(metric)
        handles, labels = sides[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(f"{task['title']}: {metric} by cost, with 95 % intervals")
        try:
            figure.savefig(path, metadata={"Date": None})
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be written: {error}") from error
