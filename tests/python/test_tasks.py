"""The tasks of the benchmark: judges by hand, puzzles by enumeration, what is masked and why."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import tabes
from tabes.bench import puzzles as bench_puzzles
from tabes.bench.chemistry import Infill, Molecules, Reactions, Scaffolds
from tabes.bench.puzzles import Countdown, Sudoku
from tabes.bench.suite import TASKS
from tabes.bench.task import Sources
from tabes.tasks import countdown, molecules, reactions, sudoku

SOLVED = "1234341221434321"


def cells(digits: str) -> sudoku.Cells:
    return np.array([int(d) for d in digits], dtype=np.int64)


def all_4x4_grids() -> list[str]:
    """Every grid, found by trying all rows: nothing of the solver is used."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    grids = []
    for grid in itertools.product(rows, repeat=4):
        columns = zip(*grid, strict=True)
        boxes = (grid[r][c : c + 2] + grid[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2))
        if all(len(set(unit)) == 4 for unit in (*columns, *boxes)):
            grids.append("".join(grid))
    return grids


def test_sudoku_judge_by_hand() -> None:
    board = sudoku.BOARDS[4]
    clues = cells("1204340020434020")
    assert sudoku.is_solved(board, clues, cells(SOLVED))
    # A clue changed, a digit twice in a row, rows and columns right but boxes wrong.
    assert not sudoku.is_solved(board, cells("2" + "0" * 15), cells(SOLVED))
    assert not sudoku.is_solved(board, clues, cells("1134341221434321"))
    assert not sudoku.is_solved(board, cells("0" * 16), cells("1234234134124123"))
    puzzle = sudoku.Puzzle(board, cells("0034341221434321"), cells(SOLVED))
    assert sudoku.judge(puzzle, "a1234b3412c2143d4321") == (True, 1.0)
    assert sudoku.judge(puzzle, "a1334b3412c2143d4321") == (False, 0.5)
    assert sudoku.judge(puzzle, "a1234b3412c2143x4321") == (False, 0.0)
    # Any solution of a puzzle that has several is right; cells count against the stated one.
    open_puzzle = sudoku.Puzzle(board, cells("0" * 16), cells(SOLVED))
    other = "2143432112343412"
    text = board.text(cells(other))
    assert sudoku.judge(open_puzzle, text) == (True, 0.0)


def test_made_puzzles_have_one_solution() -> None:
    grids = all_4x4_grids()
    assert len(grids) == 288
    made = sudoku.puzzles(4, 6, 20, seed=3)
    for one in made:
        given = one.clues.tolist()
        assert sum(v > 0 for v in given) == 6
        matching = [
            g for g in grids if all(not v or int(d) == v for d, v in zip(g, given, strict=True))
        ]
        assert matching == ["".join(map(str, one.solution.tolist()))]
    only = sudoku.puzzles(4, 8, 5, seed=3, accept=lambda grid: grid[0] == 2)
    assert {int(p.solution[0]) for p in only} == {2}


def test_reading_puzzles(tmp_path: Path) -> None:
    path = tmp_path / "puzzles.csv"
    path.write_text(f"Puzzle,Solution\n1204340020434020,{SOLVED}\r\n")
    (one,) = sudoku.read_puzzles(path)
    assert one.board.size == 4
    assert one.clues.tolist()[:4] == [1, 2, 0, 4]
    for content, message in (
        ("Puzzle,Solution\n", "holds no puzzles"),
        ("Puzzle,Answer\n12,34\n", "row 1 is no board"),
        (f"Puzzle,Solution\n12x4340020434020,{SOLVED}\n", "row 1 is no board"),
        (f"Puzzle,Solution\n2204340020434020,{SOLVED}\n", "row 1 does not solve"),
    ):
        path.write_text(content)
        with pytest.raises(tabes.InputError, match=message):
            sudoku.read_puzzles(path)
    with pytest.raises(tabes.InputError, match="none"):
        sudoku.read_puzzles(tmp_path / "none.csv")


def test_countdown_judge_by_hand() -> None:
    question = countdown.Question((30, 100, 93), 23)
    right = "0093+0030=0123,0123-0100=0023"
    assert countdown.is_right(question, right)
    for wrong in (
        "93+30=124,124-100=24",  # a false sum
        "93+30=123,123-100=24",  # a false difference
        "93+30=123,93-70=23",  # 93 twice, 70 from nowhere
        "93-70=23,23+0=23",
        "93+30=123",
        right + ",23+0=23",
        "30-93=63,100-63=37",  # below zero
        "",
    ):
        assert not countdown.is_right(question, wrong)
    assert right in countdown.answers(question)
    assert all(countdown.is_right(question, a) for a in countdown.answers(question))
    assert question.key == countdown.Question((93, 30, 100), 23).key
    assert not countdown.is_right(countdown.Question((7, 2, 1), 3), "7/2=3,3*1=3")


def test_reading_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"input": "30,100,93", "output": "23"}\n\n')
    assert countdown.read_questions(path) == [countdown.Question((30, 100, 93), 23)]
    for content, message in (
        ("\n", "holds no questions"),
        ('{"input": "30,100", "output": "23"}\n', "line 1 is no question"),
        ('{"input": "1,2,3", "output": "6"}\n{"input": 5}\n', "line 2 is no question"),
    ):
        path.write_text(content)
        with pytest.raises(tabes.InputError, match=message):
            countdown.read_questions(path)
    with pytest.raises(tabes.InputError, match="none"):
        countdown.read_questions(tmp_path / "none")


@pytest.mark.parametrize(
    ("smiles", "masked"),
    [
        ("Cc1ccccc1", "_c1ccccc1"),
        ("CCOC(=O)c1ccc(Cl)cc1", "________c1ccc___cc1"),
        # The carbonyl oxygen of a linker belongs to the scaffold, its parentheses too.
        ("O=C(NC1CC1)c1ccncc1", "O=C(NC1CC1)c1ccncc1"),
        ("CC(C)(Oc1ccccc1)C(=O)OCc1ccccn1", "_C___(Oc1ccccc1)C(=O)OCc1ccccn1"),
        # A bond written before the digit of a ring.
        ("Cc1ncn2c1CNC(=O)c1ccccc1-2", "_c1ncn2c1CNC(=O)c1ccccc1-2"),
        ("CCN", "___"),  # no ring, no scaffold
    ],
)
def test_scaffold_masking_by_hand(smiles: str, masked: str) -> None:
    assert molecules.mask_side_chains(smiles).replace("[MASK]", "_") == masked


def test_scaffold_masking_on_moses() -> None:
    """Every scaffold atom is given, no other is, and parentheses pair up."""
    for smiles in molecules.read_smiles(molecules.moses_file("test"))[:300]:
        tokens = molecules.tokens_of(smiles)
        text = molecules.mask_side_chains(smiles).replace("[MASK]", "_")
        shown = molecules.re.findall(molecules.ATOM, text)
        assert len(shown) == len(tokens)
        assert all(s in ("_", t) for s, t in zip(shown, tokens, strict=True))
        assert text.count("(") == text.count(")")
        atoms = sum(t.isalpha() or t.startswith("[") for t in shown)
        core = molecules.rdkit("Chem").MolFromSmiles(molecules.scaffold(smiles) or "")
        assert atoms == core.GetNumAtoms()


def test_molecules() -> None:
    assert molecules.canonical("C(C)O") == "CCO"
    assert molecules.canonical("C(C") is None
    assert molecules.canonical("") is None
    assert molecules.scaffold("Cc1ccccc1") == "c1ccccc1"
    assert molecules.scaffold("CCO") == ""
    assert molecules.scaffold("c1cc") is None
    masked = molecules.mask_some("CC(Cl)C", 0.5, random.Random(0))
    assert masked.count("[MASK]") == 3
    assert molecules.mask_some("CO", 0.01, random.Random(0)).count("[MASK]") == 1
    # Identical molecules: no diversity; two with nothing in common: half the pairs differ.
    assert molecules.internal_diversity(["CCO", "CCO"]) == pytest.approx(0)
    assert molecules.internal_diversity(["C", "O"]) == pytest.approx(0.5)
    assert np.isnan(molecules.internal_diversity([]))


def test_reactions() -> None:
    assert reactions.unchanged("CCO") == "CCO>>CCO"
    assert reactions.amide_coupling("CC(=O)NCC") == "CC(=O)O.CCN>>CC(=O)NCC"
    assert reactions.amide_coupling("CCO") is None
    assert reactions.amide_coupling("O=C1CCCN1") is None  # a ring cannot be taken apart
    masked = reactions.mask_product("CC>>CCCC", 0.5, random.Random(0))
    assert masked.startswith("CC>>")
    assert masked.count("[MASK]") == 2
    assert reactions.judge("CC.O>>CCO", "CC.O>>C(C)O") == (True, True)
    assert reactions.judge("CC.O>>CCO", "CC.O>>CCN") == (True, False)
    assert reactions.judge("CC.O>>CCO", "CC.O>>CC(") == (False, False)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Public files of the shape of the real ones, made here."""
    puzzles, questions = tmp_path / "p.csv", tmp_path / "q.jsonl"
    made = sudoku.puzzles(4, 8, 30, seed=9)
    lines = [",".join("".join(map(str, c.tolist())) for c in (p.clues, p.solution)) for p in made]
    puzzles.write_text("Puzzle,Solution\n" + "\n".join(lines) + "\n")
    drawn = countdown.random_examples(20, seed=77)
    questions.write_text(
        "".join(
            f'{{"input": "{",".join(map(str, q.numbers))}", "output": "{q.target}"}}\n'
            for q, _ in drawn
        )
    )
    return Sources(puzzles, questions)


def test_tune_and_test_share_nothing(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    # The questions a model was trained on are left out of both; a few show that as well.
    monkeypatch.setattr(bench_puzzles, "_TRAINED_QUESTIONS", (3000, 0))
    monkeypatch.setattr(bench_puzzles, "_GENERATED", (3000, 0))
    bench_puzzles._unseen_questions.cache_clear()
    assert bench_puzzles._unseen_questions() == []
    monkeypatch.setattr(bench_puzzles, "_GENERATED", (3000, 1))
    bench_puzzles._unseen_questions.cache_clear()
    tasks = [
        Sudoku(4, (8,)),
        Sudoku(6, (14, 16)),
        Sudoku(9, (40,)),
        Molecules(),
        Scaffolds(),
        Infill(),
        Reactions(),
        Countdown(),
    ]
    assert {task.name for task in tasks} == set(TASKS)
    for task in tasks:
        tune = task.examples("tune", 30, sources)
        test = task.examples("test", 30, sources)
        assert len(test) == 30, task.name
        assert tune
        answers = [{e.truth if task.name != "sudoku4" else e.text for e in s} for s in (tune, test)]
        assert not answers[0] & answers[1], task.name
        # A longer split begins as a shorter one, so that counts can be raised.
        assert [e.text for e in task.examples("test", 12, sources)] == [e.text for e in test[:12]]
        for example in (*tune, *test):
            assert "[MASK]" in example.text
            judged = task.judge(example, (example.truth or "").replace("[EOS]", ""))
            assert tuple(judged) == task.metrics
            assert set(judged.values()) == {1.0}, (task.name, example)
            wrong = task.judge(example, example.text)
            assert wrong[task.metrics[0]] == 0.0
    bench_puzzles._unseen_questions.cache_clear()


def test_examples_fit_their_models(
    demo_model: tabes.Model, rxnfp_model: tabes.Model, sources: Sources
) -> None:
    """A canvas and its truth are equally long, and agree wherever something is given."""
    pairs = ((Infill(), demo_model), (Scaffolds(), demo_model), (Reactions(), rxnfp_model))
    for task, model in pairs:
        assert model.tokenizer is not None
        for example in task.examples("tune", 12, sources):
            canvas = model.tokenizer.encode(example.text)
            truth = model.tokenizer.encode(example.truth or "")
            assert len(canvas) == len(truth)
            mask = model.info.mask_token_id
            assert all(c in (mask, t) for c, t in zip(canvas, truth, strict=True))


@pytest.mark.parametrize("policy", ["confidence", "boe"])
def test_the_bundled_models_can_do_their_tasks(policy: str) -> None:
    """Far below what the model cards say, far above chance."""
    boards = tabes.load(tabes.demo_checkpoint("sudoku"))
    puzzles = sudoku.puzzles(6, 12, 20, seed=31)
    filled = tabes.generate(
        boards, [p.board.text(p.clues) for p in puzzles], steps=12, policy=policy
    )
    solved = [sudoku.judge(p, t)[0] for p, t in zip(puzzles, filled.texts, strict=True)]
    assert sum(solved) >= 15

    numbers = tabes.load(tabes.demo_checkpoint("countdown"))
    drawn = [q for q, _ in countdown.random_examples(30, seed=31)]
    blanks = [q.prompt + "[MASK]" * countdown.ANSWER_LENGTH for q in drawn]
    written = tabes.generate(numbers, blanks, steps=29, policy=policy).texts
    right = [
        countdown.is_right(q, t.removeprefix(q.prompt)) for q, t in zip(drawn, written, strict=True)
    ]
    assert sum(right) >= 9
