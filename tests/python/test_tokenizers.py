# ruff: noqa: RUF001, SIM905  (letters that look alike are the point)
"""Ids of thirty texts a kind of tokenizer, against what transformers reads from the same folder.

Every tokenizer is built here from code, with a vocabulary of a few dozen tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
from tabes import CheckpointError, InputError
from tabes.text import Tokenizer
from tabes.tokenizer_files import load_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import (
    BertTokenizer,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    PreTrainedTokenizerFast,
)

TEXTS = [
    "",
    " ",
    "the cat",
    "The Cat SAT on the mat.",
    "un[MASK]able [MASK]",
    "[MASK][MASK] the[MASK]",
    "[CLS] the cat [SEP]",
    "[UNK] [PAD] [unused1]",
    "[mask] [Mask] [ MASK ]",
    "cafe\u0301 café CAFÉ",
    "naïve über ÜBER Straße ﬁne",
    "北京 the北京cat",
    "日本語のテキスト 한국어",
    "😀 the 😀cat 👩‍👩‍👧",
    "a\u0300\u0301\u0302\u0303 e\u0328",
    "the\u00a0cat\u2003sat\u3000on",
    "the\u200bcat\u200d \ufeffthe",
    "the\x00cat \x07 \x1b[0m \ufffd",
    "\tthe\ncat\r\nsat\u2028on\u2029the\x85mat\x0b.\x0c",
    "שלום עולם مرحبا the",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101,
    "the" * 60,
    "don't... (the) -- «cat» “sat” 1,000.5 50% #on @the",
    "covid19 Covid19 xcovid19x the covid19, cat",
    "[ENT] the[ENT]cat [ENT][ENT]",
    "<gap> the<gap>cat <gap> ",
    "THE [ENT] İstanbul ılık ΑΒΓ ß ẞ",
    "ℝ ℤ № ½ ² ™",
    "the cat " * 20,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C Z 0 9",
]
SPECIAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = (
    "the cat sat on mat un ##aff ##able ##s ##t cafe café ##é naive naïve uber über strasse don t"
    " 北 京 日 本 語 ! . , ' - ( ) # @ % 1 000 ##000 ½ x ##x ##xx 😀 ℝ co ##vid ##19"
    " a b c d e ##a ##b ##c ##e"
).split()
CAPITALS = ["The", "Cat", "SAT", "A", "B", "Paris"]


def write(folder: Path, **files: Any) -> Path:
    """Writes files named by keywords (vocab_txt: vocab.txt); what is no text, as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder


def load(folder: Path, mask_token_id: int | None = None) -> Tokenizer:
    tokenizer = load_tokenizer(folder, mask_token_id)
    assert tokenizer is not None
    return tokenizer


def same_ids(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    assert len(texts) >= 30
    for text in texts:
        # A frame that is written already is not doubled; transformers doubles it.
        if not text.startswith(("[CLS]", "<cls>")) and not text.endswith("<eos>"):
            assert ours.encode(text) == theirs(text)["input_ids"], text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_rendered(text, None).ids == plain, text


WORDPIECE = {
    "cased": {"do_lower_case": False},
    "uncased": {"do_lower_case": True},
    "accents kept": {"do_lower_case": True, "strip_accents": False},
    "cased without accents": {"do_lower_case": False, "strip_accents": True},
    "characters together": {"do_lower_case": True, "tokenize_chinese_chars": False},
}


@pytest.mark.case("F04")
@pytest.mark.parametrize("config", WORDPIECE.values(), ids=WORDPIECE)
def test_wordpiece(tmp_path: Path, config: dict[str, Any]) -> None:
    vocabulary = "\n".join([*SPECIAL, *PIECES, *CAPITALS]) + "\n"
    write(tmp_path, vocab_txt=vocabulary, tokenizer_config_json=config)
    same_ids(load(tmp_path), BertTokenizer.from_pretrained(tmp_path), TEXTS)
    size = len(vocabulary.split())
    added = {"covid19": size, "[ENT]": size + 1}
    write(tmp_path, added_tokens_json=added)
    same_ids(load(tmp_path), BertTokenizer.from_pretrained(tmp_path), TEXTS)
    assert load(tmp_path).encode("covid19 [ENT]")[1:3] == [size, size + 1]


FLAGS = [
    {},
    {"special": True},
    {"lstrip": True, "rstrip": True, "normalized": False},
    {"single_word": True, "normalized": True},
    {"special": True, "lstrip": True, "normalized": False},
    {"rstrip": True, "single_word": True},
]


@pytest.mark.case("F04")
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_added_tokens_of_the_config(
    tmp_path: Path, flags: dict[str, bool], lower: bool, file: str
) -> None:
    tokens = [*SPECIAL, *PIECES, *CAPITALS]
    decoder = {
        str(len(tokens) + i): {"content": content, **flags}
        for i, content in enumerate(("covid19", "[ENT]", "<gap>"))
    }
    config = {"do_lower_case": lower, "added_tokens_decoder": decoder}
    config["tokenizer_class"] = "BertTokenizer"
    write(tmp_path, vocab_txt="\n".join(tokens), tokenizer_config_json=config)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    if file == "tokenizer.json":
        bare = {k: v for k, v in config.items() if k != "added_tokens_decoder"}
        write(tmp_path, tokenizer_config_json=bare)
        saved = BertTokenizer.from_pretrained(tmp_path).backend_tokenizer.to_str()
        write(tmp_path, tokenizer_json=saved, tokenizer_config_json=config)
    same_ids(load(tmp_path), theirs, TEXTS)


@pytest.mark.case("F04")
def test_added_tokens_under_ids_with_a_gap(tmp_path: Path) -> None:
    # The ids are those of the file, as the embeddings are; the backend would count on by itself.
    tokens = [*SPECIAL, *PIECES, *CAPITALS]
    added = {"[ENT]": len(tokens) + 10, "covid19": len(tokens) + 3}
    write(tmp_path, vocab_txt="\n".join(tokens), added_tokens_json=added)
    tokenizer = load(tmp_path)
    assert tokenizer.encode("the [ENT] covid19")[2:-1] == [added["[ENT]"], added["covid19"]]
    assert tokenizer.decode([added["[ENT]"], 6, added["covid19"]]) == "[ENT] the covid19"


@pytest.mark.case("F04")
@pytest.mark.parametrize("added", [{"the": 95}, {"[ENT]": 7}], ids=["known", "taken"])
def test_added_tokens_that_contradict_the_vocabulary(tmp_path: Path, added: Any) -> None:
    write(tmp_path, vocab_txt="\n".join([*SPECIAL, *PIECES]), added_tokens_json=added)
    with pytest.raises(CheckpointError, match=r"added token .* has the id .* vocab.txt"):
        load(tmp_path)


UNCASED = ["ℝ", "##ℤ", "№", "ⅷ"]


@pytest.mark.case("F03")
@pytest.mark.parametrize(
    ("extra", "lower"),
    [
        (UNCASED, True),
        ([*UNCASED, *(f"w{i}" for i in range(2000)), "COVID"], True),  # one among thousands
        (["[ENT]", "[DATE]", "<URL>", "<START>"], True),
        (["Ⅷ", "Ⓐ"], True),  # numeral and sign have small forms and are no letters
        (CAPITALS, False),
        (["Ärger", *(f"w{i}" for i in range(20))], False),
    ],
    ids=["symbols", "one of thousands", "names", "signs", "capitals", "few"],
)
def test_casing_is_told_from_the_vocabulary(tmp_path: Path, extra: list[str], lower: bool) -> None:
    vocabulary = [*SPECIAL, *PIECES, *extra]
    write(tmp_path, vocab_txt="\n".join(dict.fromkeys(vocabulary)))
    theirs = BertTokenizer.from_pretrained(tmp_path, do_lower_case=lower)
    same_ids(load(tmp_path), theirs, [*TEXTS, "The Capital of France is [MASK]."])


@pytest.mark.case("F03", "F04")
def test_an_added_token_says_nothing_of_case(tmp_path: Path) -> None:
    vocabulary = [*SPECIAL, *PIECES, "COVID"]
    write(tmp_path, vocab_txt="\n".join(vocabulary), added_tokens_json={"COVID": 62})
    same_ids(load(tmp_path), BertTokenizer.from_pretrained(tmp_path), TEXTS)


@pytest.mark.case("F04")
@pytest.mark.parametrize("file", ["tokenizer_config_json", "special_tokens_map_json"])
@pytest.mark.parametrize("tokenizer", ["vocab_txt", "tokenizer_json"])
def test_tokens_that_are_named_and_have_no_id(tmp_path: Path, file: str, tokenizer: str) -> None:
    # transformers numbers them behind all others: first the roles, whatever their order here.
    names = {"additional_special_tokens": ["<x>", "[ENT]"], "eos_token": "<e>"}
    names |= {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<b>"}
    tokens = [*SPECIAL, *PIECES]
    write(tmp_path, vocab_txt="\n".join(tokens), tokenizer_config_json={})
    kind: Any = BertTokenizer
    if tokenizer == "tokenizer_json":
        saved = BertTokenizer.from_pretrained(tmp_path).backend_tokenizer.to_str()
        write(tmp_path, tokenizer_json=saved)
        kind = PreTrainedTokenizerFast
    write(tmp_path, **{file: names})
    theirs = kind.from_pretrained(tmp_path)
    texts = [*TEXTS, "the<b>cat <e> <x>"]
    for text in texts:
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert load(tmp_path).encode_rendered(text, None).ids == plain, text
    size = len(tokens)
    assert load(tmp_path).encode_rendered("<b><e><x>", None).ids == [*range(size, size + 3)]
    # What the model has no row for is text.
    tokenizer_of_model = load_tokenizer(tmp_path, None, size + 1)
    assert tokenizer_of_model is not None
    ids = tokenizer_of_model.encode_rendered("<b><e>", None).ids
    assert ids[0] == size
    assert max(ids) == size
    assert len(ids) > 2


@pytest.mark.case("U5")
@pytest.mark.parametrize("tokenizer", ["vocab_txt", "tokenizer_json"])
def test_a_byte_order_mark(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, vocab_txt="\n".join([*SPECIAL, *PIECES]))
    wanted = load(tmp_path)
    saved = wanted.backend.to_str() if tokenizer == "tokenizer_json" else None
    content = saved or (tmp_path / "vocab.txt").read_text()
    write(tmp_path, **{tokenizer: "\ufeff" + content}, chat_template_jinja="\ufeffhi")
    got = load(tmp_path)
    assert [got.encode(t) for t in TEXTS] == [wanted.encode(t) for t in TEXTS]
    assert got.chat_template == "hi"


OVERRIDES: list[dict[str, Any]] = [
    {"do_lower_case": False},
    {"do_lower_case": True},
    {"strip_accents": False},
    {"strip_accents": True, "do_lower_case": False},
    {"tokenize_chinese_chars": False},
    {},
]


@pytest.mark.case("F13")
@pytest.mark.parametrize("config", OVERRIDES, ids=str)
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("named", ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"])
def test_config_beside_tokenizer_json(
    tmp_path: Path, config: dict[str, Any], lowercase: bool, named: str
) -> None:
    vocabulary = {t: i for i, t in enumerate([*SPECIAL, *PIECES, *CAPITALS])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(SPECIAL)
    frame = [(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, frame)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {**config, **names, "tokenizer_class": named}
    write(tmp_path, tokenizer_json=backend.to_str(), tokenizer_config_json=config)
    kind = BertTokenizer if named.startswith("Bert") else PreTrainedTokenizerFast
    same_ids(load(tmp_path), kind.from_pretrained(tmp_path), TEXTS)


NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "accents": normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    ),
    "sequence": normalizers.Sequence([normalizers.BertNormalizer(lowercase=True)]),
}


@pytest.mark.case("F13")
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
@pytest.mark.parametrize("config", OVERRIDES, ids=str)
def test_bert_has_its_own_normalizer(
    tmp_path: Path, config: dict[str, Any], normalizer: Any
) -> None:
    vocabulary = {t: i for i, t in enumerate([*SPECIAL, *PIECES, *CAPITALS])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIAL)
    frame = [(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, frame)
    config = {**config, "tokenizer_class": "BertTokenizerFast"}
    write(tmp_path, tokenizer_json=backend.to_str(), tokenizer_config_json=config)
    same_ids(load(tmp_path), BertTokenizer.from_pretrained(tmp_path), TEXTS)


@pytest.mark.case("F13")
def test_config_without_class_beside_tokenizer_json(tmp_path: Path) -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "the": 1, "The": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    write(tmp_path, tokenizer_json=backend.to_str())
    assert load(tmp_path).encode("The") == [1]
    write(tmp_path, tokenizer_config_json={"do_lower_case": False})
    assert load(tmp_path).encode("The") == [2]
    write(tmp_path, tokenizer_config_json={"model_max_length": 512})  # says nothing of case
    assert load(tmp_path).encode("The") == [1]


CHAT_NAMES = ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>", "[MASK]", "[CLS]"]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "nfc"])
@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level(tmp_path: Path, normalizer: Any, prefix: bool) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    backend = Backend(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CHAT_NAMES)
    backend.add_tokens([AddedToken("covid19", single_word=True), AddedToken("[ENT]", lstrip=True)])
    config = {"bos_token": CHAT_NAMES[0], "eos_token": CHAT_NAMES[1], "mask_token": CHAT_NAMES[2]}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write(tmp_path, tokenizer_json=backend.to_str(), tokenizer_config_json=config)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [*TEXTS, *(f"the{name} cat {name}{name}." for name in CHAT_NAMES)]
    same_ids(load(tmp_path), theirs, texts)
    decoder = {"300": {"content": "<gap>", "special": True}, "275": {"content": "sat"}}
    ours = load(write(tmp_path, tokenizer_config_json={**config, "added_tokens_decoder": decoder}))
    assert [ours.encode(t)[-1] for t in ("the<gap>", "cat sat")] == [300, 275]  # with a gap


def test_words(tmp_path: Path) -> None:
    words = ["<unk>", "<gap>", "</s>", "the", "cat", "sat", "The", "don't...", "covid19,"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = {"unk_token": "<unk>", "mask_token": "<gap>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_json=backend.to_str(), tokenizer_config_json=config)
    ours, theirs = load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    told = 0
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        if 0 in ids:  # nothing is lost in silence
            with pytest.raises(InputError, match="is not in the model's vocabulary of 9 tokens"):
                ours.encode(text.replace("[MASK]", "mask"))
            told += 1
        else:
            assert ours.encode(text) == ids
    assert 10 < told < 30


@pytest.mark.parametrize("named", ["BertTokenizer", "BertTokenizerFast"])
def test_words_of_a_class_of_bert(tmp_path: Path, named: str) -> None:
    # Without ## pieces and yet BERT's: punctuation is split off, and what is unknown is [UNK].
    words = [t for t in (*SPECIAL, *PIECES) if not t.startswith("##")]
    config = {"do_lower_case": True, "tokenizer_class": named}
    write(tmp_path, vocab_txt="\n".join(words), tokenizer_config_json=config)
    same_ids(load(tmp_path), BertTokenizer.from_pretrained(tmp_path), TEXTS)


PROTEIN = "[PAD] [UNK] [CLS] [SEP] [MASK] L A G V E S I K R D T P N Q F Y M H C W X U B Z O".split()
RESIDUES = "DLIPTSSKLVVXUBZO"
SPACED = [
    " ".join("DLIPTSSKLVV") + " [MASK] D T",
    "[MASK] " * 3,
    "D L I P",
    "M K [MASK] [MASK] L",
    " D\tL\nI  P ",
    "D L\r\nI P\r\n",
    *(" ".join(RESIDUES[i:]) for i in range(len(RESIDUES))),
    *(" ".join(RESIDUES[:i] + "K") + " [MASK]" for i in range(8)),
]


@pytest.mark.case("F14")
def test_residues(tmp_path: Path) -> None:
    config = {"do_lower_case": False}
    write(tmp_path, vocab_txt="\n".join(PROTEIN) + "\n", tokenizer_config_json=config)
    ours, theirs = load(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    same_ids(ours, theirs, SPACED)
    for text in SPACED:  # written together, or in lines, they are the same letters
        together = "".join(text.split())
        assert ours.encode(together) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == together
    assert ours.encode("MKTAYIAKQR QISFV\nKSHFS") == ours.encode("MKTAYIAKQRQISFVKSHFS")
    for text, letter in (("M K t", "t"), ("mkt", "m"), ("MKJ", "J"), (">sp MKT", ">")):
        with pytest.raises(InputError, match=f"{letter!r} at character .* is not in the model's"):
            ours.encode(text)


@pytest.mark.case("F14")
@pytest.mark.parametrize("config", [{"do_lower_case": False}, {"do_lower_case": True}, {}], ids=str)
def test_residues_in_a_tokenizer_of_bert(tmp_path: Path, config: dict[str, Any]) -> None:
    # As transformers saves it: BERT's tokenizer makes [UNK] of a protein without blanks.
    write(tmp_path, vocab_txt="\n".join(PROTEIN), tokenizer_config_json={"do_lower_case": False})
    wanted = load(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    assert theirs("MKT")["input_ids"][1:-1] == [PROTEIN.index("[UNK]")]
    theirs.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    saved.pop("do_lower_case")
    write(tmp_path / "saved", tokenizer_config_json={**saved, **config})
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    same_ids(load(tmp_path / "saved"), theirs, SPACED)
    for ours in (load(tmp_path / "saved"), Tokenizer.adapt(theirs)):
        for text in (*SPACED, "MKTAYIAKQR QISFV\nKSHFS", "MK[MASK][MASK]L"):
            ids = wanted.encode(text)
            assert ours.encode(text) == ours.encode("".join(text.split())) == ids
            assert ours.decode(ids) == wanted.decode(ids)
        with pytest.raises(InputError, match=r"'J' at character 2 .* is not in the model's"):
            ours.encode("MKJ")
    assert theirs("MKT")["input_ids"][1:-1] == [PROTEIN.index("[UNK]")]  # it stays as it is


def test_molecules(rxnfp_folder: Path) -> None:
    # rxnfp joins the pieces of this pattern with blanks and gives them to BERT's tokenizer.
    pieces = "CC(=O)Cl.NCC[MASK]>>c1ccccc1 Br[C@@H](F)N [nH] %12 /C=C\\C #N [Na+].[O-]".split()
    ours = load(rxnfp_folder)
    lines = (rxnfp_folder / "vocab.txt").read_text().split()
    theirs = BertTokenizer(str(rxnfp_folder / "vocab.txt"), do_lower_case=False)
    atoms = re.compile(
        r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
        r"|\%[0-9]{2}|[0-9])"
    )
    for piece in pieces:
        tokens = atoms.findall(piece)
        assert "".join(tokens) == piece
        if all(token in lines for token in tokens):
            wanted = [theirs.convert_tokens_to_ids(t) for t in ["[CLS]", *tokens, "[SEP]"]]
            assert ours.encode(piece) == wanted
            assert ours.decode(wanted) == piece


ESM = "<cls> <pad> <eos> <unk> L A G V E S R T I D P K Q N F Y M H W C X B U Z O . -".split()


@pytest.fixture
def esm(tmp_path: Path) -> EsmTokenizer:
    write(tmp_path, vocab_txt="\n".join([*ESM, "<null_1>", "<mask>"]))
    return EsmTokenizer(str(tmp_path / "vocab.txt"))


@pytest.mark.case("N04")
def test_tokenizers_without_a_fast_form(esm: EsmTokenizer) -> None:
    ours = Tokenizer.adapt(esm)
    assert (ours.mask_token, ours.mask_token_id) == ("<mask>", 32)
    texts = [t.replace("[MASK]", "<mask>") for t in SPACED]
    texts += ["".join(t.split()) for t in texts]
    texts += ["MKT.-<null_1>A", "<pad><eos>", "MK<mask><mask>"]
    same_ids(ours, esm, texts)
    assert ours.encode("MK[MASK]L") == [0, 20, 15, 32, 4, 2]
    assert ours.encode("<cls>MK<eos>") == [0, 20, 15, 2]  # a frame is not doubled
    assert ours.encode_prompt("MK", 2) == ([0, 20, 15, 32, 32, 2], 3)
    assert ours.decode([0, 20, 15, 32, 4, 2]) == "MK<mask>L"
    assert ours.decode([20, 3, 15], [False, True, False]) == "M<unk>K"
    assert ours.special_token_ids == [0, 1, 2, 3, 31]
    assert ours.token_id("-") == 30
    for text, letter in (("MKJ", "J"), ("m k", "m"), ("MK <gap>", "<")):
        with pytest.raises(InputError, match=f"{letter!r} at character .* EsmTokenizer"):
            ours.encode(text)
    with pytest.raises(InputError, match="spells the mask token"):
        ours.encode_prompt("MK<mask>", 2)
    assert "EsmTokenizer, 33 tokens, mask '<mask>' = 32" in repr(ours)


@pytest.mark.case("N03", "N04")
def test_a_wrapped_esm_writes_residues(esm: EsmTokenizer) -> None:
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        position_embedding_type="rotary",
    )
    module = EsmForMaskedLM(config).eval()
    special = [0, 1, 2, 3, 31]
    with torch.no_grad():
        module.lm_head.bias[special] = 50.0  # it would rather write nothing else
    model = tabes.wrap(module, tokenizer=esm)
    assert (model.info.special_token_ids, model.info.eos_token_ids) == (special, [])
    out = tabes.generate(model, "MK<mask><mask>LV<mask>", steps=3)
    assert out.texts is not None
    (text,) = out.texts
    assert (text[:2], text[4:6], len(text)) == ("MK", "LV", 7)
    assert set(text) < set(ESM)
    freely = tabes.generate(model, "MK<mask>L", steps=1, allow_special=True)
    assert freely.texts in ([f"MK{esm.convert_ids_to_tokens(i)}L"] for i in special)
    letters = set(range(33)) - {*special, 32}
    only = tabes.generate(model, "MK<mask>L", forbidden=sorted(letters - {29}), steps=1)
    assert only.texts == ["MK.L"]  # a gap is a token like any other: forbid it by name
    none = tabes.generate(model, "MK<mask>L", forbidden=[*sorted(letters - {29, 5}), "."], steps=1)
    assert none.texts == ["MKAL"]


@pytest.mark.case("F10")
def test_the_mask_among_several_names() -> None:
    names = ["[UNK]", "[MASK]", "he"]
    backend = Backend(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    assert Tokenizer.adapt(backend).mask_token == "[MASK]"
    backend.add_special_tokens(["<|mdm_mask|>"])
    assert Tokenizer.adapt(backend).mask_token == "<|mdm_mask|>"


def test_fast_tokenizers_of_transformers(tmp_path: Path) -> None:
    write(tmp_path, vocab_txt="\n".join([*SPECIAL, *PIECES]))
    theirs = BertTokenizer.from_pretrained(tmp_path)
    before = theirs.backend_tokenizer.to_str()
    for given in (theirs, theirs.backend_tokenizer):
        ours = Tokenizer.adapt(given)
        same_ids(ours, theirs, TEXTS)
        assert ours.mask_token_id == 5
    assert theirs.backend_tokenizer.to_str() == before  # ours is a copy
    assert Tokenizer.adapt(ours) is ours
    for given in (object(), "bert", {"vocab": 1}):
        with pytest.raises(InputError, match="give one of transformers or of tokenizers"):
            Tokenizer.adapt(given)


def test_tokens_beyond_the_model(tmp_path: Path, demo_model: tabes.Model) -> None:
    vocabulary = {"[UNK]": 0, "[MASK]": 3, "the": 5, "cat": 40}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = tabes.Model(demo_model.core, tokenizer=Tokenizer(backend, mask_token_id=3))
    assert len(tabes.generate(model, "the [MASK] the", steps=1).tokens) == 3
    with pytest.raises(InputError, match=r"'cat' with the id 40, but the model's tokens are 0..27"):
        tabes.generate(model, "the cat [MASK]", steps=1)
    with pytest.raises(InputError, match="prompt 1 has the token 'cat'"):
        tabes.generate(model, ["the", "cat"], gen_length=2, steps=1)
