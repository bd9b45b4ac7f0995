"""Decodes as files and drawings: what was revealed when, and what the gradient changed.

A trace file is JSON: what `GenerateOutput.to_dict` gives, ``tokens`` always as B lists, and

=====================  ============================================================================
``format``             "tabes-trace"
``version``            1; raised whenever older readers would misread a file
``tabes``              version of the package that wrote it
``model``              name of the checkpoint folder, or the family of a model without one
``mask_token_id``      the token of positions to fill
``policy``             its name
``policy_settings``    settings of BoE, else null
``initial``            B lists of token ids before the first step
``pieces``             text of every token id that occurs, null without a tokenizer
=====================  ============================================================================

Numbers that are not known (the influence of a row that got none, say) are null.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from tabes._build_info import VERSION as PACKAGE_VERSION
from tabes._core import BoE, InputError, Policy
from tabes.canvas import MASK_SYMBOL, confidence_style
from tabes.generation import GenerateOutput
from tabes.model import Model
from tabes.policies import BOE_SETTINGS
from tabes.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

FORMAT = "tabes-trace"
VERSION = 1

_NAN = float("nan")


@dataclass(frozen=True)
class Reveal:
    """One token as it was written; `influence` is NaN where it was not computed."""

    position: int
    token: int
    confidence: float
    entropy: float
    influence: float
    by_confidence: bool

    @property
    def against_confidence(self) -> bool:
        """Whether it was steered, and confidence alone would have left it masked."""
        return not self.by_confidence and not math.isnan(self.influence)


@dataclass(frozen=True)
class Step:
    """What one step did to one sequence.

    Attributes:
        number: counts from 0, over the whole batch.
        masked: masks before the step.
        reveals: by position, at least one.
        predicted_fall: of the probes' summed entropy in nats; NaN if the step was not steered.
        realised_fall: what the next step's forward pass showed of it; NaN if unknown.
    """

    number: int
    masked: int
    reveals: tuple[Reveal, ...]
    predicted_fall: float
    realised_fall: float

    @property
    def mean_entropy(self) -> float:
        """Of the revealed tokens, in nats."""
        return sum(r.entropy for r in self.reveals) / len(self.reveals)


@dataclass(frozen=True)
class Decode:
    """One sequence of a trace, with the steps that revealed something in it.

    Attributes:
        model, policy: their names.
        forward_equivalents: cost of the whole batch.
        sequence: its number in the batch, of `sequences`.
        initial: its tokens before the first step.
        mask_token_id: the token of positions to fill.
        pieces: text of token ids; empty without a tokenizer.
        steps: in order.
    """

    model: str
    policy: str
    forward_equivalents: float
    sequence: int
    sequences: int
    initial: tuple[int, ...]
    mask_token_id: int
    pieces: Mapping[int, str]
    steps: tuple[Step, ...]

    def label(self, token: int) -> str:
        """The text of a token, its id without a tokenizer, a shade for the mask."""
        if token == self.mask_token_id:
            return MASK_SYMBOL
        return printable(self.pieces.get(token, str(token)))

    @property
    def final(self) -> list[int]:
        """The tokens after the last step."""
        tokens = list(self.initial)
        for step in self.steps:
            for reveal in step.reveals:
                tokens[reveal.position] = reveal.token
        return tokens

    @property
    def title(self) -> str:
        text = f"{printable(self.model)}, {printable(self.policy)}: {_count(self.steps, 'step')}"
        text += f", {self.forward_equivalents:.1f} forward-equivalents"
        if self.sequences > 1:
            text += f" (sequence {self.sequence} of 0 to {self.sequences - 1})"
        return text


def _count(things: tuple[Any, ...], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def describe(output: GenerateOutput, model: Model, policy: str | Policy) -> dict[str, Any]:
    """The contents of a trace file for what `tabes.generate` returned.

    Args:
        output: of a run with `model` and `policy`.
        model: from `tabes.load`.
        policy: its name, or the policy object.
    """
    mask = model.info.mask_token_id
    values = output.to_dict()
    tokens: list[list[int]] = values["tokens"]
    if tokens and isinstance(tokens[0], int):
        values["tokens"] = tokens = [values["tokens"]]
    # Only masks are ever written to, and every write is in the records.
    initial = [list(row) for row in tokens]
    for record in values["trace"]:
        for sequence, position in zip(record["sequence"], record["position"], strict=True):
            initial[sequence][position] = mask
    used = sorted({token for rows in (tokens, initial) for row in rows for token in row})
    tokenizer = model.tokenizer
    return {
        "format": FORMAT,
        "version": VERSION,
        "tabes": PACKAGE_VERSION,
        "model": model.info.family if model.path is None else model.path.resolve().name,
        "mask_token_id": mask,
        "policy": policy.name() if isinstance(policy, Policy) else str(policy),
        "policy_settings": (
            {name: getattr(policy, name) for name in BOE_SETTINGS}
            if isinstance(policy, BoE)
            else None
        ),
        "initial": initial,
        "pieces": None if tokenizer is None else {str(t): tokenizer.piece(t) for t in used},
        **values,
    }


def check_writable(path: str | os.PathLike[str], what: str) -> None:
    """Complains before a long run rather than after it. Raises InputError."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{what} {target}: this is a folder: name a file in it")
    if not target.parent.is_dir():
        raise InputError(f"{what} {target}: the folder {target.parent} does not exist")


def save(
    path: str | os.PathLike[str], output: GenerateOutput, model: Model, policy: str | Policy
) -> None:
    """Writes a trace file; the arguments are those of `describe`.

    Raises InputError if `path` cannot be written.
    """
    check_writable(path, "trace file")
    # Pieces of a byte-level vocabulary may be half a character, which UTF-8 could not hold.
    text = json.dumps(describe(output, model, policy), ensure_ascii=True, allow_nan=False)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"trace file {os.fspath(path)} cannot be written: {error}") from error


class _Node:
    """A value of the file and its place there, which every complaint names."""

    def __init__(self, file: str, value: Any, place: str = "") -> None:
        self.file, self.value, self.place = file, value, place

    def fail(self, message: str) -> NoReturn:
        raise InputError(f"{self.file}: {self.place or 'the file'} {message}")

    def _expect(self, wanted: str) -> NoReturn:
        shown = json.dumps(self.value)
        self.fail(f"is {shown if len(shown) <= 40 else shown[:37] + '...'}: {wanted} is expected")

    def __getitem__(self, key: str) -> _Node:
        if not isinstance(self.value, dict):
            self._expect("an object")
        if key not in self.value:
            self.fail(f"has no member {key!r}")
        return _Node(self.file, self.value[key], f"{self.place}.{key}" if self.place else key)

    def items(self, count: int | None = None, like: str = "") -> list[_Node]:
        if not isinstance(self.value, list):
            self._expect("a list")
        if count is not None and len(self.value) != count:
            self.fail(f"has {len(self.value)} entries, where {like} has {count}")
        return [_Node(self.file, v, f"{self.place}[{i}]") for i, v in enumerate(self.value)]

    def integer(self, limit: int | None = None) -> int:
        wanted = "an integer of at least 0" if limit is None else f"an integer below {limit}"
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self._expect(wanted)
        if self.value < 0 or (limit is not None and self.value >= limit):
            self._expect(wanted)
        return self.value

    def number(self) -> float:
        """NaN for null."""
        if self.value is None:
            return _NAN
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            self._expect("a number or null")
        # JSON has integers of any size and 1e999; neither is a finite float.
        if not abs(self.value) < 1e300:
            self._expect("a finite number")
        return float(self.value)

    def text(self) -> str:
        if not isinstance(self.value, str):
            self._expect("a string")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self._expect("true or false")
        return self.value


def read(path: str | os.PathLike[str]) -> list[Decode]:
    """The decodes of a trace file, one a sequence.

    Raises InputError, naming file and place, for what cannot be read or contradicts itself.
    """
    file = os.fspath(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also integers of 5000 digits
        raise InputError(f"{file} is not valid JSON: {error}") from error
    root = _Node(file, value)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        root.fail("is not a trace: tabes generate --trace FILE writes one")
    version = root["version"].integer()
    if version != VERSION:
        root["version"].fail(
            f"is {version}: this tabes ({PACKAGE_VERSION}) reads version {VERSION}; use the one "
            "that wrote the file"
        )
    initial = [tuple(token.integer() for token in row.items()) for row in root["initial"].items()]
    mask = root["mask_token_id"].integer()
    steps: list[list[Step]] = [[] for _ in initial]
    left = [{p for p, token in enumerate(row) if token == mask} for row in initial]
    for record in root["trace"].items():
        for sequence, step in _read_record(record, initial, left).items():
            steps[sequence].append(step)
    pieces = {} if root["pieces"].value is None else _read_pieces(root["pieces"])
    return [
        Decode(
            model=root["model"].text(),
            policy=root["policy"].text(),
            forward_equivalents=root["forward_equivalents"].number(),
            sequence=i,
            sequences=len(initial),
            initial=row,
            mask_token_id=mask,
            pieces=pieces,
            steps=tuple(steps[i]),
        )
        for i, row in enumerate(initial)
    ]


def _read_record(
    record: _Node, initial: list[tuple[int, ...]], left: list[set[int]]
) -> dict[int, Step]:
    """The step of every sequence in which `record` reveals something; takes those from `left`."""
    batch = len(initial)
    number = record["step"].integer()
    masked = [n.integer() for n in record["masked"].items(batch, "initial")]
    predicted = [n.number() for n in record["predicted_fall"].items(batch, "initial")]
    realised = [n.number() for n in record["realised_fall"].items(batch, "initial")]
    sequences = record["sequence"].items()

    def column(name: str) -> list[_Node]:
        return record[name].items(len(sequences), record["sequence"].place)

    rows: dict[int, list[Reveal]] = {}
    for s, p, token, confidence, entropy, influence, by_confidence in zip(
        sequences,
        column("position"),
        column("token"),
        column("confidence"),
        column("entropy"),
        column("influence"),
        column("by_confidence"),
        strict=True,
    ):
        sequence = s.integer(batch)
        position = p.integer(len(initial[sequence]))
        if position not in left[sequence]:
            p.fail(f"is {position}, which is not masked in sequence {sequence} at this step")
        left[sequence].remove(position)
        rows.setdefault(sequence, []).append(
            Reveal(
                position=position,
                token=token.integer(),
                confidence=confidence.number(),
                entropy=entropy.number(),
                influence=influence.number(),
                by_confidence=by_confidence.flag(),
            )
        )
    return {
        b: Step(number, masked[b], tuple(reveals), predicted[b], realised[b])
        for b, reveals in rows.items()
    }


def _read_pieces(node: _Node) -> dict[int, str]:
    if not isinstance(node.value, dict):
        node.fail("must be an object or null")
    for key in node.value:
        if not (key.isascii() and key.isdecimal() and len(key) < 19):
            node.fail(f"has the member {key[:40]!r}, which is no token id")
    return {int(key): node[key].text() for key in node.value}


# --- In the terminal -------------------------------------------------------------------------

_WRITTEN, _AGREED, _AGAINST = "·", "●", "◆"
_COLUMNS = f"{'masked':>7}{'entropy':>9}{'predicted':>11}{'realised':>10}"


def render(decode: Decode, width: int) -> RenderableType:
    """A line a step: the positions, masks left, mean entropy at reveal, and the fall of entropy.

    Args:
        decode: from `read`.
        width: of the lines. Where positions are more than fit, a column stands for several of them.
    """
    number = len(str(decode.steps[-1].number + 1 if decode.steps else 0))
    number = max(number, len("step"))
    room = max(8, width - number - 1 - len(_COLUMNS))
    each = max(1, math.ceil(len(decode.initial) / room))
    columns = max(math.ceil(len(decode.initial) / each), len("position"))
    head = Text(f"{'step':>{number}} {'position':<{columns}}{_COLUMNS}", no_wrap=True)
    head.stylize("bold")
    lines: list[RenderableType] = [Text(decode.title, style="bold"), head]
    masked = {p for p, token in enumerate(decode.initial) if token == decode.mask_token_id}
    for step in decode.steps:
        revealed = {reveal.position: reveal for reveal in step.reveals}
        masked -= revealed.keys()
        line = Text(f"{step.number + 1:>{number}} ", no_wrap=True, overflow="crop")
        for first in range(0, len(decode.initial), each):
            _append_cell(line, range(first, first + each), masked, revealed)
        line.pad_right(max(0, number + 1 + columns - cell_len(line.plain)))
        line.append(f"{len(masked):>7}{_fixed(step.mean_entropy):>9}")
        line.append(f"{_fixed(step.predicted_fall):>11}{_fixed(step.realised_fall):>10}")
        lines.append(line)
    lines.append(Text("".join(map(decode.label, decode.final)), overflow="fold"))
    legend = f"{MASK_SYMBOL} masked  {_WRITTEN} written  {_AGREED} revealed"
    legend += f"  {_AGAINST} revealed against the order of confidence; entropy and its fall in nats"
    if each > 1:
        legend += f"; a column is {each} positions"
    lines.append(Text(legend, style="dim"))
    return Group(*lines)


def _append_cell(
    line: Text, positions: range, masked: set[int], revealed: Mapping[int, Reveal]
) -> None:
    """One symbol for `positions`: of what is in them, what matters most."""
    here = [revealed[p] for p in positions if p in revealed]
    if here:
        against = [reveal for reveal in here if reveal.against_confidence]
        shown = (against or here)[0]
        line.append(_AGAINST if against else _AGREED, confidence_style(shown.confidence))
    else:
        line.append(MASK_SYMBOL if any(p in masked for p in positions) else _WRITTEN, "dim")


def _fixed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


# --- As a figure -----------------------------------------------------------------------------

FIGURE_TYPES = (".svg", ".png")
_MOST_LABELS = 80  # positions; beyond, token texts would overlap
_AGAINST_COLOUR = "#d62728"
_PREDICTED_COLOUR, _REALISED_COLOUR = "#1f77b4", "#ff7f0e"


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raises InputError if `draw` could not write there, or has nothing to draw with."""
    if Path(path).suffix.lower() not in FIGURE_TYPES:
        raise InputError(
            f"figure {os.fspath(path)}: its name must end in {' or '.join(FIGURE_TYPES)}"
        )
    check_writable(path, "figure")
    _figure_class()


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"a figure needs matplotlib ({error}): pip install 'matplotlib>=3.8'; without --out "
            "the drawing goes to the terminal"
        ) from error
    return Figure


def draw(decode: Decode, path: str | os.PathLike[str]) -> None:
    """Draws a decode: when which position was revealed, at what entropy, and what the gradient
    predicted.

    In an SVG the cell of a revealed position p is the element ``reveal-p``.

    Args:
        decode: from `read`.
        path: an .svg or .png file.

    Raises InputError if matplotlib is missing, the name ends in neither, or it cannot be written.
    """
    check_figure(path)
    import matplotlib

    # A user's style file must not change what the figure says, and the same trace gives the same
    # bytes. Text stays text: the file is small and can be searched.
    fixed: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": FORMAT,
        "font.sans-serif": ["DejaVu Sans"],  # every text of an SVG repeats this list
        "font.size": 8,
    }
    vector = Path(path).suffix.lower() == ".svg"
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed)
        warnings.filterwarnings("ignore", message="Glyph")  # tokens in scripts the font lacks
        drawn = io.BytesIO()
        _figure(decode).savefig(
            drawn,
            format="svg" if vector else "png",
            dpi=150,
            metadata={"Date": None} if vector else None,
        )
    content = _compact(drawn.getvalue()) if vector else drawn.getvalue()
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise InputError(f"figure {os.fspath(path)} cannot be written: {error}") from error


def _compact(svg: bytes) -> bytes:
    """`svg` without indentation and turns by nothing, of which matplotlib writes many."""
    svg = re.sub(rb"^ +", b"", svg, flags=re.MULTILINE)
    return re.sub(rb' transform="rotate\(-0 [-.0-9]+ [-.0-9]+\)"', b"", svg)


def _figure(decode: Decode) -> Figure:
    steps, length = max(1, len(decode.steps)), len(decode.initial)
    # Cells are near squares while that gives a figure of usual size.
    width = min(max(6.5, 0.19 * length + 1.2), 14)
    height = min(max(1.6, 0.19 * steps + 0.7), 9)
    figure = _figure_class()(figsize=(width, height + 2.3), layout="constrained")
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
        for reveal in step.reveals:
            written[reveal.position] = row + 0.5
    edges = [p - 0.5 for p in range(length + 1)]
    for tops, colour in ((written, "0.95"), (given, "0.88")):
        axes.stairs(tops, edges, baseline=count - 0.5, fill=True, color=colour, zorder=0)
    for row, step in enumerate(decode.steps):
        for reveal in step.reveals:
            corner = (reveal.position - 0.5, row - 0.5)
            patch = Rectangle(corner, 1, 1, facecolor=cell(reveal.entropy)[0], linewidth=0)
            patch.set_gid(f"reveal-{reveal.position}")
            axes.add_patch(patch)
            if reveal.against_confidence:
                inside = (corner[0] + 0.08, corner[1] + 0.08)
                frame = Rectangle(inside, 0.84, 0.84, fill=False, edgecolor=_AGAINST_COLOUR)
                frame.set(linewidth=1.5, gid=f"against-{reveal.position}", zorder=2)
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
        [step.masked - len(step.reveals) for step in decode.steps],
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
