"""Named tensors out of files that ``torch.save`` wrote, without running code from them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tabes.errors import CheckpointError

# Where training scripts put the weights among other things.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module")
# What safetensors has a name for.
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
}
_AGAIN = "download it again"
# How files begin that are taken for weights by mistake.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file: run git lfs pull there"),
    (b"<", f"is a web page, not the file: {_AGAIN}, from the link to the file itself"),
    (b"{", f"is text, perhaps a server's error message, not the weights: {_AGAIN}"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
)
_RESAVE = (
    "in the program that made it save a state_dict of plain tensors, "
    "torch.save(model.state_dict(), ...)"
)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name: dense, contiguous, none sharing memory with another.

    A state dict under a usual key ("state_dict", "model") beside other things is found. Tied
    weights are kept under each of their names: a copy costs disk space, a name that is left out
    costs every reader the knowledge of which one to look for.

    Raises CheckpointError if the file is damaged, is something else, or holds more than tensors.
    """
    values = _state_dict(_load(path), path)
    result: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in values.items():
        tensor = _dense(name, value, path)
        storage = tensor.untyped_storage()
        # A view of a larger storage, or the second name of one: only its own numbers are wanted.
        partial = storage.nbytes() != tensor.numel() * tensor.element_size()
        if tensor.numel() > 0 and (partial or storage.data_ptr() in seen):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def check_kind(path: Path, head: bytes, others: Iterable[tuple[bytes, str]] = _OTHERS[:2]) -> None:
    """Raises CheckpointError if the file, which begins so, is one of the `others`: by default what
    a download that failed leaves in the place of any file."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in others:
        if start.startswith(magic):
            raise CheckpointError(f"{path} {what}")


def _load(path: Path) -> Any:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty: {_AGAIN}")
    check_kind(path, head, _OTHERS)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        raise CheckpointError(f"{path} is a safetensors file: name it model.safetensors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files of torch >= 1.6 are zip archives and can be mapped instead of read into memory.
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK")
            )
    except MemoryError:
        raise
    except Exception as error:  # its readers let nearly everything escape
        raise CheckpointError(f"{path} {_reason(head, str(error))}") from error


def _reason(head: bytes, said: str) -> str:
    """What is wrong in words of ours: PyTorch's own advise to run what the file brings along."""
    found = re.search(r"GLOBAL (\S+)|`?([\w.]+)`? (?:from|in) file", said)
    if found:
        return (
            f"holds a Python object ({found[1] or found[2]}) beside tensors, and none is made "
            f"here: {_RESAVE}"
        )
    if "TorchScript" in said:
        return f"is a TorchScript program, not named tensors: {_RESAVE}"
    if not head.startswith((b"PK", b"\x80")) and "legacy .tar" not in said:
        return f"is not a file that torch.save wrote: {_AGAIN}"
    if "legacy .tar" in said:
        return f"is in a format of PyTorch before 1.0, or none at all: {_RESAVE}"
    if "WeightsUnpickler" in said or "Weights only" in said:
        return f"holds more than tensors, or is damaged: {_AGAIN}, or {_RESAVE}"
    return f"is damaged or incomplete: {_AGAIN}"


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise CheckpointError(f"{path} holds a {kind}, not named tensors: {_RESAVE}")
    if not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = [key for key in _WEIGHTS if isinstance(found.get(key), Mapping)]
        if len(inner) == 1:
            found = found[inner[0]]
        elif found:
            keys = ", ".join(repr(key) for key in list(found)[:5])
            raise CheckpointError(f"{path} holds no tensors by name but {keys}: {_RESAVE}")
    for name in found:
        # NUL, escape sequences and lone surrogates are refused by those who read safetensors.
        if not isinstance(name, str) or not name.isprintable() or name in ("", "__metadata__"):
            raise CheckpointError(f"{path}: {name!r} is no name for a tensor: {_RESAVE}")
    return dict(found)


def _dense(name: str, value: Any, path: Path) -> torch.Tensor:
    what = None
    if not isinstance(value, torch.Tensor):
        what = f"a {type(value).__name__}"
    elif value.is_quantized:
        what = f"quantised ({value.dtype}); dequantize it"
    elif value.layout != torch.strided or value.is_nested:
        what = f"{'nested' if value.is_nested else value.layout}; make it dense"
    elif value.is_meta:
        what = "a meta tensor, which has a shape but no numbers"
    elif value.dtype not in _DTYPES:
        what = f"{value.dtype}, which safetensors does not know; convert it"
    if what is not None:
        what = what.replace("torch.", "")
        raise CheckpointError(f"{path}: {name!r} is {what}. Only dense tensors can be converted")
    tensor: torch.Tensor = value.detach().resolve_conj().resolve_neg().contiguous()
    return tensor
