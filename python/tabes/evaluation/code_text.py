"""Programs in free text: the fenced blocks of Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# As CommonMark has it, but at any indentation: models write blocks within lists, also right behind
# the mark of an item.
_OPENING = re.compile(r"([ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})([^\n]*)")
_DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.M)


def _without_end(text: str, names: set[str]) -> str:
    """A program without the fence behind its last line, which nothing opened, and what follows."""
    at = 0
    for line in text.splitlines(keepends=True):
        code = line.rstrip()
        bare = code.rstrip("`")
        if len(code) - len(bare) >= 3 and bare.strip() and "`" not in bare:
            program = text[: at + len(bare)].rstrip() + "\n"
            return program if names & set(_DEFINITION.findall(program)) else text
        at += len(line)
    return text


@dataclass
class _Fence:
    """An open block: the fence that opened it and the lines so far."""

    indent: int
    mark: str
    lines: list[str] = field(default_factory=list)

    @classmethod
    def opened_by(cls, line: str) -> _Fence | None:
        match = _OPENING.match(line)
        if match is None or (match[2][0] == "`" and "`" in match[3]):
            return None
        return cls(len(match[1]), match[2])

    def closes(self, line: str) -> str | None:
        """What stands before the closing fence in `line`, None if there is no such fence.

        Deeper by four it belongs to the program, to an example in a docstring, say.
        """
        bare = line.rstrip()
        before = bare.rstrip(self.mark[0])
        if len(bare) - len(before) < len(self.mark) or self.mark[0] in before:
            return None
        if before.strip():
            # Behind code on the same line, as only backticks are written.
            return before if self.mark[0] == "`" else None
        return "" if len(before) < self.indent + 4 else None

    def add(self, line: str) -> None:
        """Takes a line, without the fence's own indentation."""
        own = len(line) - len(line.lstrip(" \t"))
        self.lines.append(line[min(own, self.indent) :])


def _parts(text: str) -> tuple[str, list[str], str]:
    """What stands before the first fence, the blocks in order, the last one also if its fence is
    not closed, and the text from the fence of a block that is still open at the end."""
    before: list[str] = []
    blocks: list[str] = []
    fence: _Fence | None = None
    start = at = 0
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if fence is None:
            fence = _Fence.opened_by(line)
            start = at
            if fence is None and not blocks:
                before.append(line)
        else:
            rest = fence.closes(line)
            if rest is None:
                fence.add(line)
            else:
                if rest:
                    fence.add(rest + "\n")
                blocks.append("".join(fence.lines))
                fence = None
        at += len(line)
    if fence is None:
        return "".join(before), blocks, ""
    return "".join(before), [*blocks, "".join(fence.lines)], text[start:]


def code_blocks(text: str) -> list[str]:
    """The contents of fenced blocks in order, the last one also if its fence is not closed."""
    return _parts(text)[1]


def open_block(text: str) -> str:
    """`text` from the fence of the block that is open at its end, "" if none is."""
    return _parts(text)[2]


def code_defining(text: str, names: set[str]) -> str:
    """The program in a reply.

    That is the first fenced block that defines a function or class of `names`, else the text before
    the first fence if it does, else the first block that is not empty; without one the text before
    the first fence, which without any is the text as it is.
    """
    before, blocks, _ = _parts(text)
    before = _without_end(before, names)
    written = [block for block in blocks if block.strip()]
    for part in (*written, before):
        if names & set(_DEFINITION.findall(part)):
            return part
    return written[0] if written else before
