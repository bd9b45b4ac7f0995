"""The file of results: one JSON line for every finished slice, appended as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabes._core import InputError
from tabes.bench.spec import Spec


@dataclass(frozen=True)
class Cell:
    """A task, split, setting and seed."""

    task: str
    split: str
    spec: Spec
    seed: int

    @property
    def key(self) -> str:
        return f"{self.task}|{self.split}|{self.seed}|{self.spec.key}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "split": self.split,
            "seed": self.seed,
            "spec": self.spec.to_dict(),
        }


@dataclass(frozen=True)
class Unit:
    """What a process runs at a time: `number` examples of a cell, from `first` on."""

    cell: Cell
    first: int
    number: int

    @property
    def key(self) -> str:
        return f"{self.cell.key}|{self.first}|{self.number}"


class Store:
    """Results by unit, in memory and in a file that survives a kill at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        self._of_cell: dict[str, list[dict[str, Any]]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        # A line without its end was being written when the run was killed: that slice runs again.
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                self._keep(row)
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}: line {number} is damaged: take it out, or write to another --out"
                ) from None

    def __contains__(self, unit: Unit) -> bool:
        return unit.key in self.lines

    def add(self, unit: Unit, found: dict[str, Any]) -> None:
        """Keeps what a unit came to; in the file when this returns."""
        cell = unit.cell.to_dict()
        row = _short(
            {"unit": unit.key, **cell, "first": unit.first, "number": unit.number, **found}
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._keep(row)

    def _keep(self, row: dict[str, Any]) -> None:
        self.lines[row["unit"]] = row
        # A unit's key is its cell's, then first and number.
        self._of_cell.setdefault(row["unit"].rsplit("|", 2)[0], []).append(row)

    def of(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """The slices of a cell, by first example."""
        return iter(sorted(self._of_cell.get(cell.key, []), key=lambda row: int(row["first"])))


def _short(value: Any) -> Any:
    """Numbers to six digits: rows and seconds need no more, and files stay readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_short(part) for part in value]
    return value
