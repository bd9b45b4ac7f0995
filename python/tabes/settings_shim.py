"""Read in Python until the core reads these files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabes._core import CheckpointError


@dataclass
class Added:
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True


@dataclass
class TokenizerSettings:
    named_tokens: dict[str, str]
    additional_special_tokens: list[str]
    added_tokens: list[Added]
    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None
    tokenizer_class: str
    chat_template: str | None


def _read_json(path: Path) -> dict[str, Any]:
    from tabes.tokenizer_files import _read_text

    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _names(config: dict[str, Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for key, value in config.items():
        if key.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                names[key] = text
    return names


def read_tokenizer_settings(directory: Path) -> TokenizerSettings:
    path = directory / "tokenizer_config.json"
    config = _read_json(path)
    named = {**_names(_read_json(directory / "special_tokens_map.json")), **_names(config)}
    flags: list[Any] = []
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{path} has {key}={value!r}: it must be true or false")
        flags.append(value)
    template = config.get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path} has a chat_template that is neither a string nor a list")
    if "added_tokens_decoder" in config:
        added = [
            Added(
                int(k),
                **{
                    "normalized": not v.get("special"),
                    **{a: b for a, b in v.items() if a in Added.__annotations__},
                },
            )
            for k, v in config["added_tokens_decoder"].items()
        ]
    else:
        special = set(named.values()) | set(config.get("additional_special_tokens", []))
        added = [
            Added(i, t, t in special, normalized=t not in special)
            for t, i in _read_json(directory / "added_tokens.json").items()
        ]
    added.sort(key=lambda t: t.id)
    return TokenizerSettings(
        named,
        config.get("additional_special_tokens", []),
        added,
        flags[0],
        flags[1],
        flags[2],
        config.get("tokenizer_class", ""),
        template,
    )
