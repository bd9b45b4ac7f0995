"""What callers pass as prompts: containers, padding, mixtures, and what PyTorch is set to."""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import tabes
import torch
from tabes import CheckpointError, InputError, PaddingWarning
from tabes.evaluation.likelihood import Target, log_likelihood
from tabes.fidelity import Setting, fidelity, mask_at_random
from tabes.inputs import prepare
from test_text import byte_level, load
from transformers import BatchEncoding, PreTrainedTokenizerFast

PAD, BOS, EOS, MASK = 0, 1, 2, 3  # of the bundled models, whose end token is not their padding
TEXTS = ["CC[MASK]", "CO[MASK][MASK]"]
IDS = [[1, 7, 3, 2], [1, 8, 3, 3]]


def shown(batch: Any) -> list[list[int]]:
    return [s.tolist() for s in batch.sequences]


# ---- Containers ----------------------------------------------------------------------------------

CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda values: (value for value in values),
    "dict values": lambda values: dict(enumerate(values)).values(),
    "numpy objects": lambda values: np.array(values, dtype=object),
    "pandas": pd.Series,
    "pandas index": lambda values: pd.Series(values, index=[7, 3]).sort_index(ascending=False),
    "pandas arrow": lambda values: pd.DataFrame({"x": values})["x"],
    "datasets": lambda values: datasets.Dataset.from_dict({"x": values})["x"],
    "map": lambda values: map(lambda value: value, values),
}


@pytest.mark.case("F20")
@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_texts_in_any_container(demo_model: tabes.Model, make: Callable[[list[Any]], Any]) -> None:
    batch = prepare(demo_model, make(TEXTS))
    assert (batch.kind, batch.single) == ("text", False)
    assert shown(batch) == shown(prepare(demo_model, TEXTS))


@pytest.mark.case("F20")
@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_token_ids_in_any_container(
    demo_model: tabes.Model, make: Callable[[list[Any]], Any]
) -> None:
    batch = prepare(demo_model, make(IDS))
    assert (batch.kind, batch.single, shown(batch)) == ("tokens", False, IDS)
    batch = prepare(demo_model, make([7, 3]))
    assert (batch.kind, batch.single, shown(batch)) == ("tokens", True, [[7, 3]])


@pytest.mark.case("F20")
@pytest.mark.parametrize("kind", [">i8", "<i8", ">i4", ">u2"])
def test_arrays_of_any_byte_order(demo_model: tabes.Model, kind: str) -> None:
    array = np.array(IDS, dtype=kind)
    assert shown(prepare(demo_model, array)) == IDS
    assert shown(prepare(demo_model, list(array))) == IDS
    assert shown(prepare(demo_model, np.ma.masked_array(array))) == IDS  # nothing is masked


@pytest.mark.case("F20")
def test_arrays_of_texts(demo_model: tabes.Model) -> None:
    wanted = shown(prepare(demo_model, TEXTS))
    for array in (np.array(TEXTS), pd.Series(TEXTS, dtype="string"), pd.Categorical(TEXTS)):
        assert shown(prepare(demo_model, array)) == wanted
    for text in (np.str_(TEXTS[0]), np.array(TEXTS[0])):
        batch = prepare(demo_model, text)
        assert (batch.single, shown(batch)) == (True, wanted[:1])
    ids = pd.Series([7, 3], dtype="Int64")
    assert shown(prepare(demo_model, ids)) == [[7, 3]]
    assert shown(prepare(demo_model, pd.DataFrame(IDS))) == IDS
    assert tabes.generate(demo_model, pd.Series(["CC[MASK]"]), steps=1).texts is not None


@pytest.mark.case("F20", "U6")
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (pd.Series(["CC[MASK]", None]), "prompt 0 is text and prompt 1 is "),
        (["CC[MASK]", float("nan")], "prompt 0 is text and prompt 1 is float"),
        ([[1, 3], "CC"], "prompt 0 is list and prompt 1 is text"),
        ([{"role": "user", "content": "C"}, "CC"], "prompt 0 is a message and prompt 1 is text"),
        ([[{"role": "user", "content": "C"}], "CC"], "prompt 0 is a conversation and prompt 1 is"),
        (["CC", [{"role": "user", "content": "C"}]], "prompt 1 is a conversation"),
        ([[{"role": "user", "content": "C"}], [1, 3]], "prompt 1 is list"),
        ({"role": "user", "content": "C"}, "put it in a list"),
        ({"messages": []}, r"keys \['messages'\]: it must have input_ids"),
        (b"CC", "prompts of type bytes"),
        ([b"CC", b"C"], "sequence 0 is a bytes"),
        (np.array([b"CC"]), "sequence 0 is a bytes"),
        ({"CC", "CO"}, "prompts of type set"),
        (7, "prompts of type int"),
        (None, "prompts of type NoneType"),
        (np.int64(7), "prompts of type int64"),
        (iter([]), "there are no prompts"),
        (itertools.count(), "more than"),
        (pd.Series([1.5, 2.5]), "dtype"),
        ([[1, True]], "holds True at position 1"),
        ([[1, None]], "holds None at position 1"),
        ([[1, 2**70]], "does not fit 64 bits"),
        (np.array(["2020-01-01"], dtype="datetime64[s]"), "not|holds"),
        (torch.tensor([1, 3]).to_sparse(), "has layout torch.sparse_coo: give a dense tensor"),
        ([torch.tensor([1, 3]).to_sparse()], "sequence 0 has layout torch.sparse_coo"),
        (torch.tensor([1, 3], device="meta"), "is on the meta device: give a dense tensor"),
        (np.ma.masked_array([1, 7, 0], mask=[0, 0, 1]), "masked array: .* attention_mask"),
    ],
)
def test_what_is_no_prompt_is_one_clear_error(
    demo_model: tabes.Model, prompts: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tabes.generate(demo_model, prompts, gen_length=1)


@pytest.mark.case("U6")
@pytest.mark.parametrize("where", [0, 2])
def test_lone_surrogates(demo_model: tabes.Model, where: int) -> None:
    text = "C" * where + "\ud83d" + "C[MASK]"
    with pytest.raises(InputError, match=rf"the prompt holds .*'\\ud83d', at character {where}:"):
        tabes.generate(demo_model, text)
    with pytest.raises(InputError, match=rf"prompt 1 holds .* at character {where}:"):
        tabes.generate(demo_model, ["C[MASK]", text])
    assert demo_model.tokenizer is not None
    with pytest.raises(InputError, match="surrogate"):
        demo_model.tokenizer.encode(text)


# ---- Padding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def padding(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of transformers over the demo model's first ids."""
    backend = tabes.load(tabes.demo_checkpoint()).tokenizer.backend  # type: ignore[union-attr]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=backend.id_to_token(PAD))


@pytest.mark.case("F07")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_what_a_tokenizer_returns_is_unpadded(
    demo_model: tabes.Model, padding: Any, side: str, tensors: str | None
) -> None:
    texts = ["CC(=O)N", "C", "CCO"]
    mask = demo_model.tokenizer.mask_token  # type: ignore[union-attr]
    texts = [text + mask for text in texts]
    padding.padding_side = side
    encoding = padding(texts, padding=True, return_tensors=tensors)
    wanted = [padding(text)["input_ids"] for text in texts]
    assert shown(prepare(demo_model, encoding)) == wanted
    assert shown(prepare(demo_model, dict(encoding))) == wanted
    ids, attention = encoding["input_ids"], encoding["attention_mask"]
    assert shown(prepare(demo_model, ids, None, attention)) == wanted
    alone = [tabes.generate(demo_model, text, steps=1).texts for text in texts]
    out = tabes.generate(demo_model, encoding, steps=1)
    assert out.texts == [text for (text,) in alone]  # type: ignore[misc]
    assert [len(row) for row in out.tokens] == [len(row) for row in wanted]  # without padding
    grown = tabes.generate(demo_model, ids, attention_mask=attention, gen_length=2, steps=1)
    assert [len(row) for row in grown.tokens] == [len(row) + 2 for row in wanted]
    with pytest.warns(PaddingWarning, match=r"padding token.*\(0\).*without padding, or attention"):
        assert shown(prepare(demo_model, ids)) == [list(map(int, row)) for row in ids]


@pytest.mark.case("F07")
def test_one_sequence_and_lists_of_encodings(demo_model: tabes.Model) -> None:
    row, mask = [1, 7, 3, 0, 0], [1, 1, 1, 0, 0]
    batch = prepare(demo_model, {"input_ids": row, "attention_mask": mask})
    assert (batch.single, shown(batch)) == (True, [[1, 7, 3]])
    rows = [{"input_ids": row, "attention_mask": mask}, {"input_ids": [1], "attention_mask": [1]}]
    assert shown(prepare(demo_model, rows)) == [[1, 7, 3], [1]]
    assert shown(prepare(demo_model, [{"input_ids": [1, 7]}, {"input_ids": [3]}])) == [[1, 7], [3]]
    one = torch.tensor([row])  # as a tokenizer that is asked for tensors returns a single text
    alone = [{"input_ids": one, "attention_mask": torch.tensor([mask])}, {"input_ids": [[3, 7]]}]
    assert shown(prepare(demo_model, alone[:1])) == [[1, 7, 3]]
    assert shown(prepare(demo_model, alone[1:])) == [[3, 7]]
    zeros = {"input_ids": [row], "attention_mask": [mask], "token_type_ids": [[0] * 5]}
    assert shown(prepare(demo_model, BatchEncoding(zeros))) == [[1, 7, 3]]


MASKS: list[Any] = [
    torch.tensor([[1, 1, 0], [0, 1, 1]]),
    torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool),
    torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.float32),
    np.array([[1, 1, 0], [0, 1, 1]], dtype=np.int32),
    np.array([[True, True, False], [False, True, True]]),
    [[1, 1, 0], [0, 1, 1]],
    [[True, True, False], [False, True, True]],
    [torch.tensor([1, 1, 0]), torch.tensor([0, 1, 1])],
]


@pytest.mark.case("F07")
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_attention_masks_of_any_kind(demo_model: tabes.Model, mask: Any) -> None:
    rows = [[1, 3, 0], [0, 1, 3]]
    assert shown(prepare(demo_model, rows, None, mask)) == [[1, 3], [1, 3]]
    out = tabes.generate(demo_model, torch.tensor(rows), attention_mask=mask, steps=1)
    assert isinstance(out.tokens, torch.Tensor)
    assert out.tokens.shape == (2, 2)  # [B, L] again, since the lengths agree


@pytest.mark.case("F07")
@pytest.mark.parametrize(
    ("prompts", "mask", "message"),
    [
        ([[1, 7, 3]], [[1, 0, 1]], "sequence 0 has a hole at position 1"),
        ([[1, 7, 3]], [[0, 0, 0]], "no 1"),
        ([[1, 7, 3]], [[1, 2, 1]], "other values than 0 and 1"),
        ([[1, 7, 3]], [[1, -1, 1]], "other values than 0 and 1"),
        ([[1, 7, 3]], [[1, 1]], "must agree"),
        ([[1, 7, 3]], [1, 1, 1], "must agree"),
        ([1, 7, 3], [[1, 1, 1]], "must agree"),
        ([[1, 7, 3]], [[1, 1, 1], [1, 1, 1]], "must agree"),
        ([[1, 7, 3]], np.ones((1, 1, 3, 3)), "shape"),
        ([[1, 7, 3]], [[1, 0.5, 0]], "integers"),
        ([[1, 7, 3]], torch.tensor([[1, 0.5, 0]]), "integers"),
        ([[1, 7, 3]], "110", "attention_mask|integers"),
        (["C[MASK]"], [[1]], "text"),
        ("C[MASK]", [1, 1], "a text has no padding"),
        ([[{"role": "user", "content": "C"}]], [[1]], "a text has no padding"),
        ({"input_ids": [[1, 3]], "token_type_ids": [[0, 1]]}, None, "one segment"),
        ({"input_ids": [[1, 3]], "position_ids": [[5, 6]]}, None, "counts positions itself"),
        ({"input_ids": [[1, 3]], "attention_mask": [[1, 1]]}, [[1, 1]], "given twice"),
        ([{"input_ids": [1, 3], "attention_mask": [1, 1]}, {"input_ids": [3]}], None, "every"),
    ],
)
def test_attention_masks_that_cannot_be_used(
    demo_model: tabes.Model, prompts: Any, mask: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tabes.generate(demo_model, prompts, attention_mask=mask)


@pytest.mark.case("F07")
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor(np.array([[2**63 + 1, 3]], np.uint64)), "2\\^63 or more"),
        (np.array([[2**64 - 1, 3]], np.uint64), "2\\^63 or more"),
    ],
    ids=["torch", "numpy"],
)
def test_arrays_of_ids_beyond_63_bits(demo_model: tabes.Model, ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tabes.generate(demo_model, ids)


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def warning(message: str) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: pytest.warns(PaddingWarning, match=message)


@pytest.mark.case("F07")
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 7, 3, 0], [1, 7, 7, 3]], warning("sequence 0 ends with 1 padding token ")),
        ([[0, 0, 1, 3], [1, 7, 7, 3]], warning("sequence 0 begins with 2 padding tokens ")),
        ([1, 7, 3, 0], warning("the sequence ends")),  # [PAD] means nothing else
        ([[1, 3], [1, 3, 0, 0]], warning("sequence 1 ends with 2")),
        ([[1, 7, 3], [1, 3]], no_warning),
        ([[1, 0, 3, 7]], no_warning),  # within a sequence
        ([[1, 3, 2, 2], [1, 3, 7, 2]], no_warning),  # end tokens
    ],
)
def test_padding_is_noticed(
    demo_model: tabes.Model, rows: Any, expected: Callable[[], AbstractContextManager[Any]]
) -> None:
    with expected():
        assert prepare(demo_model, rows).sequences[0].numel()
    with no_warning():  # who says that nothing is padding is believed
        ones = [[1] * len(r) for r in rows] if isinstance(rows[0], list) else [1] * len(rows)
        prepare(demo_model, rows, None, ones)


@pytest.fixture
def padded_with_ends(tiny_llada: Callable[..., tuple[Path, Any]]) -> tabes.Model:
    """As LLaDA-8B, whose padding is its end token."""
    folder, _ = tiny_llada()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"pad_token_id": 0', '"pad_token_id": 2'))
    return tabes.load(folder)


@pytest.mark.case("F07")
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[7, 3, 2, 2], [7, 7, 7, 3]], warning("sequence 0 ends with 2 padding tokens ")),
        ([[2, 7, 3], [7, 7, 3]], warning("sequence 0 begins with 1 padding token ")),
        ([[7, 7, 3, 2]], no_warning),  # a text that ends
        ([[7, 3, 2, 2]], no_warning),
        ([[7, 7, 3, 2], [7, 3, 7, 7]], no_warning),  # one ends, the other goes on
        ([[7, 3, 2, 2], [8, 3, 2, 2]], no_warning),
        ([[7, 3, 2, 2], [7, 3]], no_warning),  # lists of different lengths are not padded
        ([[2, 7, 3], [2, 8, 3]], no_warning),  # a start token that is the end token too
    ],
)
def test_padding_that_is_the_end_token(
    padded_with_ends: tabes.Model,
    rows: list[list[int]],
    expected: Callable[[], AbstractContextManager[Any]],
) -> None:
    with expected():
        prepare(padded_with_ends, rows, 4)


@pytest.mark.case("F07")
def test_the_warning_names_the_callers_line(demo_model: tabes.Model) -> None:
    with pytest.warns(PaddingWarning) as caught:
        tabes.generate(demo_model, [[1, 3, 0]], steps=1)
    assert [w.filename for w in caught] == [__file__]


# ---- Lengths, and what PyTorch is set to ---------------------------------------------------------


@pytest.mark.case("F21")
@pytest.mark.parametrize("prompt", ["C", ["C", "CC"], [1, 7], np.array([[1, 7]])], ids=str)
@pytest.mark.parametrize("length", [0, -1, 257, 10**13, 2**63 - 1])
def test_lengths_that_do_not_fit(demo_model: tabes.Model, prompt: Any, length: int) -> None:
    message = "exceed the model's 256 positions" if length > 0 else "gen_length must be at least 1"
    with pytest.raises(InputError, match=message):
        tabes.generate(demo_model, prompt, gen_length=length)


@contextmanager
def default(setter: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "device": lambda: default(torch.set_default_device, "meta", None),
    "float64": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.case("F19")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_pytorch_may_be_set_to_anything(
    demo_model: tabes.Model, setting: Callable[[], AbstractContextManager[Any]]
) -> None:
    def run(ids: torch.Tensor) -> list[Any]:
        results: list[Any] = []
        for prompt in (ids, ids.tolist(), ids.numpy(), "CC"):
            for policy in ("confidence", "boe"):
                out = tabes.generate(demo_model, prompt, gen_length=3, steps=2, policy=policy)
                results += [[t.tolist() for t in out.tokens], out.texts]
        scores = tabes.influence(demo_model, [[1, 7, 3, 3]], [[2]], [[3]])
        logits = demo_model.logits([1, 7, 3])
        assert isinstance(logits, torch.Tensor)
        results += [[t.tolist() for t in scores.tis], logits.dtype, logits.tolist()]
        canvas = mask_at_random(demo_model, [torch.tensor([1] + [7] * 14, device="cpu")], 0.9, 5)
        found = fidelity(demo_model, canvas, [Setting()], n_candidates=2)
        target = Target([1, 7, 8, 9, 2], 2, 4)
        likely = log_likelihood(demo_model, target, 2, 2, 0)[0]
        return [*results, canvas[0].tolist(), found[0].correlations, likely]

    ids = torch.tensor([1, 7, 7])
    wanted = run(ids)
    with setting():
        assert run(ids) == wanted
        inside = torch.tensor([1, 7, 7], device="cpu")
        assert run(inside) == wanted
    assert run(inside) == wanted  # made in inference mode, used outside


# ---- The tokenizer is the one that was there at load ---------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(tabes.demo_checkpoint(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.case("F09")
def test_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: tabes.Model
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert tabes.load("moses").path == tabes.load(tabes.demo_checkpoint()).path
    with pytest.raises(tabes.CheckpointError, match="working directory is gone"):
        tabes.load("other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tabes.CheckpointError, match="~nobody-here/x: no such folder"):
        tabes.load("~nobody-here/x")
    with pytest.raises(tabes.InputError, match="path is empty"):
        tabes.load("")


@pytest.mark.case("F09")
def test_a_folder_that_is_gone(copied: Path, demo_model: tabes.Model) -> None:
    model = tabes.load(copied)
    shutil.rmtree(copied)
    wanted = tabes.generate(demo_model, "CC[MASK]", steps=1).texts
    assert tabes.generate(model, "CC[MASK]", steps=1).texts == wanted
    with pytest.raises(CheckpointError, match="no such folder"):
        tabes.load(copied)


@pytest.mark.case("F09")
def test_another_working_directory(
    copied: Path, demo_model: tabes.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(copied.parent)
    model = tabes.load("model")
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copytree(tabes.demo_checkpoint("sudoku"), other / "model")
    monkeypatch.chdir(other)
    wanted = tabes.generate(demo_model, "CC[MASK]", steps=1).texts
    assert tabes.generate(model, "CC[MASK]", steps=1).texts == wanted
    assert model.path == copied
    assert os.getcwd() == str(other)


@pytest.mark.case("F09")
def test_a_folder_that_was_replaced(copied: Path, demo_model: tabes.Model) -> None:
    model = tabes.load(copied)
    shutil.copy(tabes.demo_checkpoint("sudoku") / "tokenizer.json", copied / "tokenizer.json")
    wanted = tabes.generate(demo_model, "CC[MASK]", steps=1).texts
    assert tabes.generate(model, "CC[MASK]", steps=1).texts == wanted


@pytest.mark.case("F09")
def test_a_damaged_tokenizer_matters_to_texts_only(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{")
    model = tabes.load(copied, mask_token_id=3)
    (copied / "tokenizer.json").unlink()  # the error is kept
    out = tabes.generate(model, [1, 7, 3], steps=1)
    assert out.texts is None
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            tabes.generate(model, "CC[MASK]")
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            _ = model.tokenizer
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tabes.generate(model, [{"role": "user", "content": "C"}], gen_length=1)


# ---- Tokens by name, and texts that hide nothing that was written --------------------------------


@pytest.mark.case("N03")
def test_forbidden_tokens_by_name(demo_model: tabes.Model) -> None:
    tokenizer = demo_model.tokenizer
    assert tokenizer is not None
    carbon = tokenizer.backend.token_to_id("C")
    prompts = ["CC[MASK][MASK]CC"] * 8
    free = tabes.generate(demo_model, prompts, steps=1, temperature=1.0)
    named = tabes.generate(demo_model, prompts, steps=1, temperature=1.0, forbidden=["C", 8])
    by_id = tabes.generate(demo_model, prompts, steps=1, temperature=1.0, forbidden=[carbon, 8])
    assert isinstance(named.tokens, torch.Tensor)
    assert isinstance(free.tokens, torch.Tensor)
    assert torch.equal(named.tokens, by_id.tokens)  # type: ignore[arg-type]
    written = (slice(None), slice(3, 5))
    assert (free.tokens[written] == carbon).any()
    assert not (named.tokens[written] == carbon).any()
    for names, message in (
        (["c1"], "no token 'c1', which it writes with 2"),
        (["[MASKED]"], r"did you mean '\[MASK\]'"),
        (["[BOZ]"], r"did you mean '\[BOS\]'"),
        ([1.5], r"forbidden\[0\]=1.5"),
        ("C", "give a list of token ids or names"),
        (["\ud800"], "surrogate"),
    ):
        with pytest.raises(InputError, match=message):
            tabes.generate(demo_model, "CC[MASK]", forbidden=names)
    with pytest.raises(InputError, match="has no tokenizer, so give its id"):
        tabes.generate(tabes.Model(demo_model.core), [1, 3], forbidden=["C"])


def test_names_of_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, 260, tokenizer_json=byte_level("<|endoftext|>", "<|m|>").to_str())
    he, blank_he = map(tokenizer.backend.token_to_id, ("he", "Ġhe"))
    assert [tokenizer.token_id(n) for n in ("he", "Ġhe", " he")] == [he, blank_he, blank_he]
    assert [tokenizer.token_id(n) for n in ("<|endoftext|>", "<|m|>")] == [258, 259]
    with pytest.raises(InputError, match=r"did you mean '<\|endoftext\|>'"):
        tokenizer.token_id("<|endoftex|>")


def test_no_written_token_is_hidden(demo_model: tabes.Model) -> None:
    tokenizer = demo_model.tokenizer
    assert tokenizer is not None
    names = [tokenizer.backend.id_to_token(i) for i in (PAD, BOS, EOS)]
    ids = [BOS, 7, PAD, BOS, 7, EOS, 7]
    given = [True, True, False, False, False, False, False]
    seven = tokenizer.piece(7)
    text = tokenizer.decode_filled(ids, [not g for g in given], [EOS])
    assert text == f"{seven}{names[0]}{names[1]}{seven}"
    assert tokenizer.decode_filled(ids, [False] * 7, [EOS]) == seven * 3
