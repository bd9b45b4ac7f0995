"""How far a run is: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 30


class Watch:
    """Counts finished units of a phase on stderr."""

    def __init__(self, phase: str, total: int) -> None:
        self.phase, self.total, self.done = phase, total, 0
        self.started = self.said = time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("load {task.fields[load]:.1f}  {task.fields[what]}"),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> Watch:
        if self.bar is not None:
            self.task = self.bar.add_task(self.phase, total=self.total, load=_load(), what="")
            self.bar.start()
        elif self.total:
            say(f"{self.phase}: {self.total} slices, load {_load():.1f}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, what: str) -> None:
        """One more is done."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, load=_load(), what=what)
            return
        now = time.monotonic()
        if now - self.said >= _SECONDS_BETWEEN_LINES or self.done == self.total:
            self.said = now
            left = (now - self.started) / self.done * (self.total - self.done)
            say(
                f"{self.phase}: {self.done} of {self.total}, load {_load():.1f}, "
                f"about {left / 60:.0f} min left ({what})"
            )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _load() -> float:
    return os.getloadavg()[0]
