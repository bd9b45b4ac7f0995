"""What `tabes.load` makes of a folder's files; right values from transformers where it has one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
from tabes import _core
from tabes.cli import main
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., tuple[Path, Any]]


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def byte_tokenizer(folder: Path, added: dict[str, bool], words: tuple[str, ...] = ()) -> Tokenizer:
    """256 bytes, then `words` of the vocabulary, then added tokens (True: special)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, *words])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, special in added.items():
        backend.add_tokens([AddedToken(name, special=special, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    return backend


@pytest.mark.case("F01")
def test_what_is_written_behind_an_end_of_turn_is_no_text(tiny_llada: Make) -> None:
    folder, _ = tiny_llada(vocab=260)
    added = {"<|endoftext|>": True, "<|mdm_mask|>": True, "<|eot_id|>": True}
    backend = byte_tokenizer(folder, added)
    end, mask, turn = (backend.token_to_id(name) for name in added)
    change_config(folder, mask_token_id=mask, eos_token_id=end)
    by_family = tabes.load(folder)
    assert by_family.info.eos_token_ids == [end, turn]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, turn]}))
    stated = tabes.load(folder)
    assert stated.info.eos_token_ids == [end, turn]
    change_config(folder, eos_token_id=...)
    assert tabes.load(folder).info.eos_token_ids == [end, turn]
    # A reply is cut at the first end of any kind: seeds are tried until that is a turn's.
    cut = 0
    for seed in range(200):
        out = tabes.generate(stated, "hi ", gen_length=12, steps=12, temperature=3.0, seed=seed)
        written = out.tokens.tolist()[3:]
        if turn not in written or end in written:
            continue
        cut += 1
        assert out.texts == ["hi " + backend.decode(written[: written.index(turn)])]
    assert cut > 0
    only = tabes.load(folder, eos_token_ids=[7])
    assert only.info.eos_token_ids == [7]
    assert tabes.load(folder, eos_token_ids=[]).info.eos_token_ids == []
    for wrong in ([260], [-1], [True], ["a"], 7, "7"):
        with pytest.raises(tabes.InputError, match="eos_token_ids"):
            tabes.load(folder, eos_token_ids=wrong)  # type: ignore[arg-type]


@pytest.mark.case("F10")
@pytest.mark.parametrize("stated", [False, True])
def test_the_mask_is_the_cores_to_find(tiny_llada: Make, stated: bool) -> None:
    folder, _ = tiny_llada(vocab=264)
    backend = byte_tokenizer(folder, {"<|mdm_mask|>": True}, words=("[MASK]", "[M]"))
    assert backend.token_to_id("[MASK]") == 256
    assert backend.token_to_id("<|mdm_mask|>") == 258
    change_config(folder, mask_token_id=...)
    if stated:
        (folder / "generation_config.json").write_text(json.dumps({"mask_token_id": 257}))
    model = tabes.load(folder)
    assert model.info.mask_token_id == (257 if stated else 258)
    assert model.tokenizer is not None
    assert model.tokenizer.mask_token_id == model.info.mask_token_id
    assert tabes.load(folder, mask_token_id=5).info.mask_token_id == 5
    # A pickled checkpoint that is converted has the mask that its files name, as before.
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    converted = folder.parent / "converted"
    assert tabes.convert(folder, converted).config_additions == {}
    assert (converted / "config.json").read_text() == (folder / "config.json").read_text()
    assert tabes.load(converted).info.mask_token_id == model.info.mask_token_id


@pytest.mark.case("N03")
def test_reactions_are_filled_with_atoms(rxnfp_model: tabes.Model) -> None:
    tokenizer = rxnfp_model.tokenizer
    assert tokenizer is not None
    special = {tokenizer.backend.token_to_id(f"[{n}]") for n in ("UNK", "PAD", "CLS", "SEP")}
    never = set(rxnfp_model.info.special_token_ids)
    assert special <= never
    assert rxnfp_model.info.mask_token_id not in never
    assert all(tokenizer.backend.id_to_token(i)[0] == "[" for i in never)
    prompt = "CC(=O)Cl.N[MASK][MASK]>>CC(=O)NCC"
    out = tabes.generate(rxnfp_model, prompt)
    assert not never & set(out.tokens.tolist()[1:-1])
    assert out.texts is not None
    assert len(out.texts[0]) > len("CC(=O)Cl.N>>CC(=O)NCC") + 1  # two tokens, both seen
    # Without the rule it is [UNK], which no text shows.
    free = tabes.generate(rxnfp_model, prompt, allow_special=True)
    assert tokenizer.backend.token_to_id("[UNK]") in free.tokens.tolist()
    assert tabes.generate(rxnfp_model, prompt, forbidden=sorted(never)).texts == out.texts
    # Entropies agree: influence leaves out the same tokens.
    masked = (rxnfp_model.tokenizer.encode(prompt), rxnfp_model.info.mask_token_id)
    places = [i for i, t in enumerate(masked[0]) if t == masked[1]]

    def entropy(**options: Any) -> list[float]:
        ids = [torch.tensor(masked[0])]
        sets = ([places[:1]], [places[1:]])
        return tabes.influence(rxnfp_model, ids, *sets, alpha=0.0, **options).predicted_entropy

    assert entropy() == entropy(allow_special=True, forbidden=sorted(never))
    assert entropy() != entropy(allow_special=True)


@pytest.mark.case("F27")
@pytest.mark.parametrize(
    "prompt",
    [
        torch.tensor([1.7, 2.2]),
        torch.tensor([True, False]),
        torch.tensor([1 + 0j]),
        torch.tensor([[1, 2]]),
        torch.tensor(1),
    ],
)
def test_with_masks_takes_what_generate_takes(
    demo_model: tabes.Model, prompt: torch.Tensor
) -> None:
    with pytest.raises(tabes.InputError, match="1-D tensor of integer token ids"):
        _core.with_masks(demo_model.core, prompt, 3)


def test_with_masks(demo_model: tabes.Model) -> None:
    mask = demo_model.info.mask_token_id
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        got = _core.with_masks(demo_model.core, torch.tensor([5, 6, 7, 8], dtype=dtype)[::2], 2)
        assert got.dtype == torch.int64
        assert got.tolist() == [5, 7, mask, mask]
    assert _core.with_masks(demo_model.core, torch.tensor([], dtype=torch.long), 1).tolist() == [
        mask
    ]
    for length in (0, -1, demo_model.info.max_length, 10**13, 2**63 - 1):
        with pytest.raises(tabes.InputError, match="gen_length"):
            _core.with_masks(demo_model.core, torch.tensor([5]), length)


def test_settings_are_those_transformers_reads(tmp_path: Path) -> None:
    """The tokens and flags that transformers ends up with, from the older files and the newer."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (old / "added_tokens.json").write_text(json.dumps({"[ENT]": 7, "covid19": 8}))
    (old / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (old / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["[ENT]"]})
    )
    decoder = {
        "7": {"content": "[ENT]", "special": True, "lstrip": True},
        "8": {"content": "covid19", "single_word": True, "normalized": False},
    }
    (new / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "BertTokenizer",
                "added_tokens_decoder": decoder,
                "eos_token": {"content": "[SEP]", "__type": "AddedToken"},
            }
        )
    )
    for folder in (old, new):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = _core.read_tokenizer_settings(str(folder))
        assert [t.id for t in ours.added_tokens] == [7, 8]
        for token in ours.added_tokens:
            wanted = theirs.added_tokens_decoder[token.id]
            for name in ("content", "special", "lstrip", "rstrip", "single_word", "normalized"):
                assert getattr(token, name) == getattr(wanted, name), (folder.name, name)
        for key, text in ours.named_tokens.items():
            assert getattr(theirs, key) == text
    assert _core.read_tokenizer_settings(str(new)).named_tokens == {"eos_token": "[SEP]"}


def write_bert(folder: Path, **tensors: torch.Tensor) -> Any:
    """A random BERT in `folder` whose file has `tensors` as well; returns transformers' model."""
    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=40, mask_token_id=4,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.BertForMaskedLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if tensors:
        weights = {**load_file(folder / "model.safetensors"), **tensors}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.case("U2")
def test_heads_of_another_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AntiBERTy's layout: a complete masked language model beside heads of its own."""
    heads = {
        f"cls.{name}.{part}": torch.randn(3, 32)[: 3 if part == "weight" else 1]
        for name in ("species", "chain", "graft")
        for part in ("weight", "bias")
    }
    heads["bert.pooler.dense.weight"] = torch.randn(32, 32)
    theirs = write_bert(tmp_path, **heads)
    change_config(tmp_path, architectures=["AntiBERTy"])
    with pytest.raises(tabes.CheckpointError, match=r"ignore=\[\"cls\.chain\.\*\", \"cls\.graft"):
        tabes.load(tmp_path)
    patterns = ["cls.species.*", "cls.chain.*", "cls.graft.*"]
    with caplog.at_level("INFO", logger="tabes"):
        model = tabes.load(tmp_path, ignore=patterns)
    assert [r.message.split(": ")[-1] for r in caplog.records] == ["bert.pooler.dense.*"]
    tokens = torch.tensor([[2, 4, 7, 4, 9, 3]])
    with torch.no_grad():
        wanted = theirs(tokens).logits
    assert torch.allclose(model.logits(tokens), wanted, atol=3e-5)
    for wrong, message in (
        (["cls.species.*", "nowhere.*"], "nowhere"),
        (["cls.*"], "leaves out"),
        ("cls.species.*", "a list of patterns"),
        ([7], "must be a string"),
    ):
        with pytest.raises(tabes.InputError, match=message):
            tabes.load(tmp_path, ignore=wrong)  # type: ignore[arg-type]
    options = [f"--ignore={pattern}" for pattern in patterns]
    assert main(["info", str(tmp_path), *options]) == 0
    assert main(["info", str(tmp_path)]) != 0


@pytest.mark.case("U1")
def test_names_with_a_prefix(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = write_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {f"module._orig_mod.{name}": value for name, value in weights.items()},
        tmp_path / "model.safetensors",
    )
    tokens = torch.tensor([[2, 4, 7, 3]])
    with torch.no_grad():
        wanted = theirs(tokens).logits
    assert torch.allclose(tabes.load(tmp_path).logits(tokens), wanted, atol=3e-5)


@pytest.mark.case("U1")
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_was_saved_from_inside(tiny_llada: Make, prefix: str, tied: bool) -> None:
    """LLaDA's names without their leading "model."."""
    from safetensors.torch import load_file, save_file

    folder, _ = tiny_llada(n_layers=1, vocab=40)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if tied:  # a copy of the table is written all the same
        weights["model.transformer.ff_out.weight"] = weights["model.transformer.wte.weight"].clone()
        save_file(weights, file)
        change_config(folder, weight_tying=True)
    tokens = torch.tensor([[4, 7, 3, 9]])
    wanted = tabes.load(folder).logits(tokens)
    inner = {prefix + name.removeprefix("model."): value for name, value in weights.items()}
    assert not any("model." in name for name in inner)
    save_file(inner, file)
    assert torch.equal(tabes.load(folder).logits(tokens), wanted)
    # Only the tensors tell the family.
    change_config(folder, model_type=..., architectures=...)
    assert torch.equal(tabes.load(folder).logits(tokens), wanted)
    table = prefix + "transformer.wte.weight"
    save_file({n: v for n, v in inner.items() if n != table}, file)
    with pytest.raises(tabes.CheckpointError, match=r"transformer\.wte\.weight\" .* is missing"):
        tabes.load(folder)
    save_file(inner | {prefix + "more": torch.ones(2)}, file)
    with pytest.raises(tabes.CheckpointError, match="more"):
        tabes.load(folder)
    assert torch.equal(tabes.load(folder, ignore=["more"]).logits(tokens), wanted)


@pytest.mark.case("F12")
@pytest.mark.parametrize("name", ["query.weight", "key.bias"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_weight_that_is_nan(tmp_path: Path, name: str, dtype: str) -> None:
    from safetensors.torch import load_file, save_file

    write_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    full = f"bert.encoder.layer.0.attention.self.{name}"
    weights[full].view(-1)[-1] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    last = r"\[31, 31\]" if name == "query.weight" else r"\[31\]"
    with pytest.raises(tabes.CheckpointError, match=rf"{full}\" is NaN at {last}"):
        tabes.load(tmp_path, dtype=dtype)


@pytest.mark.case("F25")
def test_a_header_without_metadata(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_bert(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = None
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + size :])
    load_file(path)  # the reference reader takes it
    tabes.load(tmp_path)


@pytest.mark.case("R14")
def test_errors_quote_any_bytes(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    write_bert(tmp_path / "whole")
    (tmp_path / "whole").rename(folder)
    assert tabes.load(folder).info.vocab_size == 25
    (folder / "model.safetensors").write_bytes(b"\x01" + b"\0" * 7 + b"\xff")
    with pytest.raises(tabes.CheckpointError, match=r"m\\xff/model\.safetensors: invalid JSON"):
        tabes.load(folder)


@pytest.mark.case("R14")
@pytest.mark.parametrize("text", ["\udcff", "a\udc80b", "\x1b[31m", "x" * 3000, "a\0b"])
def test_errors_quote_any_name(tmp_path: Path, text: str) -> None:
    def said(error: type[tabes.Error], call: Callable[..., Any], *given: Any, **named: Any) -> None:
        with pytest.raises(error) as caught:
            call(*given, **named)
        assert str(caught.value).replace("\n", "").isprintable()

    said(tabes.CheckpointError, tabes.load, text)
    said(tabes.CheckpointError, tabes.load, tmp_path / text)
    said(tabes.CheckpointError, tabes.convert, tmp_path / text, tmp_path / "to")
    said(tabes.InputError, tabes.load, "moses", dtype=text)
    said(tabes.Error, tabes.load, "moses", device=text)
    said(tabes.InputError, tabes.load, "moses", ignore=[text])
    said(tabes.InputError, tabes.make_policy, "boe", **{text: 1})
    said(tabes.InputError, tabes.make_policy, "boe", rule=text)


@pytest.mark.case("U5")
def test_a_hub_repository(tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    write_bert(snapshot)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrst"]
    (snapshot / "vocab.txt").write_text("\n".join(words))
    config = (snapshot / "config.json").read_bytes()
    (snapshot / "config.json").write_bytes(b"\xef\xbb\xbf" + config)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    model = tabes.load(root)
    assert model.path == snapshot
    assert tabes.load(root / "snapshots").path == snapshot
    assert model.tokenizer is not None
    assert model.info.special_token_ids == [0, 1, 2, 3]
    (root / "refs" / "main").write_text("gone")
    with pytest.raises(tabes.CheckpointError, match=r"snapshots/gone: no such folder"):
        tabes.load(root)
