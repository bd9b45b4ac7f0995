"""Standard input, output and error of the process, which may be closed, full or gone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO, cast


class _Closed(io.TextIOBase):
    """Standard output that was closed before the program began."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError("standard output is closed")


def settle() -> None:
    """Gives the process the streams that it lacks, and none that fails on a character."""
    # A file that is opened while a number is free gets it, and with it what C code prints.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            free = os.open(os.devnull, os.O_RDWR)
            if free != number:
                os.dup2(free, number)
                os.close(free)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = cast(TextIO, _Closed())
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  -- for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_output() -> None:
    """Raises OSError if results have nowhere to go: better before a run than after it."""
    if isinstance(sys.stdout, _Closed):
        sys.stdout.write("")


def say(text: str) -> None:
    """A line on stderr, if that can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def drop_unwritten() -> None:
    """Leaves nothing in the buffers that cannot be written: at exit that would be tried again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _discard(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # a stream of no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
