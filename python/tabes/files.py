"""Text files in, results out: the same reading everywhere.

Text is UTF-8, with or without a byte order mark. A line ends at a line feed, with or without a
carriage return before it, and nowhere else: the other characters at which ``str.splitlines`` splits
(U+2028, U+0085, vertical tab, form feed) are part of the text. The last line may lack its end.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tabes.errors import InputError

STDIN = "-"
_LONGEST_LINE, _LARGEST_TEXT = 1 << 26, 1 << 30  # bytes: a device may have no end
# UTF-32 in little-endian order begins with the mark of UTF-16.
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: counts from 1.
        text: without its end; None if the bytes are not UTF-8.
        error: what is wrong with it, empty if nothing is.
    """

    number: int
    text: str | None
    error: str


def read_lines(path: str | os.PathLike[str], what: str = "") -> Iterator[Line]:
    """The lines of a file, or of standard input for "-", as they come.

    Args:
        path: the file; it is opened when the first line is asked for.
        what: stands in front of its name in messages: the option that named it.

    Raises InputError if the file cannot be read, is UTF-16 or has an endless line. A line that is
    not UTF-8 raises nothing: it says so itself.
    """
    where = _place(path, what)
    with _opened(path, where) as stream:
        yield from _lines(stream, where)


def _place(path: str | os.PathLike[str], what: str) -> str:
    check_path(path, what)
    name = "standard input" if path == STDIN else os.fspath(path)
    return f"{what} {name}".strip()


@contextmanager
def _opened(path: str | os.PathLike[str], where: str) -> Iterator[BinaryIO]:
    try:
        if path != STDIN:
            with Path(path).open("rb") as stream:
                yield stream
        elif sys.stdin is None:
            raise InputError(f"{where} is closed")
        else:
            yield sys.stdin.buffer
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error


def _lines(stream: BinaryIO, where: str) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(_LONGEST_LINE):
        number += 1
        if number == 1:
            _check_encoding(raw, where)
        if len(raw) == _LONGEST_LINE and not raw.endswith(b"\n"):
            raise InputError(f"{where}, line {number}: it is longer than {_LONGEST_LINE} bytes")
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw:
                return  # nothing but a mark
        if raw.endswith(b"\n"):
            raw = raw[:-1].removesuffix(b"\r")
        try:
            yield Line(number, raw.decode("utf-8"), "")
        except UnicodeDecodeError as error:
            yield Line(number, None, f"0x{raw[error.start]:02x} is not UTF-8")


def _check_encoding(start: bytes, where: str) -> None:
    # Text that is no program's has no NUL; half the bytes of Latin text in UTF-16 are.
    if start.startswith(_OTHER_MARKS) or start[:64].count(0) > len(start[:64]) // 4:
        raise InputError(f"{where} is UTF-16 or no text at all: save it as UTF-8")


def read_text(path: str | os.PathLike[str], what: str = "") -> str:
    """The whole text of a file or of standard input, its line ends as they are.

    Raises InputError if it cannot be read or is not UTF-8; the message names the line.
    """
    where = _place(path, what)
    with _opened(path, where) as stream:
        raw = stream.read(1024)
        _check_encoding(raw, where)
        raw += stream.read(_LARGEST_TEXT)
    if len(raw) > _LARGEST_TEXT:
        raise InputError(f"{where} is larger than {_LARGEST_TEXT} bytes")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {number}: 0x{raw[error.start]:02x} is not UTF-8") from None


def check_path(path: Any, what: str) -> None:
    """Raises InputError for what names no file; `what` it is to be stands in the message."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{what or 'file'} {path!r}: give a path")


def text_lines(path: str | os.PathLike[str], what: str = "") -> list[str]:
    """All lines of a file as `read_lines` gives them.

    Raises InputError as well for the first line that is not UTF-8.
    """
    lines = []
    for line in read_lines(path, what):
        if line.text is None:
            raise InputError(f"{_place(path, what)}, line {line.number}: {line.error}")
        lines.append(line.text)
    return lines


def check_writable(path: str | os.PathLike[str], what: str) -> None:
    """Complains before a long run rather than after it. Raises InputError."""
    check_path(path, what)
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{what} {target}: this is a folder: name a file in it")
    if not target.parent.is_dir():
        raise InputError(f"{what} {target}: the folder {target.parent} does not exist")
