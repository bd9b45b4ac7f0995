"""Loading checkpoints."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tabes import _core
from tabes._core import CheckpointError, InputError, ModelInfo
from tabes.arguments import flag, integers, listed, optional_integer, shown, word
from tabes.bundled import demo_checkpoint, names
from tabes.inputs import prepare
from tabes.text import Tokenizer
from tabes.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from tabes.inputs import Prompts

_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float64": "float64",
    "fp64": "float64",
    "double": "float64",
}
_log = logging.getLogger("tabes")
_LONG_LOAD = 1 << 30  # bytes; below this a progress bar would only flicker


class Model:
    """A masked diffusion model: the C++ model and where it came from.

    Attributes:
        core: the compiled ``Denoiser``.
        path: the checkpoint folder, None for a wrapped model.
    """

    def __init__(
        self,
        core: _core.Denoiser,
        path: Path | None = None,
        *,
        tokenizer: Tokenizer | CheckpointError | None = None,
    ) -> None:
        self.core = core
        self.path = path
        self._tokenizer = tokenizer

    @property
    def info(self) -> ModelInfo:
        """Sizes, special tokens, device and dtype."""
        return self.core.info

    @property
    def keeps_context(self) -> bool:
        """Whether ``context="frozen"`` is to be had: of loaded models, not of wrapped ones."""
        return self.path is not None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, as it was when the model was loaded; None if it has none.

        Raises CheckpointError if its files are damaged. Who passes token ids can do without.
        """
        if isinstance(self._tokenizer, CheckpointError):
            raise CheckpointError(str(self._tokenizer)) from self._tokenizer
        return self._tokenizer

    def logits(self, tokens: Prompts) -> torch.Tensor | list[torch.Tensor]:
        """What the model predicts at every position.

        Args:
            tokens: whatever `tabes.generate` takes; one sequence counts as a batch of one.

        Returns:
            float32 [B, L, V] if all B sequences have the same length L, else B tensors [L_b, V].

        Raises InputError for sequences that are empty, too long or hold unknown token ids.
        """
        batch = prepare(self, tokens)
        logits = self.core.logits(batch.sequences)
        lengths = [len(sequence) for sequence in batch.sequences]
        if len(set(lengths)) == 1:
            return logits.view(len(lengths), lengths[0], -1)
        return list(torch.split_with_sizes(logits, lengths))

    def __repr__(self) -> str:
        i = self.info
        return (
            f"Model({i.family}, {i.parameters:,} parameters, {i.num_layers} layers, "
            f"vocabulary {i.vocab_size}, {i.dtype} on {i.device})"
        )


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    mask_token_id: int | None = None,
    eos_token_ids: Iterable[int] | None = None,
    ignore: Iterable[str] = (),
    prepack: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Loads a checkpoint folder: config.json and safetensors, in one file or sharded.

    Args:
        path: the folder, or the root of a repository in the hub's cache; where there is none of
            this name, a bundled model's ("moses", "sudoku", "countdown"). Nothing is downloaded and
            no code from it is run.
        device: where the weights go, ``"cpu"`` or a CUDA device.
        dtype: of weights and computation: float32, bfloat16, float16 (on a GPU), or float64 for
            verification.
        mask_token_id: overrides the mask token of config.json, generation_config.json and the
            tokenizer, which are asked in this order.
        eos_token_ids: overrides the tokens that end a text; by default all that config.json,
            generation_config.json, the tokenizer's ``eos_token`` and the model's family name.
        ignore: tensors to leave out where the files hold more than the model: names in which ``*``
            stands for any text, ``"cls.species.*"`` say. Pooler and next-sentence heads are left
            out anyhow; a line of the logger ``tabes`` (INFO) names them.
        prepack: on x86 CPUs lay weights out anew as they are read, for faster products, forward and
            for steering, from one copy. False: keep them as they are stored.
        progress: called with the bytes read so far and in all. Without it, loads of more than 1 GiB
            show a progress bar on stderr if that is a terminal.

    Raises:
        CheckpointError: the folder cannot be used; the message says which file and what to do.
        DeviceError: the device or dtype is not available here, or the model does not fit in the
            memory that is free, which is seen before a weight is read.
        InputError: an argument is not one of the above.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r}: give the checkpoint folder, as a string or a Path")
    if not os.fspath(path):  # which pathlib takes for the working directory
        raise InputError("path is empty: give the checkpoint folder, or a bundled model's name")
    mask_token_id = optional_integer(mask_token_id, "mask_token_id")
    given = listed(ignore, "ignore", "a list of patterns of tensor names")
    patterns = [word(pattern, f"ignore[{i}]") for i, pattern in enumerate(given)]
    prepack = flag(prepack, "prepack")
    if progress is not None and not callable(progress):
        raise InputError(f"progress={progress!r}: it must be callable")
    # Absolute, since the working directory may be another one when the path is used again.
    directory = Path(os.path.expanduser(path))  # what pathlib cannot expand it raises at
    if not os.path.exists(directory) and os.fspath(path) in names():
        directory = demo_checkpoint(os.fspath(path))
    try:
        directory = directory.absolute()
    except OSError as error:
        raise CheckpointError(
            f"{shown(path)}: the working directory is gone, so give an absolute path"
        ) from error
    if not os.path.isdir(directory):
        raise CheckpointError(_missing(directory, shown(os.fspath(path))))
    directory = Path(os.fsdecode(_core.checkpoint_folder(os.fsencode(directory))))
    with _LoadBar() as bar:
        core = _core.load(
            os.fsencode(directory),
            shown(device),
            _dtype_name(dtype),
            mask_token_id=mask_token_id,
            eos_token_ids=None
            if eos_token_ids is None
            else integers(eos_token_ids, "eos_token_ids"),
            ignore=patterns,
            prepack=prepack,
            progress=progress or bar,
            notice=_log.info,
        )
    return Model(core, directory, tokenizer=_tokenizer(directory, core.info))


def _tokenizer(directory: Path, info: ModelInfo) -> Tokenizer | CheckpointError | None:
    """What is to be found now: the folder may be gone or another one at first use."""
    try:
        return load_tokenizer(directory, info.mask_token_id, info.vocab_size)
    except CheckpointError as error:
        return error  # of no concern to those who pass token ids


def _missing(directory: Path, given: str) -> str:
    if os.path.exists(directory):
        return f"{given} is a file: give the folder that holds config.json"
    message = f"{given}: no such folder"
    parts = given.split("/")
    if len(parts) == 1:
        message += f", and no bundled model of this name: there are {', '.join(names())}"
    if len(parts) == 2 and all(parts) and not given.startswith((".", "~")):
        message += (
            f". If it names a repository of the Hugging Face hub, download it first: "
            f"hf download {given} --local-dir {parts[1]}"
        )
    return message


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.").lower()
    if name not in _DTYPES:
        raise InputError(
            f"dtype {name[:40]!a} is not supported: use float32, bfloat16, float16 or float64"
        )
    return _DTYPES[name]


class _LoadBar:
    """A progress bar that appears only for long loads and only on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _LoadBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if total < _LONG_LOAD or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

            self._bar = Progress(
                "loading",
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("loading", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
