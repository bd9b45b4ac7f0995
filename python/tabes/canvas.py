"""The live view of a run: tokens on a terminal as they are decided, or a progress bar.

Both are used as the callback of `tabes.generate`, within a ``with`` block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.text import Text

from tabes.display import MASK_SYMBOL, confidence_style, printable

if TYPE_CHECKING:
    import torch

    from tabes._core import StepRecord

_MASKED = Style(dim=True)
_GUESSED = Style(dim=True, italic=True)
_COMMITTED = Style()
# Reversed, so that the mark is seen whatever colour the confidence gives.
_AGAINST_CONFIDENCE = Style(reverse=True)
_SECONDS_A_FRAME = 1 / 20


class View(Protocol):
    """Something that watches a run."""

    def __enter__(self) -> View: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def start(self, tokens: list[torch.Tensor]) -> None: ...
    def __call__(self, record: StepRecord, tokens: list[torch.Tensor]) -> None: ...


class Canvas:
    """Draws every sequence: committed tokens plain, masked ones as a shade, and those that the last
    step revealed in the colour of their confidence, reversed where the gradient chose them and
    confidence alone would have left them masked. What the model would write at positions that stay
    masked (``record.guesses``) is shown dim and italic.

    Args:
        console: where to draw.
        piece: the text of one token id.
        mask_token_id: the token of positions still to fill.
        title: what stands in the first line.
    """

    def __init__(
        self,
        console: Console,
        piece: Callable[[int], str],
        mask_token_id: int,
        title: str = "",
    ) -> None:
        self._console = console
        self._piece = piece
        self._mask = mask_token_id
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0
        self._rows_done = 0
        self._steered = False

    def __enter__(self) -> Canvas:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def start(self, tokens: list[torch.Tensor]) -> None:
        """Draws the sequences before the first step, which may take long."""
        self._live.update(self.opening(tokens), refresh=True)

    def __call__(self, record: StepRecord, tokens: list[torch.Tensor]) -> None:
        """Draws the state after a step, at most 20 times a second; the last step always."""
        self._rows_done += record.forward_rows + record.backward_rows
        self._steered = self._steered or bool(record.influence.isfinite().any())
        now = time.monotonic()
        last = sum(record.masked) == record.token.numel()
        if now - self._drawn < _SECONDS_A_FRAME and not last:
            return
        self._drawn = now
        self._live.update(self.render(record, tokens), refresh=True)

    def opening(self, tokens: list[torch.Tensor]) -> RenderableType:
        """The frame before the first step."""
        return self._frame(f"masked {self._left(tokens)}", tokens, {}, None)

    def render(self, record: StepRecord, tokens: list[torch.Tensor]) -> RenderableType:
        """One frame, cut to the height of the terminal."""
        against = record.influence.isfinite() & record.by_confidence.logical_not()
        revealed: dict[tuple[int, int], Style] = {
            (s, p): confidence_style(c) + (_AGAINST_CONFIDENCE if chosen else _COMMITTED)
            for s, p, c, chosen in zip(
                record.sequence.tolist(),
                record.position.tolist(),
                record.confidence.tolist(),
                against.tolist(),
                strict=True,
            )
        }
        state = f"step {record.step + 1}/{record.steps}  masked {self._left(tokens)}"
        state += f"  revealed {record.token.numel()}"
        falls = [fall for fall in record.predicted_fall if math.isfinite(fall)]
        if falls:
            state += f"  predicted fall {sum(falls):.2f} nats"
        if self._rows_done:
            cost = self._rows_done / sum(map(len, tokens))
            state += f"  cost {cost:.1f} forward-equivalents"
        return self._frame(state, tokens, revealed, record.guesses)

    def _left(self, tokens: list[torch.Tensor]) -> int:
        return sum(int((sequence == self._mask).sum()) for sequence in tokens)

    def _frame(
        self,
        state: str,
        tokens: list[torch.Tensor],
        revealed: dict[tuple[int, int], Style],
        guesses: list[torch.Tensor] | None,
    ) -> RenderableType:
        height = max(3, self._console.height - 2 - self._steered)
        shown = tokens[:height]
        rows = max(1, height // len(shown) - (len(shown) > 1))
        head = Text(self._title + " " if self._title else "", no_wrap=True, overflow="ellipsis")
        head.append(state)
        if len(shown) < len(tokens):
            head.append(f"  ({len(tokens) - len(shown)} more sequences)")
        head.stylize("bold")
        parts: list[RenderableType] = [head]
        for s, sequence in enumerate(shown):
            guess = [-1] * len(sequence) if guesses is None else guesses[s].tolist()
            pieces = [
                self._styled(token, revealed.get((s, p)), guess[p])
                for p, token in enumerate(sequence.tolist())
            ]
            focus = [p for (b, p) in revealed if b == s]
            masked = (sequence == self._mask).nonzero()
            first = min(focus, default=int(masked[0]) if len(masked) else 0)
            parts.append(_window(pieces, first, rows, self._console.width))
        if self._steered:
            parts.append(_legend())
        return Group(*parts)

    def _styled(self, token: int, style: Style | None, guess: int) -> tuple[str, Style]:
        if token == self._mask:
            if guess >= 0:
                return printable(self._piece(guess)) or MASK_SYMBOL, _GUESSED
            return MASK_SYMBOL, _MASKED
        return printable(self._piece(token)), _COMMITTED if style is None else style


def _legend() -> Text:
    text = Text("revealed: ", style="dim", no_wrap=True, overflow="ellipsis")
    text.append(" the gradient's choice, not confidence's ", Style(reverse=True, dim=False))
    text.append("  both agree  confidence ")
    for tenth in range(0, 11, 2):
        text.append("■", confidence_style(tenth / 10) + Style(dim=False))
    return text.append(" 0 to 1")


def _window(pieces: list[tuple[str, Style]], focus: int, rows: int, width: int) -> Text:
    """As many pieces as fit `rows` lines, from somewhat before position `focus` if not all do."""
    widths = [cell_len(text) for text, _ in pieces]
    room = max(1, rows * width - 2)
    first = 0
    if sum(widths) > room:
        before = 0
        first = min(focus, len(pieces))
        while first > 0 and before + widths[first - 1] <= room // 3:
            first -= 1
            before += widths[first]
        # Near the end there is room for more in front.
        rest = sum(widths[first:])
        while first > 0 and rest + widths[first - 1] <= room:
            first -= 1
            rest += widths[first]
    text = Text("…" if first else "", overflow="fold")
    used = 0
    for (piece, style), size in zip(pieces[first:], widths[first:], strict=True):
        if used + size > room:
            text.append("…")
            break
        text.append(piece, style)
        used += size
    return text


class Bar:
    """A progress bar over the steps."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("denoising", total=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, tokens: list[torch.Tensor]) -> None:
        pass

    def __call__(self, record: StepRecord, tokens: list[torch.Tensor]) -> None:
        self._progress.update(self._task, total=record.steps, completed=record.step + 1)


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def start(self, tokens: list[torch.Tensor]) -> None:
        pass

    def __call__(self, record: StepRecord, tokens: list[torch.Tensor]) -> None:
        pass
