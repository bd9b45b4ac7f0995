"""Reactions as SMILES, ``reactants>>product``, for models such as the reaction BERT of rxnfp.

Two kinds, both made from MOSES molecules: a molecule that does not react (``A>>A``), where the
product can be copied, and the forming of an amide from a carboxylic acid and an amine, where atoms
leave, so that the product has to be worked out. They are the plainest of their kind: no reagents,
no solvent, no yield.
"""

from __future__ import annotations

import random

from tabes.tasks.molecules import canonical, mask_some, rdkit

# An amide bond outside rings, between carbon and a nitrogen that hydrogen or carbon fills up.
_AMIDE = "[#6:5][C:1](=[O:2])!@[N;X3;+0;!$(N-[!#6]):3]"
_PARTS = "[#6:5][C:1](=[O:2])O.[N:3]"


def unchanged(smiles: str) -> str:
    """The molecule beside itself."""
    return f"{smiles}>>{smiles}"


def amide_coupling(smiles: str) -> str | None:
    """A carboxylic acid and an amine that give this molecule, None if it has no amide bond to
    take apart. Of several the first by the acid's SMILES is taken."""
    chem = rdkit("Chem")
    reaction = rdkit("Chem.rdChemReactions").ReactionFromSmarts(f"{_AMIDE}>>{_PARTS}")
    found = set()
    for parts in reaction.RunReactants((chem.MolFromSmiles(smiles),)):
        names = [canonical(chem.MolToSmiles(part)) for part in parts]
        if all(names):
            found.add(".".join(str(name) for name in names))
    return f"{min(found)}>>{smiles}" if found else None


def mask_product(reaction: str, rate: float, draw: random.Random) -> str:
    """The reaction with a share `rate` of its product's tokens masked."""
    reactants, product = reaction.split(">>")
    return f"{reactants}>>{mask_some(product, rate, draw)}"


def judge(reaction: str, text: str) -> tuple[bool, bool]:
    """Whether the product of a finished text is a molecule, and whether it is the right one."""
    found = canonical(text.partition(">>")[2])
    return found is not None, found == canonical(reaction.partition(">>")[2])
