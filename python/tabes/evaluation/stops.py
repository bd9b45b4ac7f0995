"""Stop strings: a reply ends before the first of them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from tabes.text import Tokenizer


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` before the earliest of the stop strings; empty ones are passed over."""
    ends = [end for stop in stops if stop and (end := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def cut_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], ends: Sequence[int], stops: Sequence[str]
) -> str:
    """The text of token ids before the earliest of the stop strings, without special tokens.

    Stop strings are looked for where special tokens are still in the text, so that they may be such
    tokens or hold some, and then in the text without. A special token is one symbol: a part of its
    name is not found in it. Empty stop strings are passed over.

    Args:
        tokenizer: of the checkpoint.
        ids: what the model wrote, up to its end token and with it.
        ends: ids of the end tokens, which are special whatever the tokenizer says.
        stops: the stop strings.
    """
    special = {*tokenizer.special_token_ids, *ends}
    runs: list[list[int]] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        runs += [[token] for token in run] if is_special else [run]
    texts = [tokenizer.decode(run, [True] * len(run)) for run in runs]
    starts = list(itertools.accumulate(map(len, texts), initial=0))
    inside = bytearray(starts[-1] + 1)  # places within the name of a special token
    for run, start, end in zip(runs, starts, starts[1:], strict=False):
        if run[0] in special:
            inside[start + 1 : end] = bytes([1]) * (end - start - 1)
    shown = "".join(texts)
    found = [at for stop in stops if stop and (at := _find(shown, stop, inside)) >= 0]
    end = min(found, default=len(shown))
    last = bisect.bisect_left(starts, end)  # as many runs begin before the end
    kept = [token for run in runs[:last] for token in run if token not in ends]
    text = tokenizer.decode(kept)
    return cut(text[: len(text) - (starts[last] - end)], stops)


def _find(text: str, stop: str, inside: bytearray) -> int:
    """Where `stop` first stands with neither end `inside`; -1: nowhere."""
    at = text.find(stop)
    while at >= 0 and (inside[at] or inside[at + len(stop)]):
        at = text.find(stop, at + 1)
    return at
