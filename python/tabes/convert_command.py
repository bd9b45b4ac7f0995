"""``tabes convert``: pickled checkpoints as safetensors."""

from __future__ import annotations

import argparse

import tabes
from tabes.command_line import print_json


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Write the checkpoint folder SRC, with pytorch_model.bin or its shards, to the new folder "
        "DST with safetensors. Pickled code is never run."
    )
    command.add_argument("src", metavar="SRC")
    command.add_argument("dst", metavar="DST")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    result = tabes.convert(arguments.src, arguments.dst)
    if arguments.json:
        print_json(
            {
                "path": str(result.path),
                "tensors": result.tensors,
                "bytes": result.bytes,
                "files": result.files,
                "config_additions": result.config_additions,
            }
        )
    else:
        print(f"{result.path}: {result.tensors} tensors, {result.bytes / 1e6:.1f} MB")
        for name, value in result.config_additions.items():
            print(f"added to config.json: {name} = {value}")
    return 0
