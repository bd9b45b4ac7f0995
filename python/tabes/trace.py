"""Decodes as files and drawings: what was revealed when, and what the gradient changed.

A trace file is JSON: what `GenerateOutput.to_dict` gives, ``tokens`` always as B lists, and

=====================  ============================================================================
``format``             "tabes-trace"
``version``            1; raised whenever older readers would misread a file
``tabes``              version of the package that wrote it
``model``              name of the checkpoint folder, or the family of a model without one
``mask_token_id``      the token of positions to fill
``policy``             its name
``policy_settings``    an object of its settings, defaults among them
``initial``            B lists of token ids before the first step
``pieces``             text of every token id that occurs, null without a tokenizer
=====================  ============================================================================

Numbers that are not known (the influence of a row that got none, say) are null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Group, RenderableType

from tabes._build_info import VERSION as PACKAGE_VERSION
from tabes.display import MASK_SYMBOL, printable
from tabes.errors import InputError
from tabes.files import check_path, check_writable, read_text

if TYPE_CHECKING:
    from tabes.model import Model
    from tabes.output import GenerateOutput

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
        reveals: by position; none in a step that only masked again.
        predicted_fall: of the probes' summed entropy in nats; NaN if the step was not steered.
        realised_fall: what the next step's forward pass showed of it; NaN if unknown.
        remasked: positions that the step masked again.
    """

    number: int
    masked: int
    reveals: tuple[Reveal, ...]
    predicted_fall: float
    realised_fall: float
    remasked: tuple[int, ...] = ()

    @property
    def mean_entropy(self) -> float:
        """Of the revealed tokens, in nats; NaN of none."""
        if not self.reveals:
            return _NAN
        return sum(r.entropy for r in self.reveals) / len(self.reveals)

    @property
    def left(self) -> int:
        """Masks after the step."""
        return self.masked - len(self.reveals) + len(self.remasked)


@dataclass(frozen=True)
class Decode:
    """One sequence of a trace, with the steps that changed something in it.

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
            for position in step.remasked:
                tokens[position] = self.mask_token_id
            for reveal in step.reveals:
                tokens[reveal.position] = reveal.token
        return tokens

    def shown(self, context: int = 3) -> list[int | None]:
        """The positions worth a drawing: masks and `context` neighbours on either side of them, or
        all if there are none. None stands for the positions between, two or more."""
        length = len(self.initial)
        near: set[int] = set()
        for p, token in enumerate(self.initial):
            if token == self.mask_token_id:
                near.update(range(max(0, p - context), min(length, p + context + 1)))
        near = near or set(range(length))
        # A position alone takes no more room than what would stand for it.
        edged = near | {-1, length}
        near.update(p for p in range(length) if {p - 1, p + 1} <= edged)
        places: list[int | None] = []
        for p in range(length):
            if p in near:
                places.append(p)
            elif not places or places[-1] is not None:
                places.append(None)
        return places

    @property
    def title(self) -> str:
        text = f"{printable(self.model)}, {printable(self.policy)}: {_count(self.steps, 'step')}"
        text += f", {self.forward_equivalents:.1f} forward-equivalents"
        if self.sequences > 1:
            text += f" (sequence {self.sequence} of 0 to {self.sequences - 1})"
        return text


def _count(things: tuple[Any, ...], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def describe(output: GenerateOutput, model: Model) -> dict[str, Any]:
    """The contents of a trace file for what `tabes.generate` returned.

    Args:
        output: of a run with `model`.
        model: from `tabes.load`, or of `tabes.wrap`.
    """
    from tabes.model import Model
    from tabes.output import GenerateOutput

    if not isinstance(output, GenerateOutput):
        raise InputError(f"output is a {type(output).__name__}: pass what tabes.generate returned")
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}: pass the one that decoded")
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
        "initial": initial,
        "pieces": None if tokenizer is None else {str(t): tokenizer.piece(t) for t in used},
        **values,
    }


def save(path: str | os.PathLike[str], output: GenerateOutput, model: Model) -> None:
    """Writes a trace file of what `tabes.generate` returned for `model`.

    Raises InputError if `path` cannot be written.
    """
    check_writable(path, "trace file")
    # Pieces of a byte-level vocabulary may be half a character, which UTF-8 could not hold.
    text = json.dumps(describe(output, model), ensure_ascii=True, allow_nan=False)
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
    check_path(path, "trace file")
    file, text = os.fspath(path), read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of 5000 digits
        raise InputError(f"{file} is not valid JSON: {error}") from error
    root = _Node(file, value)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        root.fail("is not a trace: tabes generate --trace FILE writes one")
    return _decodes(root)


def decodes(output: GenerateOutput, model: Model) -> list[Decode]:
    """What `save` and `read` give, without a file: one decode a sequence."""
    return _decodes(_Node("the output", describe(output, model)))


def _decodes(root: _Node) -> list[Decode]:
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
        for sequence, step in _read_record(record, initial, mask, left).items():
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
    record: _Node, initial: list[tuple[int, ...]], mask: int, left: list[set[int]]
) -> dict[int, Step]:
    """The step of every sequence that `record` changes; keeps `left`, the masks of each."""
    batch = len(initial)
    number = record["step"].integer()
    masked = [n.integer() for n in record["masked"].items(batch, "initial")]
    predicted = [n.number() for n in record["predicted_fall"].items(batch, "initial")]
    realised = [n.number() for n in record["realised_fall"].items(batch, "initial")]
    sequences = record["sequence"].items()

    def column(name: str) -> list[_Node]:
        return record[name].items(len(sequences), record["sequence"].place)

    again = _read_remasked(record, initial, mask, left)
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
    for sequence, positions in again.items():
        left[sequence].update(positions)
    return {
        b: Step(
            number,
            masked[b],
            tuple(rows.get(b, ())),
            predicted[b],
            realised[b],
            tuple(again.get(b, ())),
        )
        for b in sorted(rows.keys() | again.keys())
    }


def _read_remasked(
    record: _Node, initial: list[tuple[int, ...]], mask: int, left: list[set[int]]
) -> dict[int, list[int]]:
    """Positions that `record` masks again, by sequence: of those that earlier steps revealed."""
    sequences = record["remasked_sequence"].items()
    positions = record["remasked_position"].items(len(sequences), record["remasked_sequence"].place)
    again: dict[int, list[int]] = {}
    seen = set()
    for s, p in zip(sequences, positions, strict=True):
        sequence = s.integer(len(initial))
        position = p.integer(len(initial[sequence]))
        revealed = initial[sequence][position] == mask and position not in left[sequence]
        if not revealed or (sequence, position) in seen:
            p.fail(f"is {position}, which is no revealed token of sequence {sequence} at this step")
        seen.add((sequence, position))
        again.setdefault(sequence, []).append(position)
    return again


def _read_pieces(node: _Node) -> dict[int, str]:
    if not isinstance(node.value, dict):
        node.fail("must be an object or null")
    for key in node.value:
        if not (key.isascii() and key.isdecimal() and len(key) < 19):
            node.fail(f"has the member {key[:40]!r}, which is no token id")
    return {int(key): node[key].text() for key in node.value}


# --- Drawings --------------------------------------------------------------------------------


def render(decode: Decode, width: int) -> RenderableType:
    """A line a step: the positions, masks left, mean entropy at reveal, and the fall of entropy.

    Args:
        decode: from `read`.
        width: of the lines. Where positions are more than fit, a column stands for several of them.
    """
    from tabes.trace_text import lines

    return Group(*lines(decode, width))


def draw(
    decode: Decode | GenerateOutput,
    path: str | os.PathLike[str],
    model: Model | None = None,
    *,
    sequence: int = 0,
) -> None:
    """Draws a decode: when which position was revealed, at what entropy, and what the gradient
    predicted. Positions far from any mask are left out.

    In an SVG the cell of a revealed position p is the element ``reveal-p``, and where p was masked
    again and revealed for the n-th time ``reveal-p-n``.

    Args:
        decode: from `read` or `decodes`, or what `tabes.generate` returned.
        path: an .svg, .png or .pdf file.
        model: that decoded, if `decode` is what `tabes.generate` returned.
        sequence: which of an output's sequences, from 0.

    Raises InputError if matplotlib is missing, the name ends in none of them, the file cannot be
    written, or there is no such sequence.
    """
    from tabes.trace_figure import save as save_figure

    if not isinstance(decode, Decode):
        if model is None:
            raise InputError("to draw an output give the model as well: draw(output, path, model)")
        several = decodes(decode, model)
        if not 0 <= sequence < len(several):
            raise InputError(f"sequence={sequence}: there are {len(several)}, counted from 0")
        decode = several[sequence]
    save_figure(decode, path)
