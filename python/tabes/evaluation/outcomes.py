"""The file of outcomes: a line an example, written as they come and read back after a stop."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tabes._core import InputError
from tabes.evaluation.decoding import Cost

_COST_FIELDS = tuple(f.name for f in dataclasses.fields(Cost))


@dataclass
class Store:
    """Outcomes of runs, in a JSONL file that is only ever appended to.

    A line holds ``run`` (a hash of everything the outcome depends on beside the example), ``task``,
    ``key`` (names the example), ``example`` (a hash of its row and prompt), ``metrics``,
    ``answer``, ``note``, ``error`` (why the reply could not be judged, else null), ``text``, and
    ``batch`` and ``cost``: the number of the batch within its run and what the whole batch took,
    the same on every line of it.
    """

    path: Path
    file: BinaryIO
    lines: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    costs: dict[str, dict[int, Cost]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Store]:
        """Reads what is there, and keeps other processes out until the end of the block.

        A last line that a stop cut short is taken away.

        Raises InputError if the file is something else, is in use, or cannot be written.
        """
        try:
            file = path.open("a+b")
        except OSError as error:
            raise InputError(f"{path}: {error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing gives it up
            except BlockingIOError as error:
                raise InputError(
                    f"{path} is in use by another evaluation: wait for it, or give another --out"
                ) from error
            except OSError:
                pass  # a file system without locks
            yield cls._read(path, file)

    @classmethod
    def _read(cls, path: Path, file: BinaryIO) -> Store:
        store = cls(path, file)
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                store._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}, line {number}: not an outcome of tabes eval: give another --out"
                ) from error
        if whole < len(content):
            file.truncate(whole)
        return store

    def _take(self, line: dict[str, Any]) -> None:
        run, batch = str(line["run"]), int(line["batch"])
        if not isinstance(line["example"], str) or not isinstance(line["metrics"], dict):
            raise TypeError
        self.lines.setdefault(run, {})[str(line["key"])] = line
        cost = Cost(**{name: line["cost"][name] for name in _COST_FIELDS})
        self.costs.setdefault(run, {})[batch] = cost

    def find(self, run: str, key: str, example: str) -> dict[str, Any] | None:
        """The outcome of an example, None if it has not been run as it is now."""
        line = self.lines.get(run, {}).get(key)
        return line if line is not None and line["example"] == example else None

    def next_batch(self, run: str) -> int:
        return max(self.costs.get(run, {}), default=-1) + 1

    def cost(self, run: str, batches: Iterable[int]) -> Cost:
        """What these batches of a run took together."""
        total = Cost()
        for batch in set(batches):
            total.add(self.costs[run][batch])
        return total

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Writes a batch at once and makes sure that it is on disk."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            self.file.write(text.encode("utf-8", "replace"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: {error}") from error
        for line in lines:
            self._take(line)
