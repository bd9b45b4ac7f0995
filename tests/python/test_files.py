"""Text files: what a line is, byte order marks, other encodings."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tabes
from tabes import files
from tabes.bench.plan_file import load_plan
from tabes.evaluation.data import read_file
from tabes.tasks import countdown, sudoku

BOM = b"\xef\xbb\xbf"


def read(path: Path, content: bytes) -> list[tuple[int, str | None, str]]:
    path.write_bytes(content)
    return [tuple(line) for line in files.read_lines(path)]


@pytest.mark.case("F26")
@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (BOM, []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (BOM + b"a\r\nb", ["a", "b"]),
        (b"\n", [""]),
        (BOM + b"\n", [""]),
        (b"a\n\n b \n\n", ["a", "", " b ", ""]),
        (b"a\r\r\nb\rc\n", ["a\r", "b\rc"]),
        # Where str.splitlines cuts: line separator, next line, vertical tab, form feed, and others.
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n".encode(), [
            "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"]),
        (b"a\n" + BOM + b"b", ["a", "\ufeffb"]),  # only in front of a file it is a mark
    ],
)  # fmt: skip
def test_what_a_line_is(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    wanted = [(number, text, "") for number, text in enumerate(texts, 1)]
    assert read(tmp_path / "f", content) == wanted
    assert files.text_lines(tmp_path / "f") == texts
    assert files.read_text(tmp_path / "f") == content.removeprefix(BOM).decode()


@pytest.mark.case("F26")
def test_bytes_that_are_not_utf8_are_of_their_line_alone(tmp_path: Path) -> None:
    lines = read(tmp_path / "f", b"one\nt\xffwo\r\nthree\n\xc3\n")
    assert lines == [
        (1, "one", ""),
        (2, None, "0xff is not UTF-8"),
        (3, "three", ""),
        (4, None, "0xc3 is not UTF-8"),
    ]
    with pytest.raises(tabes.InputError, match=r"f, line 2: 0xff is not UTF-8"):
        files.text_lines(tmp_path / "f")
    with pytest.raises(tabes.InputError, match=r"--data .*f, line 2: 0xff is not UTF-8"):
        files.read_text(tmp_path / "f", "--data")


@pytest.mark.case("F26")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes('{"a": 1}\n{"a": 2}\n'.encode(encoding))
    for reader in (files.text_lines, files.read_text, read_file, load_readers):
        with pytest.raises(tabes.InputError, match="is UTF-16 or no text at all: save it as UTF-8"):
            reader(file)


def load_readers(file: Path) -> None:
    """All other readers of a user's text must say the same; the last one's error is the test's."""
    others = (
        countdown.read_questions,
        sudoku.read_puzzles,
        tabes.trace.read,
        lambda file: load_plan(file, None, False),
    )
    for reader in others[:-1]:
        with pytest.raises(tabes.InputError, match="UTF-16 or no text"):
            reader(file)
    others[-1](file)


@pytest.mark.case("F26")
def test_a_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_bytes(BOM + b'{"input": "30,100,93", "output": "23"}\n')
    assert countdown.read_questions(questions)[0].target == 23
    puzzles = tmp_path / "p.csv"
    board, solution = "1234341221434321".replace("2", "0"), "1234341221434321"
    puzzles.write_bytes(BOM + f"Puzzle,Solution\r\n{board},{solution}\r\n".encode())
    assert len(sudoku.read_puzzles(puzzles)) == 1
    rows = tmp_path / "rows.csv"
    rows.write_bytes(BOM + 'question,answer\r\n"a\u2028b","c"\r\n'.encode())
    assert read_file(rows).rows == [{"question": "a\u2028b", "answer": "c"}]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (files.text_lines, files.read_text):
        with pytest.raises(tabes.InputError, match=r"--x .*nothing cannot be read: No such file"):
            reader(tmp_path / "nothing", "--x")
        with pytest.raises(tabes.InputError, match="cannot be read: Is a directory"):
            reader(tmp_path)
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(tabes.InputError, match="--x standard input is closed"):
            reader("-", "--x")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(BOM + b"in\n")))
        assert "".join(reader("-")).strip() == "in"


def test_a_file_without_end_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (files.text_lines, files.read_text):
        with pytest.raises(tabes.InputError, match="no text at all"):
            reader("/dev/zero")
    monkeypatch.setattr(files, "_LONGEST_LINE", 100)
    monkeypatch.setattr(files, "_LARGEST_TEXT", 100)
    endless = io.BytesIO(b"x" * 2000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=endless))
    with pytest.raises(tabes.InputError, match="line 1: it is longer than 100 bytes"):
        files.text_lines("-")
    endless.seek(0)
    with pytest.raises(tabes.InputError, match="standard input is larger than 100 bytes"):
        files.read_text("-")
