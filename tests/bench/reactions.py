"""Texts for `tabes fidelity` with the reaction BERT: 120 held-out MOSES molecules as `A>>A`.

    python tests/bench/reactions.py > reactions.txt

Needs `pip install --no-deps molsets==0.3.1`, which carries the data.
"""

from tabes.tasks.molecules import moses_file, read_smiles

for molecule in read_smiles(moses_file("test"))[:120]:
    print(f"{molecule}>>{molecule}")
