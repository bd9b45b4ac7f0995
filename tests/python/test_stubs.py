"""The stub of the compiled module names what the module has, no more and no less."""

import ast
from pathlib import Path

import tabes
from tabes import _core

STUB = ast.parse((Path(tabes.__file__).parent / "_core.pyi").read_text())


def names(body: list[ast.stmt]) -> set[str]:
    found = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            found.update(a.asname for a in node.names if a.asname == a.name)
    return {n for n in found if not n.startswith("_")}


def public(thing: object) -> set[str]:
    return {n for n in vars(thing) if not n.startswith("_")}


def test_module() -> None:
    assert names(STUB.body) == public(_core)


def test_classes() -> None:
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            assert names(node.body) == public(getattr(_core, node.name)), node.name


def test_help_and_stub_say_the_same() -> None:
    """The class's own help is the stub's text; neither is the short form of the other."""
    boe = next(n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "BoE")
    assert ast.get_docstring(boe) == _core.BoE.__doc__
