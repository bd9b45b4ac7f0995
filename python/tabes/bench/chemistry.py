"""Tasks of chemistry: molecules and reactions."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tabes.bench.task import Example, Sources, alternate
from tabes.chat import MASK_LITERAL
from tabes.errors import InputError
from tabes.tasks import molecules, reactions

_TUNE_MOLECULES = 20_000  # of the shuffled test file of MOSES; the others are for `test`
_FEWEST_SIDE_CHAIN_TOKENS = 6


@functools.cache
def _moses(split: str) -> list[str]:
    """Molecules of the MOSES test file in an order of their own, those of the other split left
    out."""
    smiles = molecules.read_smiles(molecules.moses_file("test"))
    random.Random(0).shuffle(smiles)
    return smiles[:_TUNE_MOLECULES] if split == "tune" else smiles[_TUNE_MOLECULES:]


def _installed() -> str | None:
    """What judging molecules lacks, None if nothing."""
    try:
        molecules.moses_file("test")
        molecules.rdkit("Chem")
    except InputError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Molecules:
    """Whole molecules from nothing but the length of a held-out one."""

    name: str = "molecules"
    title: str = "Molecules, unconditional"
    model: str = "moses"
    metrics: tuple[str, ...] = ("valid",)
    keeps_texts: bool = True

    def missing(self, sources: Sources) -> str | None:
        return _installed()

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        return [
            Example(MASK_LITERAL * len(molecules.tokens_of(s)), s, "all")
            for s in _moses(split)[:number]
        ]

    def judge(self, example: Example, text: str) -> dict[str, float]:
        return {"valid": float(molecules.canonical(text) is not None)}


@dataclass(frozen=True)
class Scaffolds:
    """Side chains for the Bemis-Murcko scaffold of a held-out molecule."""

    name: str = "scaffold"
    title: str = "Molecules, scaffold given"
    model: str = "moses"
    metrics: tuple[str, ...] = ("kept", "valid", "recovered")
    keeps_texts: bool = True

    def missing(self, sources: Sources) -> str | None:
        return _installed()

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        found: list[Example] = []
        for smiles in _moses(split):
            if len(found) == number:
                break
            text, scaffold = molecules.mask_side_chains(smiles), molecules.scaffold(smiles)
            if scaffold and text.count(MASK_LITERAL) >= _FEWEST_SIDE_CHAIN_TOKENS:
                found.append(Example(text, smiles, "all", {"scaffold": scaffold}))
        return found

    def judge(self, example: Example, text: str) -> dict[str, float]:
        found = molecules.canonical(text)
        return {
            "kept": float(molecules.scaffold(text) == example.facts["scaffold"]),
            "valid": float(found is not None),
            "recovered": float(found == molecules.canonical(example.truth or "")),
        }


@dataclass(frozen=True)
class Infill:
    """Held-out molecules of which a share of the tokens is masked."""

    rates: tuple[float, ...] = (0.5, 0.7, 0.9)
    name: str = "infill"
    title: str = "Molecules, infilling"
    model: str = "moses"
    metrics: tuple[str, ...] = ("valid", "recovered")
    keeps_texts: bool = True

    def missing(self, sources: Sources) -> str | None:
        return _installed()

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        draw = random.Random(f"infill {split}")
        found = []
        for smiles, rate in zip(_moses(split)[:number], itertools.cycle(self.rates), strict=False):
            found.append(Example(molecules.mask_some(smiles, rate, draw), smiles, f"rate {rate:g}"))
        return found

    def judge(self, example: Example, text: str) -> dict[str, float]:
        found = molecules.canonical(text)
        return {
            "valid": float(found is not None),
            "recovered": float(found == molecules.canonical(example.truth or "")),
        }


@dataclass(frozen=True)
class Reactions:
    """Products of reactions, partly masked: of molecules that do not react, and of amide
    couplings."""

    rates: tuple[float, ...] = (0.5, 0.7, 0.9)
    name: str = "reactions"
    title: str = "Reactions, masked products"
    model: str = "rxnfp"
    metrics: tuple[str, ...] = ("recovered", "valid")
    keeps_texts: bool = False

    def missing(self, sources: Sources) -> str | None:
        return _installed()

    def examples(self, split: str, number: int, sources: Sources) -> list[Example]:
        smiles = _moses(split)
        half = len(smiles) // 2
        kinds: dict[str, Callable[[str], str | None]] = {
            "copy": reactions.unchanged,
            "amide": reactions.amide_coupling,
        }
        # Each kind takes its molecules from its own half.
        sources_of = zip(kinds.items(), (smiles[:half], smiles[half:]), strict=True)
        groups = [
            self._group(f"{kind} {rate:g}", make, part[at :: len(self.rates)], rate, split)
            for (kind, make), part in sources_of
            for at, rate in enumerate(self.rates)
        ]
        return alternate(groups, number)

    def _group(
        self,
        name: str,
        make: Callable[[str], str | None],
        smiles: Sequence[str],
        rate: float,
        split: str,
    ) -> Iterator[Example]:
        draw = random.Random(f"{name} {split}")
        for one in smiles:
            reaction = make(one)
            if reaction is not None:
                masked = reactions.mask_product(reaction, rate, draw)
                yield Example(masked, reaction, name)

    def judge(self, example: Example, text: str) -> dict[str, float]:
        valid, right = reactions.judge(example.truth or "", text)
        return {"recovered": float(right), "valid": float(valid)}
