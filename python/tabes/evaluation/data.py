"""Rows of a task: from a local JSONL or CSV file, from the Hugging Face hub, or generated."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabes.errors import InputError
from tabes.files import read_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """Rows and where they came from.

    Attributes:
        rows: in the order of the source.
        source: the file's name, or the dataset and split.
        sha256: of the rows as they were read; the same rows in the same order give the same.
    """

    rows: Sequence[Row]
    source: str
    sha256: str


def made(rows: Sequence[Row], source: str) -> Data:
    """`Data` of rows in memory."""
    text = json.dumps(list(rows), sort_keys=True, ensure_ascii=True, default=str)
    return Data(rows, source, hashlib.sha256(text.encode()).hexdigest())


def read_file(path: Path) -> Data:
    """Rows of a file: an object a line in .jsonl (or .json), or .csv with a header line.

    Raises InputError for a file that cannot be read or holds no rows; the message names the line.
    """
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
        rows: list[Row] = []
        try:
            names = list(reader.fieldnames or [])
            rows.extend(reader)
        except csv.Error as error:  # a quote that does not close, a field without end
            raise InputError(f"{path}: row {len(rows) + 1}: {error}") from error
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"{path}: the header names the field {twice[0]!r} twice")
        for number, row in enumerate(rows, 1):
            if "" in row or None in row.values():
                raise InputError(f"{path}: row {number} has not as many fields as the header")
    elif path.suffix.lower() in (".jsonl", ".json"):
        rows = _json_rows(path, text)
    else:
        raise InputError(f"{path}: data is read from .jsonl or .csv files")
    if not rows:
        raise InputError(f"{path}: it holds no rows")
    return made(rows, path.name)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of 5000 digits
        raise InputError(f"{where}: {error}") from error


def _json_rows(path: Path, text: str) -> list[Row]:
    if text.lstrip().startswith("["):
        values = _json(text, str(path))
        where = [f"element {i}" for i in range(len(values))]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        where = [f"line {n}" for n, _ in lines]
        values = [_json(line, f"{path}, line {n}") for n, line in lines]
    rows: list[Row] = []
    for place, value in zip(where, values, strict=True):
        if not isinstance(value, dict):
            raise InputError(f"{path}, {place}: a {type(value).__name__}, not an object")
        rows.append(value)
    return rows


def from_hub(name: str, config: str | None, split: str, task: str) -> Data:
    """Rows of a dataset on the Hugging Face hub, by the package datasets.

    Raises InputError if that package is missing or the dataset cannot be had.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            f"the data of {task} comes from the Hugging Face hub by the package datasets, which is "
            "not installed: pip install 'tabes[eval]', or give --data FILE"
        ) from None
    try:
        rows = [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    except Exception as error:  # the package raises what its network and file libraries raise
        raise InputError(
            f"{name} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {error}): "
            "give --data FILE with the same fields"
        ) from error
    return made(rows, f"{name}{f' ({config})' if config else ''}, {split}")


def text_field(row: Row, names: Sequence[str], where: str) -> str:
    """The first of `names` that the row has, as text.

    Raises InputError naming `where` if it has none of them or the value is no text or number.
    """
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: {name} is {value}, not text")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise InputError(f"{where}: {name} is a {type(value).__name__}, not text")
        return str(value)
    raise InputError(
        f"{where} has the fields {', '.join(sorted(map(str, row)))}: it needs {' or '.join(names)}"
    )
