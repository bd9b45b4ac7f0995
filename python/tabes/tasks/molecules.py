"""Molecules as SMILES: the MOSES data, and RDKit as the judge."""

from __future__ import annotations

import functools
import gzip
import importlib
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tabes.chat import MASK_LITERAL
from tabes.errors import InputError

ATOM = r"\[[^\]]+\]|Br|Cl|."
_ORGANIC = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOSPFIbcnosp]")
_FINGERPRINT_RADIUS, _FINGERPRINT_BITS = 2, 1024


def moses_file(split: str) -> Path:
    """The file of a MOSES split ("train", "test", "test_scaffolds") in the package molsets."""
    spec = importlib.util.find_spec("moses")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the MOSES data is not installed: pip install --no-deps molsets==0.3.1")
    return Path(spec.submodule_search_locations[0]) / "dataset" / "data" / f"{split}.csv.gz"


def read_smiles(path: Path) -> list[str]:
    """The first column of a MOSES file."""
    return list(stream_smiles(path))


def stream_smiles(path: Path) -> Iterator[str]:
    """The same one by one, for files that need not be held in memory."""
    with gzip.open(path, "rt") as file:
        next(file)
        for line in file:
            yield line.split(",", 1)[0].strip()


@functools.cache
def rdkit(module: str) -> Any:
    """A module of RDKit, whose complaints about wrong SMILES are silenced."""
    try:
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
        return importlib.import_module(f"rdkit.{module}")
    except ModuleNotFoundError:
        raise InputError("judging molecules needs RDKit: pip install rdkit") from None


def tokens_of(smiles: str) -> list[str]:
    return re.findall(ATOM, smiles)


@functools.lru_cache(maxsize=200_000)
def canonical(smiles: str) -> str | None:
    """RDKit's SMILES of the same molecule, None if this is no molecule."""
    chem = rdkit("Chem")
    molecule = chem.MolFromSmiles(smiles) if smiles else None
    return None if molecule is None else str(chem.MolToSmiles(molecule))


def scaffold(smiles: str) -> str | None:
    """The Bemis-Murcko scaffold, empty for a molecule without rings; None for no molecule."""
    molecule = rdkit("Chem").MolFromSmiles(smiles) if smiles else None
    if molecule is None:
        return None
    murcko = rdkit("Chem.Scaffolds.MurckoScaffold")
    return str(rdkit("Chem").MolToSmiles(murcko.GetScaffoldForMol(molecule)))


def _scaffold_atoms(smiles: str) -> set[int]:
    """Which atoms, counted as they are written, belong to the scaffold."""
    molecule = rdkit("Chem").MolFromSmiles(smiles)
    for atom in molecule.GetAtoms():
        atom.SetIntProp("written", atom.GetIdx())
    kept = rdkit("Chem.Scaffolds.MurckoScaffold").GetScaffoldForMol(molecule)
    return {atom.GetIntProp("written") for atom in kept.GetAtoms()}


def mask_side_chains(smiles: str) -> str:
    """The molecule with `[MASK]` for every token outside its scaffold.

    Given are the scaffold's atoms with their ring digits, the bonds between two of them, and the
    parentheses around branches that begin with one; everything else, the bonds and parentheses of
    side chains included, is masked.
    """
    tokens, inside = tokens_of(smiles), _scaffold_atoms(smiles)
    kept = [False] * len(tokens)
    number = -1
    current: bool | None = None  # whether the atom that the next one binds to is inside
    branches: list[bool | None] = []
    waiting: list[int] = []  # bonds and opening parentheses whose next atom is still to come
    opened: list[bool] = []  # whether the parenthesis of each open branch is given
    for at, token in enumerate(tokens):
        if _ORGANIC.fullmatch(token):
            number += 1
            here = number in inside
            given = here and current is not False
            for w in waiting:
                kept[w] = given
                if tokens[w] == "(":
                    opened[-1] = given
            waiting.clear()
            kept[at] = here
            current = here
        elif token == "(":
            branches.append(current)
            opened.append(False)
            waiting.append(at)
        elif token == ")":
            kept[at] = opened.pop()
            current = branches.pop()
        elif token.isdigit() or token == "%":
            # Rings lie wholly inside, and with them the bonds that close them.
            for at_digit in (*waiting, at):
                kept[at_digit] = current is True
            waiting.clear()
        else:
            waiting.append(at)
    return "".join(t if k else MASK_LITERAL for t, k in zip(tokens, kept, strict=True))


def mask_some(smiles: str, rate: float, draw: random.Random) -> str:
    """The molecule with a share `rate` of its tokens masked, at least one."""
    tokens = tokens_of(smiles)
    hidden = set(draw.sample(range(len(tokens)), max(1, round(rate * len(tokens)))))
    return "".join(MASK_LITERAL if i in hidden else t for i, t in enumerate(tokens))


def internal_diversity(smiles: Sequence[str]) -> float:
    """1 - the mean Tanimoto similarity over all pairs, a molecule with itself included, of Morgan
    fingerprints (radius 2, 1,024 bits): IntDiv1 of MOSES. NaN for no molecules."""
    if not smiles:
        return float("nan")
    generator = rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(
        radius=_FINGERPRINT_RADIUS, fpSize=_FINGERPRINT_BITS
    )
    chem = rdkit("Chem")
    bits = np.stack(
        [generator.GetFingerprintAsNumPy(chem.MolFromSmiles(s)) for s in smiles]
    ).astype(np.float32)
    size = bits.sum(1)
    common = bits @ bits.T
    return float(1 - (common / (size[:, None] + size[None, :] - common)).mean())


def known_molecules(smiles: set[str]) -> set[str]:
    """Those of them that are in the training split of MOSES, whose SMILES are canonical."""
    return {known for known in stream_smiles(moses_file("train")) if known in smiles}
