"""The training scripts' reports: what is printed of every exported checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import tabes
from by_length import ByLength
from evaluate_moses import Validity, validity
from llada_torch import LLaDAConfig
from trainer import BOS, EOS, Task, parser, train, vocabulary_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMILES = ["CC(=O)Nc1ccc(O)cc1", "COc1ccc(CNC(C)=O)cc1", "c1ccc(-c2ccccn2)cc1", "CCN1CCN(C)CC1"]


def test_validity_of_the_bundled_model(
    demo_model: tabes.Model, capfd: pytest.CaptureFixture[str]
) -> None:
    found = validity(demo_model, SMILES * 10, steps=24, seed=3)
    assert found == validity(demo_model, SMILES * 10, steps=24, seed=3)
    assert found != validity(demo_model, SMILES * 10, steps=24, seed=4)
    assert found.number == 40
    assert 20 <= found.valid <= 40
    assert 0 < found.distinct <= found.valid
    # The shortest canvas is full before the last step.
    assert 15 < found.forward_equivalents <= 24
    few = validity(demo_model, SMILES * 10, steps=1, seed=3)
    assert few.valid < found.valid
    assert capfd.readouterr().err == "", "RDKit's complaints about what is not valid are expected"


def test_validity_reads_as_shares() -> None:
    assert str(Validity(100, 90, 45, 23.96)) == (
        "valid 0.900 (se 0.030), unique 0.500, 24.0 forward-equivalents"
    )
    assert "unique 0.000" in str(Validity(10, 0, 0, 1.0))


def test_every_new_checkpoint_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = vocabulary_of(["C", "N", "O"])
    corpus = ByLength([[BOS, 4, 5, 6, EOS]] * 1000, lambda x: (x != BOS) & (x != EOS))
    seen: list[Path] = []

    def report(checkpoint: Path) -> str:
        seen.append(checkpoint)
        return f"vocabulary {tabes.load(checkpoint).info.vocab_size}"

    task = Task(LLaDAConfig(16, 1, 2, 2, 32, 7), vocabulary, ".", 8, corpus, corpus, report)
    command = ["--out", str(tmp_path), "--steps", "2", "--tokens", "50", "--save-every", "1"]
    train(task, parser(None).parse_args([*command, "--threads", "1"]))
    printed = capsys.readouterr().out
    assert seen == [tmp_path / "checkpoint"] * 3
    assert "step 1 vocabulary 7\n" in printed
    assert "step 2 vocabulary 7\n" in printed
