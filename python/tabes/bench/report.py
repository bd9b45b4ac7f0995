"""The report in Markdown, from what `analysis.analyse` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_COST_NAMES = {
    "forward_equivalents": "equal forward-equivalents",
    "plain_equivalents": "equal wall-clock time",
}
_METHOD_NOTE = """\
How to read this. Quality is the mean over the test examples with its 95 % interval: Wilson's where
every outcome is yes or no, else by the bootstrap (2,000 resamples), as are all intervals of
differences. Where tokens are drawn at random, each example's outcomes are first averaged over
seeds.
*Forward-equivalents* are token rows through the model and its adjoint divided by the tokens of the
sequences. *Time* is wall-clock time in plain confidence steps of the same
sequences, timed in the same process right before each batch, the median over slices of the
examples; *CPU time* is the same in processor time. *MiB added* is the most memory that a
method took beyond the process with its model in it.

Comparisons are paired, example by example, and made at equal cost: a rival's outcomes at a cost
between two of its settings are the linear interpolation of its outcomes at the two, which is what a
decoder comes to that picks one of the two at random with odds that make its mean cost the one asked
for. Beyond a rival's dearest setting that setting stands for it; where all its settings cost more,
there is no comparison. *Inside the noise* means that the 95 % interval of the difference holds 0.
Options were chosen on the tune split, where no test example is, by the mean gain over the
confidence frontier at equal forward-equivalents.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; vertical bars in cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "--|" * len(head), *map(line, rows)])


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(found: Mapping[str, Any], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found['mean']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "its defaults"


def write(tasks: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The whole report. `facts`: "machine", "absent" policies, "left_out" tasks with reasons."""
    machine = facts["machine"]
    parts = [
        "# Decoders at equal cost",
        f"{machine['date']}, tabes {machine['tabes']}, torch {machine['torch']}, "
        f"numpy {machine['numpy']}, RDKit {machine['rdkit']}, Python {machine['python']}; "
        f"{machine['cpu']}, {machine['cores']} cores, one thread a process. Made by "
        "`tabes bench pareto`.",
        _METHOD_NOTE.rstrip(),
    ]
    if facts["absent"]:
        parts.append(f"Not in this build: {', '.join(facts['absent'])}.")
    for name, reason in facts["left_out"].items():
        parts.append(f"Not run: {name} ({reason}).")
    if tasks:
        parts += ["## In short", _overview(tasks)]
    for task in tasks:
        parts += _task(task)
    return "\n\n".join(parts) + "\n"


def _overview(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Each task's main metric: our method against its best rival, averaged over our settings."""
    rows = []
    for task in tasks:
        metric = task["metrics"][0]
        for cost, name in _COST_NAMES.items():
            for found in task["comparisons"][cost][metric]:
                known = found["overall"]
                if not known:
                    continue
                worst = min(known, key=lambda rival: float(known[rival]["mean"]))
                rows.append(
                    [
                        task["title"],
                        name,
                        found["method"],
                        worst,
                        f"{known[worst]['points']} of {len(found['points'])}",
                        _interval(known[worst], signed=True),
                        known[worst]["verdict"],
                    ]
                )
    head = ["task", "compared at", "method", "strongest rival", "at settings"]
    head += ["difference", "verdict"]
    return table(head, rows)


def _task(task: Mapping[str, Any]) -> list[str]:
    loads = [load for m in task["methods"] for p in m["points"] for load in p["load"]]
    parts = [
        f"## {task['title']}",
        f"Model `{task['model']}`, {task['examples']} test examples, temperature "
        f"{task['temperature']:g}; machine load {min(loads):.1f} to {max(loads):.1f} meanwhile."
        if loads
        else "Nothing has been run.",
        f"![{task['title']}]({task['task']}.svg)",
        _settings(task),
        _groups(task),
        _choices(task),
    ]
    metric = task["metrics"][0]
    for cost, name in _COST_NAMES.items():
        for found in task["comparisons"][cost][metric]:
            parts.append(f"### {found['method']} at {name}: {metric}")
            parts.append(_against_best(found))
            parts.append("Against each, averaged over the settings where it can be compared:")
            parts.append(_against_each(found))
            if found["among_ours"]:
                parts.append("Against our other methods, in the same way:")
                parts.append(_among_ours(found))
    if task["ablation"]:
        parts += ["### Taken apart", _ablation(task)]
    return [part for part in parts if part]


def _settings(task: Mapping[str, Any]) -> str:
    metrics = task["metrics"]
    population = any("unique" in p for m in task["methods"] for p in m["points"])
    head = ["method", "setting", metrics[0], *metrics[1:]]
    head += ["unique", "novel", "diversity"] if population else []
    head += ["forward-equivalents", "time", "CPU time", "steps", "rows forward", "backward", "head"]
    head += ["MiB added", "n", "seeds"]
    rows = []
    for method in task["methods"]:
        for p in method["points"]:
            row = [method["name"], p["label"], _interval(p["quality"][metrics[0]])]
            row += [_number(p["quality"][m]["mean"]) for m in metrics[1:]]
            if population:
                row += [_number(p[name]) for name in ("unique", "novel", "diversity")]
            row += [_number(p["forward_equivalents"], 2), _number(p["plain_equivalents"], 2)]
            row += [_number(p["cpu_equivalents"], 2)]
            row += [_number(p["steps"], 1)]
            row += [_number(p[f"{kind}_rows"], 0) for kind in ("forward", "backward", "head")]
            row += [_number(p["added_mib"], 0), str(p["examples"]), str(p["seeds"])]
            rows.append(row)
    return table(head, rows)


def _groups(task: Mapping[str, Any]) -> str:
    """By kind of example, every method at its setting nearest to a cost in the middle."""
    points = [p for method in task["methods"] for p in method["points"]]
    names = list(dict.fromkeys(group for p in points for group in p["groups"]))
    if len(names) < 2:
        return ""
    costs = sorted(p["forward_equivalents"] for p in points)
    middle = costs[len(costs) // 2]
    metric = task["metrics"][0]
    rows = []
    for method in task["methods"]:
        p = min(method["points"], key=lambda p: abs(p["forward_equivalents"] - middle))
        row = [method["name"], p["label"], _number(p["forward_equivalents"], 2)]
        row += [_number(p["groups"].get(name, {}).get(metric)) for name in names]
        rows.append(row)
    head = ["method", "setting", "forward-equivalents", *names]
    title = f"By kind of example ({metric}; settings nearest to {middle:.1f} forward-equivalents):"
    return f"{title}\n\n{table(head, rows)}"


def _choices(task: Mapping[str, Any]) -> str:
    rows = []
    for method in task["methods"]:
        choice = method["choice"]
        if choice is None:
            continue
        for options, gain in zip(method["candidates"], choice["gains"], strict=True):
            taken = "taken" if options == choice["options"] else ""
            known = "" if gain is None else f"{gain:+.3f}"
            rows.append([method["name"], _options(options), known, taken])
    if not rows:
        return ""
    return "Options tried on the tune split:\n\n" + table(["method", "options", "gain", ""], rows)


def _against_best(found: Mapping[str, Any]) -> str:
    rows = []
    for point in found["points"]:
        row = [point["label"], _number(point["cost"], 2), _number(point["quality"])]
        if point["rivals"]:
            best = point["rivals"][0]
            row += [
                f"{best['rival']} ({best['rival_settings']})",
                _number(best["rival_quality"]),
                _interval(best["difference"], signed=True),
                best["verdict"],
            ]
        else:
            row += ["none so cheap", "", "", ""]
        rows.append(row)
    head = [
        "setting",
        "cost",
        "quality",
        "best rival there",
        "its quality",
        "difference",
        "verdict",
    ]
    return table(head, rows)


def _against_each(found: Mapping[str, Any]) -> str:
    rows = []
    for rival, overall in found["overall"].items():
        verdicts = [
            c["verdict"]
            for point in found["points"]
            for c in point["rivals"]
            if c["rival"] == rival
        ]
        counts = [str(verdicts.count(v)) for v in ("better", "inside the noise", "worse")]
        rows.append([rival, _interval(overall, signed=True), overall["verdict"], *counts])
    head = ["rival", "mean difference", "verdict", "settings better", "in the noise", "worse"]
    return table(head, rows)


def _among_ours(found: Mapping[str, Any]) -> str:
    rows = [
        [
            other,
            f"{overall['points']} of {len(found['points'])}",
            _interval(overall, signed=True),
            overall["verdict"],
        ]
        for other, overall in found["among_ours"].items()
    ]
    return table(["method", "at settings", "mean difference", "verdict"], rows)


def _ablation(task: Mapping[str, Any]) -> str:
    rows = []
    for row in task["ablation"]:
        fidelity = row["fidelity"]
        told = ""
        if fidelity is not None:
            told = f"{fidelity['mean']:.2f} ({fidelity['low']:.2f} to {fidelity['high']:.2f})"
        change = _interval(row["difference"], signed=True)
        rows.append(
            [
                str(row["steps"]),
                row["label"] or "**the method**",
                _number(row["quality"]),
                "" if not row["label"] else ("the same setting" if row["same"] else change),
                "" if not row["label"] or row["same"] else row["difference"]["verdict"],
                _number(row["forward_equivalents"], 2),
                _number(row["plain_equivalents"], 2),
                told,
            ]
        )
    head = ["steps", "change", task["metrics"][0], "difference", "verdict"]
    head += ["forward-equivalents", "time", "fidelity of TIS"]
    note = (
        "One thing changed at a time, in as many steps; *fidelity* is the rank correlation of the "
        "influence scores with the true one-step fall of entropy (`tabes fidelity`), on canvases "
        "of the tune split that are half filled."
    )
    return f"{note}\n\n{table(head, rows)}"
