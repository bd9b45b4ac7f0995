"""Molecules as SMILES: the MOSES data, and RDKit as the judge."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

from tabes._core import InputError

ATOM = r"\[[^\]]+\]|Br|Cl|."


def moses_file(split: str) -> Path:
    """The file of a MOSES split ("train", "test", "test_scaffolds") in the package molsets."""
    spec = importlib.util.find_spec("moses")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the MOSES data is not installed: pip install --no-deps molsets==0.3.1")
    return Path(spec.submodule_search_locations[0]) / "dataset" / "data" / f"{split}.csv.gz"


def read_smiles(path: Path) -> list[str]:
    """The first column of a MOSES file."""
    with gzip.open(path, "rt") as file:
        next(file)
        return [line.split(",", 1)[0].strip() for line in file]
