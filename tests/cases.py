"""Which test holds which entry of the list of failing inputs (F, U, N, R).

    python tests/cases.py            # every entry with its tests; exit 1 if one has none
    python tests/cases.py --missing  # only the entries without a test
    python tests/cases.py F01 N03    # these entries only

A Python test says it by ``@pytest.mark.case("F01")``, a file of them by ``pytestmark``, a C++ test
by a line ``// case F01`` right above its ``TEST``, a check that is a script by a line
``# case F01``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent
ENTRIES = [
    *(f"F{i:02}" for i in range(1, 28)),
    *(f"U{i}" for i in range(1, 7)),
    *(f"N{i:02}" for i in range(1, 19)),
    *(f"R{i:02}" for i in range(1, 15)),
]
_ENTRY = r"[FUNR]\d{1,2}"
# What is known and not mended yet, with the reason.
OPEN: dict[str, str] = {}


def _marked(node: ast.AST) -> Iterator[str]:
    """The entries that a decorator ``pytest.mark.case(...)`` or a ``pytestmark`` names."""
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "case"
        ):
            yield from (str(a.value) for a in call.args if isinstance(a, ast.Constant))


def _python_tests(path: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            for entry in _marked(node.value):
                yield entry, f"{path.relative_to(ROOT)} (all of it)"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for decorator in node.decorator_list:
                for entry in _marked(decorator):
                    yield entry, f"{path.relative_to(ROOT)}::{node.name}"


def _cpp_tests(path: Path) -> Iterator[tuple[str, str]]:
    pattern = rf"((?:^// case {_ENTRY}(?:, {_ENTRY})*\n)+)(?:TEST(?:_F|_P)?)\((\w+), (\w+)\)"
    for found in re.finditer(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
        for entry in re.findall(_ENTRY, found[1]):
            yield entry, f"{path.relative_to(ROOT)}: {found[2]}.{found[3]}"


def _scripts(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    for line in re.findall(rf"^\s*# case ({_ENTRY}(?:, {_ENTRY})*)$", text, re.MULTILINE):
        for entry in re.findall(_ENTRY, line):
            yield entry, str(path.relative_to(ROOT.parent))


def held() -> dict[str, list[str]]:
    """For every entry, the tests that hold it."""
    tests = defaultdict(list)
    found = [
        *(t for path in sorted(ROOT.glob("**/test_*.py")) for t in _python_tests(path)),
        *(t for path in sorted((ROOT / "cpp").glob("*_test.cpp")) for t in _cpp_tests(path)),
        *(t for path in (ROOT / "run", ROOT / "sanitize") for t in _scripts(path)),
    ]
    for entry, test in found:
        if entry not in ENTRIES:
            raise SystemExit(f"{test} names {entry}, which is no entry")
        tests[entry].append(test)
    return tests


def main(arguments: list[str]) -> int:
    tests = held()
    wanted = [a for a in arguments if not a.startswith("-")] or ENTRIES
    missing = [entry for entry in wanted if not tests[entry] and entry not in OPEN]
    for entry in missing if "--missing" in arguments else wanted:
        print(entry, *(tests[entry] or [OPEN.get(entry, "-")]), sep="\n    ")
    held_by_tests = sum(bool(tests[entry]) for entry in wanted)
    print(f"{held_by_tests} of {len(wanted)} entries have a test")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
