"""The models that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from tabes.errors import InputError

_MODELS = Path(__file__).parent / "models"


def names() -> list[str]:
    """What `demo_checkpoint` takes."""
    return sorted(path.parent.name for path in _MODELS.glob("*/config.json"))


def demo_checkpoint(name: str = "moses") -> Path:
    """The folder of a bundled model: "moses" (SMILES), "sudoku" or "countdown".

    Raises InputError for another name.
    """
    known = names()
    if name not in known:
        raise InputError(f"there is no bundled model {name!r}; there are {', '.join(known)}")
    return _MODELS / name
