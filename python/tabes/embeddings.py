"""The input embeddings of a wrapped model: found, read, and watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from tabes._core import InputError


@contextmanager
def plain(device: torch.device) -> Iterator[None]:
    """Neither gradients nor inference mode nor autocast, whatever the caller has set."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


class _Mark(NamedTuple):
    """What tells a tensor from one that took its place, and a version from the next."""

    shape: list[int]
    dtype: torch.dtype
    device: torch.device
    address: int
    version: int  # 0 where changes in place do no harm

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')} on {self.device}"


class Embeddings:
    """A table [V, D] for C++, and the tensors of the model that it comes from.

    C++ reads the memory of a plain ``nn.Embedding``, so that what trains it in place is seen. Where
    the layer does more than look up (Gemma scales), or a row must differ, it reads a copy.

    Args:
        name: of the model, for messages.
        table: [V, D].
        find: the tensors as the model has them now, none if they cannot be found any more.
        copied: whether `table` has memory of its own.
    """

    def __init__(
        self,
        name: str,
        table: torch.Tensor,
        find: Callable[[], list[torch.Tensor]] | None,
        copied: bool = False,
    ) -> None:
        if table.dim() != 2 or table.layout != torch.strided:
            raise InputError("embedding_table: give the input embeddings as a tensor [V, D]")
        self.table = table.detach()
        self._name = name
        self._find = find
        self._watch(copied)

    def _watch(self, copied: bool) -> None:
        self._copied = copied
        found = self._find() if self._find is not None else []
        self._marks = [self._mark(t) for t in found]
        # While these are held nothing else is given their addresses.
        self._held = [t.detach() for t in found]

    def _mark(self, t: torch.Tensor) -> _Mark:
        version = t._version if self._copied and not t.is_inference() else 0
        return _Mark(list(t.shape), t.dtype, t.device, t.data_ptr(), version)

    def writable(self) -> torch.Tensor:
        """The table, as a copy of the model's from now on."""
        if not self._copied:
            self.table = self.table.clone()
            self._watch(copied=True)
        return self.table

    def check(self) -> None:
        """Raises InputError if the model has other embeddings by now."""
        if self._find is None:
            return
        marks = [self._mark(t) for t in self._find()]
        if marks == self._marks:
            return
        what = "they were replaced, or changed where a copy is kept"
        for old, new in zip(self._marks, marks, strict=False):
            if str(old) != str(new):
                what = f"they were {old} and are {new}"
                break
        raise InputError(
            f"the input embeddings of {self._name} are not those it was wrapped with ({what}): "
            "call tabes.wrap again"
        )


def own_embeddings(model: Any, name: str) -> Embeddings:
    """What ``model.get_input_embeddings()`` says; raises InputError where it says nothing."""

    def layer() -> torch.nn.Module | None:
        try:
            found = model.get_input_embeddings()
        except Exception:  # whatever the code of others raises
            return None
        return found if isinstance(found, torch.nn.Module) else None

    def find() -> list[torch.Tensor]:
        found = layer()
        weight = getattr(found, "weight", None)  # of quantised layers it is a method
        if found is None or not isinstance(weight, torch.Tensor):
            return []
        if type(found) is torch.nn.Embedding:
            return [weight]
        return [weight, *found.parameters(), *found.buffers()]

    at_first, tensors = layer(), find()
    if at_first is None or not tensors:
        raise InputError(
            f"the input embeddings of {name} cannot be reached: pass them as embedding_table [V, D]"
        )
    if type(at_first) is torch.nn.Embedding:
        return Embeddings(name, tensors[0], find)
    device = tensors[0].device
    try:
        with plain(device):
            table = at_first(torch.arange(tensors[0].shape[0], device=device))
        return Embeddings(name, table, find, copied=True)
    except Exception as error:
        raise InputError(
            f"the input embeddings of {name} give no table [V, D] ({type(error).__name__}: "
            f"{error}): pass it as embedding_table"
        ) from error


def given_embeddings(table: Any, module: torch.nn.Module | None, name: str) -> Embeddings:
    """The caller's table; if it is a parameter of `module`, it is watched under its name there."""
    if not isinstance(table, torch.Tensor):
        raise InputError("embedding_table: give the input embeddings as a tensor [V, D]")
    if module is None:
        return Embeddings(name, table, None)
    key = next((k for k, p in module.named_parameters() if _same(p, table)), None)
    if key is None:
        return Embeddings(name, table, None)

    def find() -> list[torch.Tensor]:
        try:
            return [module.get_parameter(key)]
        except AttributeError:
            return []

    return Embeddings(name, table, find)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a is b:
        return True
    dense = a.layout == torch.strided and b.layout == torch.strided
    return dense and a.shape == b.shape and a.numel() > 0 and a.data_ptr() == b.data_ptr() != 0
