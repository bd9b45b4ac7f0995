"""Tokenizers and chat templates of checkpoint folders, against transformers where it does the same.

Everything is built here and offline: folders of a few lines, vocabularies of a few dozen tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tabes import CheckpointError, InputError
from tabes.text import Tokenizer
from tabes.tokenizer_files import load_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import BertTokenizer, PreTrainedTokenizerFast

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"


def write(folder: Path, **files: Any) -> Path:
    """Writes files named by keywords (vocab_txt: vocab.txt); what is not text or bytes, as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (folder / f"{stem}.{suffix}").write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def load(folder: Path, mask_token_id: int | None = None, **files: Any) -> Tokenizer:
    tokenizer = load_tokenizer(write(folder, **files), mask_token_id)
    assert tokenizer is not None
    return tokenizer


def lines(tokens: str) -> str:
    """A vocab.txt of tokens separated by blanks; _ stands for the blank itself."""
    return tokens.replace(" ", "\n").replace("_", " ")


def byte_level(*special: str, frame: bool = False) -> Backend:
    """Byte-level BPE as LLaDA and Dream have it: 256 bytes, two merges, then `special`."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġhe"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("Ġ", "he")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    if frame:
        ends = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
        template = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
        backend.post_processor = template
    return backend


SMALL = {"vocab_txt": "[UNK]\na\n##b"}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
LLADA = """{{ bos_token }}{% for message in messages %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {# dropped, with its line #}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>
{{- message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{% endif %}
"""
QWEN = """{%- if tools is not none %}# Tools{% endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}{{ message | tojson(separators=(',', ':'), sort_keys=true) }}{% endif %}
    {%- if documents is not none %}D{% endif %}
{%- endfor %}
{{ ns.turns }}{{ unk_token }}{{ strftime_now('%Y')[:2] }}{{ messages | tojson(indent=1) }}"""
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "he<b> & 'é' 語"}],
    [{"role": "system", "content": "Be."}, {"role": "user", "content": "  he\n\n he "}],
    [{"role": r, "content": r[:2]} for r in ("user", "assistant", "user", "assistant", "user")],
]


@pytest.mark.case("F06")
@pytest.mark.parametrize("template", [PLAIN, LLADA, QWEN], ids=["plain", "llada", "qwen"])
@pytest.mark.parametrize("chat", CHATS, ids=["one", "system", "long"])
def test_chat_is_what_transformers_makes_of_it(
    tmp_path: Path, template: str, chat: list[dict[str, Any]]
) -> None:
    backend = byte_level(BOS, EOS)
    names = {"bos_token": BOS, "eos_token": EOS, "chat_template": template}
    ours = load(tmp_path, 300, tokenizer_json=backend.to_str(), tokenizer_config_json=names)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.render_chat(chat) == text
    assert ours.encode_chat(chat, 3) == ([*ids, 300, 300, 300], len(ids))
    # To be filled in place, like a text: no reply is begun.
    ids = theirs.apply_chat_template(chat, add_generation_prompt=False, return_dict=False)
    assert ours.encode_chat(chat, None) == (ids, 0)


def test_blocks_are_trimmed_and_special_tokens_named(tmp_path: Path) -> None:
    # The older file goes first where the newer has no added_tokens_decoder, as in transformers.
    config = {"bos_token": "no", "eos_token": None, "chat_template": LLADA}
    write(tmp_path, special_tokens_map_json={"bos_token": BOS, "eos_token": {"content": EOS}})
    tokenizer = load(tmp_path, **SMALL, tokenizer_config_json=config)
    wanted = f"{BOS}<|start_header_id|>user<|end_header_id|>x{EOS}\nassistant:\n"
    assert tokenizer.render_chat([{"role": "user", "content": " x "}]) == wanted


LISTED = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default"}]


@pytest.mark.parametrize(
    ("config", "wanted"), [("x", "x"), (LISTED, "default"), (LISTED[:1], None), (None, None)]
)
def test_where_the_template_comes_from(tmp_path: Path, config: Any, wanted: str | None) -> None:
    tokenizer = load(tmp_path, **SMALL, tokenizer_config_json={"chat_template": config})
    assert tokenizer.chat_template == wanted
    if wanted is None:
        with pytest.raises(InputError, match="no chat template"):
            tokenizer.render_chat(CHATS[0])
    else:
        assert tokenizer.render_chat(CHATS[0]) == wanted
    # A file of its own goes before the config.
    assert load(tmp_path, chat_template_jinja="file").render_chat(CHATS[0]) == "file"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
        ("{{ messages.append(messages[0]) }}", "unsafe"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{% if %}", "Expected an expression"),
        ("{{ 5 | dictsort }}", "items"),  # AttributeError, not one of jinja2's own
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10 ** 15 }}", "MemoryError"),
    ],
)
def test_a_template_that_fails_or_misbehaves(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = load(tmp_path, **SMALL, chat_template_jinja=template)
    chat = [{"role": "user", "content": "a"}]
    with pytest.raises(InputError, match=f"chat template failed.*{message}"):
        tokenizer.render_chat(chat)
    assert chat == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user"}, "message 1 has the keys .'role'.: .*'content'"),
        ({"content": "x"}, "message 1 has the keys .'content'.: .*'role'"),
        ("role and content", "message 1 is of type str"),
        (5, "message 1 is of type int"),
    ],
)
def test_messages_need_role_and_content(tmp_path: Path, message: Any, named: str) -> None:
    tokenizer = load(tmp_path, **SMALL, chat_template_jinja=PLAIN)
    with pytest.raises(InputError, match=named):
        tokenizer.encode_chat([*CHATS[0], message], 0)


SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK] "
PIECES = SPECIAL + "the un ##aff ##able ##s cafe café ##é naive Paris paris 北 京 ! . , ' don t ##B"
TEXTS = [
    "the unaffable北京cafes, don't!",
    "THE Café in PARIS . Paris",
    "cafe\u0301 naïve",  # a combining accent, and a word that only stripping makes known
    "the [MASK] un[MASK]able [mask].",
    " \tthe\u00a0\u200bun\ufffdaff\n",  # blanks of several kinds, and characters that are dropped
    "",
]
# Lower case, strip accents, split Chinese characters: None leaves it to the default.
OPTIONS = [(True, None, None), (False, None, True), (True, False, None), (False, True, False)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_wordpiece_ids_are_those_of_transformers(
    tmp_path: Path, options: tuple[bool | None, ...], text: str
) -> None:
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    config = {k: v for k, v in zip(names, options, strict=True) if v is not None}
    # Lines end only at line feeds: Unicode's other separators are tokens with an id of their own.
    vocabulary = lines(f"{SPECIAL}\u2028 \x85 {PIECES.removeprefix(SPECIAL)}") + "\n"
    ours = load(tmp_path, vocab_txt=vocabulary, tokenizer_config_json=config)
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), **config)
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    # transformers would hide the mask as well, which one wants to see here.
    assert ours.decode(ids) == theirs.decode([i for i in ids if i not in (1, 2, 3)])


def test_wordpiece_case_is_told_from_the_vocabulary(tmp_path: Path) -> None:
    for first, wanted in (("Paris", 5), ("other", 6)):
        tokenizer = load(tmp_path, vocab_txt=lines(SPECIAL + f"{first} paris ##s"))
        assert tokenizer.encode("Paris") == [2, wanted, 3]


@pytest.mark.parametrize("text", ["the un", "[CLS] the un", "the un [SEP]", "[CLS]the un[SEP]"])
def test_frame_is_not_doubled(tmp_path: Path, text: str) -> None:
    tokenizer = load(tmp_path, vocab_txt=lines(PIECES))
    assert tokenizer.encode(text) == [2, 5, 6, 3]
    assert tokenizer.encode_prompt(text, 2) == ([2, 5, 6, 4, 4, 3], 3)
    assert tokenizer.encode_prompt(text, 0) == ([2, 5, 6, 3], 3)
    assert tokenizer.decode([2, 5, 4, 6, 3, 0]) == "the [MASK] un"


SMILES = SPECIAL + "C c ( ) = O N 1 Cl Br >> [nH] [Na+] %12 . ["
LETTERS, TEXT8, WORDS = "[UNK] [MASK] a b", "[UNK] [MASK] _ a b", "<unk> <mask> to be or not"


@pytest.mark.parametrize(
    ("vocabulary", "text", "tokens"),
    [
        (SMILES, "C%12Cl[nH].[Na+]>>[MASK]", "[CLS] C %12 Cl [nH] . [Na+] >> [MASK] [SEP]"),
        (LETTERS, "ab[MASK]a", "a b [MASK] a"),
        (TEXT8, " a b[MASK] ", "_ a _ b [MASK] _"),  # no blank may be lost
        (WORDS, "to be [MASK] not", "to be <mask> not"),
    ],
    ids=["smiles", "letters", "text8", "words"],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_word_level_vocabulary(
    tmp_path: Path, vocabulary: str, text: str, tokens: str, newline: str
) -> None:
    tokenizer = load(tmp_path, vocab_txt=lines(vocabulary + " ").replace("\n", newline))
    ids = [vocabulary.split().index(token) for token in tokens.split()]
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text.replace("[MASK]", tokenizer.mask_token)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.vocab_size == len(vocabulary.split())


@pytest.mark.parametrize(
    ("vocabulary", "text", "token", "position"),
    [
        (SMILES, "CC[Si](C)C", "[Si]", 2),
        (SMILES, "CC\nC", "\\n", 2),
        (LETTERS, "  a bä", "ä", 5),
        (WORDS, "to be héld", "héld", 6),
    ],
)
def test_what_the_vocabulary_lacks_is_named(
    tmp_path: Path, vocabulary: str, text: str, token: str, position: int
) -> None:
    tokenizer = load(tmp_path, vocab_txt=lines(vocabulary))
    with pytest.raises(InputError) as caught:
        tokenizer.encode(text)
    assert str(caught.value).startswith(f"'{token}' at character {position} of ")
    unknown = next(name for name in vocabulary.split() if "unk" in name.lower())
    assert vocabulary.split().index(unknown) in tokenizer.encode(unknown)  # written on purpose


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("culprit", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizers package"),
        ("tokenizer.json", {"model": {"type": "New"}}, "tokenizers package"),
        ("tokenizer.json", LFS, "git lfs pull"),
        ("tokenizer.json", b"\xe9", "utf-8"),
        ("vocab.txt", LFS, "git lfs pull"),
        ("vocab.txt", b"[UNK]\na\xe9", "utf-8"),
        ("vocab.txt", "", "no tokens"),
        ("vocab.txt", "[PAD]\n[UNK]\n\n", "no tokens"),
        ("vocab.txt", "a\nb", r"neither \[UNK\] nor <unk>"),
        ("chat_template.jinja", LFS, "git lfs pull"),
        ("chat_template.jinja", b"\xe9", "utf-8"),
        ("tokenizer_config.json", [1], "is not a JSON object"),
        ("tokenizer_config.json", "{", "invalid JSON"),
        ("tokenizer_config.json", b'{"bos_token": "\xe9"}', "UTF-8"),
        ("tokenizer_config.json", {"do_lower_case": "no"}, "it must be true or false"),
        ("tokenizer_config.json", {"chat_template": ["x"]}, "chat_template"),
        ("special_tokens_map.json", "7", "is not a JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, culprit: str, content: Any, message: str) -> None:
    assert load_tokenizer(tmp_path) is None  # no files at all are no damage
    write(tmp_path, **{**SMALL, culprit.replace(".", "_"): content})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith((f"{tmp_path / culprit} ", f"{tmp_path / culprit}: "))


@pytest.mark.parametrize("mask", [40, 300], ids=["in-vocabulary", "beyond-vocabulary"])
def test_mask_only_the_model_knows(mask: int) -> None:
    backend = byte_level(BOS, EOS, frame=True)
    bos, eos, he = map(backend.token_to_id, (BOS, EOS, "he"))
    tokenizer = Tokenizer(backend, mask_token_id=mask)
    name = backend.id_to_token(mask) or "[MASK]"  # a name of its own does not rule out [MASK]
    wanted = [bos, mask, he, mask, mask, he, eos]
    for written in (name, "[MASK]"):
        assert tokenizer.encode(f"{written}he{written}{written}he") == wanted
    assert tokenizer.decode(wanted) == f"{name}he{name}{name}he"
    assert tokenizer.encode_prompt("he", 2) == ([bos, he, mask, mask, eos], 2)
    assert tokenizer.mask_token == tokenizer.piece(mask) == name


def test_mask_the_tokenizer_declares() -> None:
    backend = byte_level(BOS, EOS, MASK, frame=True)
    bos, eos, mask, he, blank_he = map(backend.token_to_id, (BOS, EOS, MASK, "he", "Ġhe"))
    tokenizer = Tokenizer(backend)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == (MASK, mask)
    wanted = [bos, he, mask, blank_he, mask, eos]
    assert tokenizer.encode(f"he[MASK] he{MASK}") == wanted
    assert tokenizer.decode(wanted) == f"he{MASK} he{MASK}"
    assert tokenizer.encode_prompt(f"{BOS}he{EOS}", 2) == ([bos, he, mask, mask, eos], 2)


def test_no_mask_known() -> None:
    backend = byte_level()
    backend.enable_truncation(2)  # stored settings that must not apply
    backend.enable_padding(length=9)
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("[MASK]")) == "[MASK]"  # plain text
    with pytest.raises(InputError, match="pass mask_token_id"):
        tokenizer.encode_prompt("he", 1)


def test_special_tokens_named_only_by_the_config(tmp_path: Path) -> None:
    # They are plain words of the vocabulary: only the config says that they are special.
    vocabulary = {"<unk>": 0, "he": 1, "</s>": 2, "[MASK]": 3, "<gap>": 4}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = {"eos_token": "</s>", "mask_token": "<gap>", "pad_token": "<not in the vocabulary>"}
    ours = load(tmp_path, tokenizer_json=backend.to_str(), tokenizer_config_json=config)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **config)
    assert ours.encode("he<gap>he</s>") == theirs("he<gap>he</s>")["input_ids"] == [1, 4, 1, 2]
    assert ours.decode([1, 2, 1]) == theirs.decode([1, 2, 1], skip_special_tokens=True) == "he he"
    assert ours.vocab_size == len(theirs) == len(vocabulary) + 1
    assert ours.decode([1, 4, 1]) == "he <gap> he"
    assert ours.mask_token_id == 4  # not [MASK], which the config does not name


def test_pieces(tmp_path: Path) -> None:
    words = load(tmp_path / "words", vocab_txt=lines(WORDS))
    assert [words.piece(i) for i in (0, 1, 2, 99)] == ["<unk>", "<mask>", "to", "<99>"]
    wordpiece = load(tmp_path / "wordpiece", vocab_txt=lines(PIECES))
    assert [wordpiece.piece(i) for i in (2, 4, 6, 8)] == ["[CLS]", "[MASK]", " un", "able"]
    backend = byte_level(EOS, MASK)
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = Tokenizer(backend)
    ids = map(backend.token_to_id, ["Ġhe", "he", "Ċ", "Ã", EOS, MASK, "<think>"])
    assert [tokenizer.piece(i) for i in ids] == [" he", "he", "\n", "\ufffd", EOS, MASK, "<think>"]
