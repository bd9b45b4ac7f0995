"""Files that `tabes.convert` may meet: each is converted, or refused in words of our own."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tabes
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.case("F23")

WEIGHTS = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def folder_with(tmp_path: Path, written: Any) -> Path:
    """A checkpoint folder whose pytorch_model.bin holds bytes, or what torch.save makes of it."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert", "mask_token_id": 4}')
    path = source / "pytorch_model.bin"
    if isinstance(written, bytes):
        path.write_bytes(written)
    else:
        torch.save(written, path)
    return source


def converted(tmp_path: Path, written: Any) -> dict[str, torch.Tensor]:
    tabes.convert(folder_with(tmp_path, written), tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors")


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def safetensors_bytes(tmp_path: Path) -> bytes:
    save_file(WEIGHTS, tmp_path / "x")
    return (tmp_path / "x").read_bytes()


def script() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
        return buffer.getvalue()


def quantised() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "ok": torch.ones(2),
            "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        }


def csr() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"s": torch.eye(3).to_sparse_csr()}


def short_record() -> bytes:
    """An archive in which a tensor's numbers are fewer than its shape says."""
    old, new = zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(10000)}))), io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(name, old.read(name)[: 100 if name.endswith("data/0") else None])
    return new.getvalue()


GOOD = saved(WEIGHTS)
BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is empty: download it again"),
    "web page": (b"<!DOCTYPE html><html><body>Sign in", "is a web page"),
    "web page after a mark": (b"\xef\xbb\xbf\n <html>", "is a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page"),
    "server's error": (b'{"error": "Repository not found"}', "server's error message"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "plain text": (b"Not Found\n", "is not a file that torch.save wrote"),
    "zeros": (b"\0" * 600, "is in a format of PyTorch before 1.0, or none at all"),
    "gzip": (gzip.compress(GOOD), "compressed with gzip"),
    "half": (GOOD[: len(GOOD) // 2], "is damaged or incomplete: download it again"),
    "a few bytes short": (GOOD[:-5], "is damaged or incomplete"),
    "head only": (b"PK\x03\x04" + b"x" * 100, "is damaged or incomplete"),
    "short record": (short_record, "is damaged or incomplete"),
    "old and short": (
        saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-6],
        "is damaged or incomplete",
    ),
    "script": (script, "TorchScript"),
    "module": (lambda: saved(nn.Linear(2, 2)), r"Python object \(torch.nn.*Linear\)"),
    "array": (lambda: saved({"a": np.ones(3)}), r"Python object \(numpy.*\) beside tensors"),
    "plain pickle": (pickle.dumps({"a": [1, 2]}), "holds more than tensors, or is damaged"),
    "pickled class": (pickle.dumps(Path, 2), r"Python object \(pathlib.*Path\)"),
    "cut pickle": (b"\x80\x02}q\x00", "is damaged or incomplete"),
    "list": ([torch.ones(2)], "holds a list, not named tensors"),
    "tensor": (torch.ones(2), "holds a Tensor, not named tensors"),
    "nothing": ({}, "holds no tensors"),
    "numbers": ({"epoch": 3, "lr": 0.1}, "holds no tensors by name but 'epoch', 'lr'"),
    "two inner": (
        {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}},
        "holds no tensors by name but 'model', 'state_dict'",
    ),
    "number among tensors": (WEIGHTS | {"epoch": 3}, r"'epoch' is a int\. Only dense"),
    "dict among tensors": (WEIGHTS | {"inner": {"x": torch.ones(1)}}, "'inner' is a dict"),
    "quantised": (quantised, r"'q' is quantised \(qint8\); dequantize it"),
    "sparse": ({"s": torch.eye(3).to_sparse()}, "'s' is sparse_coo; make it dense"),
    "compressed sparse": (csr, "'s' is sparse_csr; make it dense"),
    "meta": ({"m": torch.empty(3, device="meta")}, "'m' is a meta tensor"),
    "complex128": ({"c": torch.ones(2, dtype=torch.complex128)}, "'c' is complex128, which"),
    "number as name": ({3: torch.ones(1)}, "3 is no name for a tensor"),
    "no name": ({"": torch.ones(1)}, "'' is no name for a tensor"),
    "reserved name": ({"__metadata__": torch.ones(1)}, "no name for a tensor"),
    "surrogate": ({"\ud800": torch.ones(1)}, r"'\\ud800' is no name"),
    "escape": ({"\x1b[31m": torch.ones(1)}, r"'\\x1b\[31m' is no name"),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of old formats
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_converted_is_said(name: str, tmp_path: Path) -> None:
    written, message = BAD[name]
    source = folder_with(tmp_path, written() if callable(written) else written)
    with pytest.raises(tabes.CheckpointError, match=message) as caught:
        tabes.convert(source, tmp_path / "out")
    said = str(caught.value)
    assert str(source / "pytorch_model.bin") in said or name == "nothing"
    # PyTorch's advice is to run what the file brings along.
    assert "weights_only" not in said
    assert "\n" not in said
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "x") == ["in"]


def test_a_safetensors_file_by_another_name(tmp_path: Path) -> None:
    source = folder_with(tmp_path, safetensors_bytes(tmp_path))
    with pytest.raises(tabes.CheckpointError, match=r"name it model\.safetensors"):
        tabes.convert(source, tmp_path / "out")


def test_objects_are_never_made(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    for number, value in enumerate(({"w": Payload()}, {"state_dict": {"w": Payload()}})):
        place = tmp_path / str(number)
        place.mkdir()
        with pytest.raises(tabes.CheckpointError, match=r"Python object \(.*\) beside tensors"):
            converted(place, value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_weights_among_other_things_are_found(key: str, tmp_path: Path) -> None:
    got = converted(tmp_path, {"epoch": 3, key: OrderedDict(WEIGHTS), "optimizer": {"step": 1}})
    assert set(got) == {"a", "b"}
    assert all(torch.equal(got[k], v) for k, v in WEIGHTS.items())


def test_memory_that_is_shared_is_written_apart(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    shared = {
        "whole": base.view(4, 6),
        "tied": base.view(4, 6),
        "part": base[3:7],
        "turned": base.view(4, 6).t(),
        "spread": base[:1].expand(5),
        "every other": base[::2],
        "none": base[:0],
        "scalar": base[5],
        "parameter": nn.Parameter(base.view(6, 4)),
    }
    got = converted(tmp_path, shared)
    assert set(got) == set(shared)
    for name, value in shared.items():
        assert got[name].shape == value.shape
        assert torch.equal(got[name], value.detach())
    numbers = sum(v.numel() for v in shared.values())
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size < 4 * numbers + 2000  # each its own numbers, not its neighbours'


def test_every_dtype_that_safetensors_knows(tmp_path: Path) -> None:
    types = (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
        *("bool", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
    values = {t: torch.tensor([0.0, 1.0, 3.0]).to(getattr(torch, t)) for t in types}
    values["conjugate"] = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    got = converted(tmp_path, values)
    for name, value in values.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name].to(torch.complex64), value.to(torch.complex64))


def test_files_of_before_the_zip_format(tmp_path: Path) -> None:
    got = converted(tmp_path, saved(WEIGHTS, _use_new_zipfile_serialization=False))
    assert all(torch.equal(got[k], v) for k, v in WEIGHTS.items())


def test_everything_that_describes_the_model_comes_along(tmp_path: Path) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    kept = [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "generation_config.json",
        "tokenizer.model", "spiece.model", "qwen.tiktoken", "vocab.bpe", "README.md", "LICENSE",
    ]  # fmt: skip
    left = ["modeling_x.py", "flax_model.msgpack", "optimizer.pt", "model.onnx"]
    for name in kept + left:
        (source / name).write_bytes(b"{}" if name.endswith(".json") else name.encode())
    (source / "tokenizer.json").unlink()  # no tokenizer is read from such files
    (source / "vocab.txt").unlink()
    kept = [n for n in kept if n not in ("tokenizer.json", "vocab.txt")]
    done = tabes.convert(source, tmp_path / "out")
    assert done.files == sorted([*kept, "config.json", "model.safetensors"])
    for name in kept:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "config.json is a web page"),
        ("[" * 100000, "config.json cannot be read"),
        ("[1]", "holds a list, not an object"),
        ("", "config.json cannot be read"),
    ],
)
def test_a_config_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    (source / "config.json").write_text(text)
    with pytest.raises(tabes.CheckpointError, match=message):
        tabes.convert(source, tmp_path / "out")


def test_odd_but_valid_configs(tmp_path: Path) -> None:
    source = folder_with(tmp_path, {"bert.encoder.layer.0.x": torch.ones(1)})
    (source / "config.json").write_bytes(b'\xef\xbb\xbf{"name": "\\ud800 \xe6\xa8\xa1"}')
    tabes.convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config == {"name": "\ud800 模", "model_type": "bert"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda s: (s / "pytorch_model.bin", s / "out"), tabes.CheckpointError, "give its folder"),
        (lambda s: (s / "no", s / "out"), tabes.CheckpointError, "no such folder"),
        (lambda s: (None, s / "out"), tabes.InputError, "src=None: give the path"),
        (lambda s: (s, 3), tabes.InputError, "dst=3: give the path"),
        (lambda s: (s, s), tabes.InputError, "is not an empty folder"),
        (lambda s: (s, s / "config.json"), tabes.InputError, "is not an empty folder"),
        (lambda s: (s, s / "config.json" / "x"), tabes.InputError, "cannot be made"),
        (lambda s: (s, s / "a\0b"), tabes.InputError, "cannot be made"),
    ],
)
def test_bad_arguments(
    arguments: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    with pytest.raises(error, match=message):
        tabes.convert(*arguments(source))
    with pytest.raises(tabes.InputError, match="progress=3: it must be callable"):
        tabes.convert(source, tmp_path / "out", progress=3)  # type: ignore[arg-type]


def test_weights_under_another_name_are_pointed_at(tmp_path: Path) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    shutil.move(source / "pytorch_model.bin", source / "consolidated.00.pth")
    with pytest.raises(tabes.CheckpointError, match=r"name consolidated\.00\.pth so"):
        tabes.convert(source, tmp_path / "out")


def test_one_bad_shard_among_good_ones(tmp_path: Path) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    (source / "pytorch_model.bin").rename(source / "one.bin")
    torch.save({"c": torch.ones(2)}, source / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "one.bin", "c": "two.bin"}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    seen: list[tuple[int, int]] = []
    done = tabes.convert(source, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert (done.tensors, done.bytes, seen) == (3, 12 * 4 + 5 * 2 + 2 * 4, [(1, 2), (2, 2)])
    (source / "two.bin").write_bytes(b"<html>")
    with pytest.raises(tabes.CheckpointError, match=r"two\.bin is a web page"):
        tabes.convert(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\xef\xbb\xbf\r\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin.index.json"])
def test_what_a_download_leaves_in_the_place_of_json(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    (source / name).write_bytes(content)
    with pytest.raises(tabes.CheckpointError, match=rf"{name} {message}"):
        tabes.convert(source, tmp_path / "out")
    shutil.copytree(source, tmp_path / "copy")
    (tmp_path / "copy" / "pytorch_model.bin").unlink()
    (tmp_path / "copy" / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(tabes.CheckpointError, match=rf"\.json: {message}"):
        tabes.load(tmp_path / "copy")


def test_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    source = folder_with(tmp_path, WEIGHTS)
    long = tmp_path / ("x" * 300)
    with pytest.raises(tabes.InputError, match="cannot be made"):
        tabes.convert(source, long)
    with pytest.raises(tabes.CheckpointError, match="no such folder"):
        tabes.convert(long, tmp_path / "out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(tabes.InputError, match="is not an empty folder"):
        tabes.convert(source, tmp_path / "dangling")
