"""``tabes info``: what a checkpoint is."""

from __future__ import annotations

import argparse
from typing import Any

import tabes
from tabes.command_line import add_model, load_model, print_json


def configure(command: argparse.ArgumentParser) -> None:
    command.description = "Load a checkpoint and describe it."
    add_model(command, optional=True)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    model = load_model(arguments)
    info, tokenizer = model.info, model.tokenizer
    values: dict[str, Any] = {
        "path": str(model.path),
        "family": info.family,
        "parameters": info.parameters,
        "num_layers": info.num_layers,
        "hidden_size": info.hidden_size,
        "vocab_size": info.vocab_size,
        "max_length": info.max_length,
        "mask_token_id": info.mask_token_id,
        "eos_token_id": info.eos_token_id,
        "eos_token_ids": list(info.eos_token_ids),
        "bos_token_id": info.bos_token_id,
        "pad_token_id": info.pad_token_id,
        "device": str(info.device),
        "dtype": str(info.dtype),
        "tokenizer_size": None if tokenizer is None else tokenizer.vocab_size,
        "mask_token": None if tokenizer is None else tokenizer.mask_token,
        "chat_template": tokenizer is not None and tokenizer.chat_template is not None,
        "tabes": tabes.__version__,
    }
    if arguments.json:
        print_json(values)
    else:
        for name, value in values.items():
            print(f"{name:15} {_plain(value)}")
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
