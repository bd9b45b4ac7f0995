"""Pickled PyTorch checkpoints to safetensors.

The C++ library never opens a pickle. Here torch reads it with ``weights_only=True``, which builds
tensors and plain containers and runs nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from tabes.arguments import shown
from tabes.errors import CheckpointError, InputError
from tabes.pickled import check_kind, read_tensors

_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
# Whatever else describes the model; weights in other formats and code are left behind.
_COPIED = (
    *("*.json", "*.txt", "*.jinja", "*.model", "*.bpe", "*.tiktoken"),
    *("*.md", "LICENSE*", "NOTICE*"),
)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: the new folder, its tensors and bytes, and what config.json gained."""

    path: Path
    tensors: int
    bytes: int
    files: list[str]
    config_additions: dict[str, Any]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Writes the checkpoint `src` again as the folder `dst`, with safetensors for weights.

    Tensors keep their names, shapes, dtypes and values; those that share memory are written out in
    full. Sharded checkpoints keep their shards, and one shard at a time is in memory. Tokenizer and
    config files are copied; if config.json does not say ``model_type`` and the weights do, it is
    added. `dst` appears only when everything is written.

    Args:
        src: folder with pytorch_model.bin, or with shards and pytorch_model.bin.index.json.
        dst: folder to make; it must not exist or be empty.
        progress: called after every file of weights with the number done and in all.

    Raises:
        InputError: `dst` is in use, or `src` needs no conversion.
        CheckpointError: `src` cannot be read.
    """
    for name, given in (("src", src), ("dst", dst)):
        if not isinstance(given, (str, os.PathLike)):
            raise InputError(f"{name}={given!r}: give the path of a folder")
    if progress is not None and not callable(progress):
        raise InputError(f"progress={progress!r}: it must be callable")
    source, target = Path(src).expanduser(), Path(dst).expanduser()
    if os.path.isfile(source):  # pathlib raises where a name is too long
        raise CheckpointError(f"{shown(source)} is a file: give its folder, {shown(source.parent)}")
    if not os.path.isdir(source):
        raise CheckpointError(f"{shown(source)}: no such folder")
    if os.path.lexists(target) and not _is_empty_folder(target):
        raise InputError(f"{shown(target)} exists and is not an empty folder: choose another one")
    shards = _shards(source)
    config = _read_config(source)

    # Made beside the target, so that the final rename stays on one file system.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except (OSError, ValueError) as error:
        raise InputError(f"{target} cannot be made: {error}") from error
    try:
        conversion = _write(source, scratch, target, shards, config, progress)
        _give_usual_permissions(scratch)
        scratch.replace(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return conversion


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write(
    source: Path,
    scratch: Path,
    target: Path,
    shards: list[str],
    config: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Conversion:
    weight_map: dict[str, str] = {}
    total = 0
    names = _new_names(len(shards))
    for i, (old, new) in enumerate(zip(shards, names, strict=True)):
        tensors = read_tensors(source / old)
        for name, tensor in tensors.items():
            if name in weight_map:
                raise CheckpointError(
                    f"{source / old}: tensor {name!r} is in another shard as well"
                )
            weight_map[name] = new
            total += tensor.numel() * tensor.element_size()
        save_file(tensors, scratch / new, metadata={"format": "pt"})
        del tensors
        if progress is not None:
            progress(i + 1, len(shards))
    _check_complete(source, weight_map)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(scratch / "model.safetensors.index.json", index)

    for path in sorted({p for pattern in _COPIED for p in source.glob(pattern)}):
        if path.is_file() and not path.name.endswith(".index.json"):
            shutil.copyfile(path, scratch / path.name)
    additions = _additions(source, config, weight_map)
    if additions:
        _write_json(scratch / "config.json", {**config, **additions})
    return Conversion(
        path=target,
        tensors=len(weight_map),
        bytes=total,
        files=sorted(path.name for path in scratch.iterdir()),
        config_additions=additions,
    )


def _shards(source: Path) -> list[str]:
    """The names of the .bin files of a checkpoint folder, in order."""
    if (source / _INDEX).is_file():
        index = _read_json(source / _INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{source / _INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{source / _INDEX}: {name!r} is not a file of that folder")
            if not (source / name).is_file():
                raise CheckpointError(f"{source / name} is missing; the index lists it")
        return names
    if (source / _SINGLE).is_file():
        return [_SINGLE]
    if any(source.glob("*.safetensors")):
        raise InputError(f"{source} has safetensors already: load it as it is")
    others = sorted(p.name for suffix in ("bin", "pt", "pth") for p in source.glob(f"*.{suffix}"))
    hint = f"; name {others[0]} so if it holds the weights" if others else ""
    raise CheckpointError(f"{source} has neither {_SINGLE} nor {_INDEX}: nothing to convert{hint}")


def _new_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _check_complete(source: Path, weight_map: Mapping[str, str]) -> None:
    if not weight_map:
        raise CheckpointError(f"{source} holds no tensors")
    if (source / _INDEX).is_file():
        missing = sorted(set(_read_json(source / _INDEX)["weight_map"]) - set(weight_map))
        if missing:
            raise CheckpointError(
                f"{source}: the shards lack {len(missing)} tensors of the index, such as "
                f"{missing[0]!r}"
            )


def _additions(source: Path, config: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What config.json leaves out and the weights tell. (`tabes.load` finds the mask token in the
    same files, converted or not.)"""
    additions: dict[str, Any] = {}
    if not config.get("model_type") and any(
        name.startswith("bert.encoder.layer.") for name in names
    ):
        additions["model_type"] = "bert"
    return additions


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: without it the weights have no meaning")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        check_kind(path, raw[:64])
        value = json.loads(raw.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _give_usual_permissions(folder: Path) -> None:
    """Temporary folders and safetensors files are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
