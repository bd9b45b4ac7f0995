"""Token ids of any container as rows, and padding found in them or taken out of them."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tabes.errors import InputError, PaddingWarning

if TYPE_CHECKING:
    from tabes.model import Model

_NO_IDS = (torch.bool, torch.qint8, torch.quint8, torch.qint32)
_MOST = 1 << 22  # an iterator that goes on for longer is taken to have no end
# What may stand beside token ids and changes what the model would be asked.
_CHANGES_MEANING = ("position_ids", "inputs_embeds")


def listed(value: Any) -> Any:
    """`value` as a text, a tensor, a numeric array or a list, whatever container it came in.

    Raises InputError for what is none of these: bytes, sets, numbers, iterators without end.
    """
    if isinstance(value, (str, torch.Tensor)):
        return value
    if hasattr(value, "__array__") and not isinstance(value, np.generic):  # also of pandas
        if np.ma.is_masked(value):
            raise InputError(
                "prompts in a masked array: pass a list of sequences without what is masked, or "
                "the ids with attention_mask"
            )
        array = np.asarray(value)
        if array.dtype.kind in "OSUT" or array.dtype.kind not in "biufc":
            return listed(array.tolist())
        return array
    if isinstance(value, (bytes, bytearray, memoryview, set, frozenset, Mapping)) or not (
        isinstance(value, Iterable)
    ):
        raise InputError(
            f"prompts of type {type(value).__name__}: give text, chat messages, or token ids as a "
            "tensor, array or list"
        )
    items = list(islice(value, _MOST + 1))
    if len(items) > _MOST:
        raise InputError(f"prompts: a {type(value).__name__} of more than {_MOST} items")
    return items


def encoded(given: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    """The ids and the attention mask of what a tokenizer of transformers returns.

    Raises InputError for another mapping, and for one that asks for what is not computed.
    """
    if "input_ids" not in given:
        if "role" in given:
            raise InputError("a single message is not a conversation: put it in a list")
        raise InputError(
            f"prompts as a {type(given).__name__} with the keys {sorted(map(str, given))}: it must "
            "have input_ids, as what a tokenizer returns"
        )
    for name in _CHANGES_MEANING:
        if given.get(name) is not None:
            raise InputError(f"{name} beside input_ids: the model counts positions itself")
    if _any_set(given.get("token_type_ids")):
        raise InputError("token_type_ids other than 0: the model takes one segment")
    found = given.get("attention_mask")
    if found is not None and attention_mask is not None:
        raise InputError("attention_mask is given twice, beside input_ids and as an argument")
    return given["input_ids"], attention_mask if found is None else found


def encoded_rows(given: list[Mapping[str, Any]], attention_mask: Any) -> tuple[Any, Any]:
    """The same of a list of them, one a sequence."""
    pairs = [tuple(map(_one_row, encoded(one, None))) for one in given]
    masks = [mask for _, mask in pairs]
    if all(mask is None for mask in masks):
        return [ids for ids, _ in pairs], attention_mask
    if attention_mask is not None or any(mask is None for mask in masks):
        raise InputError("attention_mask: give one with every sequence, or one as an argument")
    return [ids for ids, _ in pairs], masks


def _one_row(values: Any) -> Any:
    """Of [[1, 2, 3]], which a tokenizer asked for tensors returns of a single text, the row."""
    if values is None:
        return None
    values = listed(values)
    one = len(values) == 1 and _is_collection(values[0])
    return values[0] if one else values


def _any_set(values: Any) -> bool:
    return values is not None and any(bool((row != 0).any()) for row in rows_of(listed(values))[0])


def rows_of(value: Any, name: str = "the token array") -> tuple[list[torch.Tensor], bool]:
    """Rows [L_b] int64 of token ids, and whether they are one sequence rather than a batch."""
    if not isinstance(value, list):
        tensor = _tensor(value, name)
        if tensor.dim() not in (1, 2):
            raise InputError(f"{name} has shape {list(tensor.shape)}: give [L] or [B, L] token ids")
        rows = list(tensor.unbind(0)) if tensor.dim() == 2 else [tensor]
        if not rows:
            raise InputError(f"there are no prompts: {name} has no rows")
        return rows, tensor.dim() == 1
    if any(_is_collection(v) for v in value):
        return [_row(v, f"sequence {i}") for i, v in enumerate(value)], False
    return [_row(value, "the sequence")], True


def _is_collection(value: Any) -> bool:
    """Whether `value` is itself a sequence of token ids; numbers of numpy and torch are not."""
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        return len(value.shape) > 0
    return isinstance(value, (Sequence, Mapping))


def unpadded(rows: list[torch.Tensor], single: bool, attention_mask: Any) -> list[torch.Tensor]:
    """`rows` without what their attention mask takes for padding, in front or behind.

    Raises InputError if the mask is not of the rows' shape, not of 0 and 1, has holes or no ones.
    """
    given = _whole(listed(attention_mask))
    masks, alone = rows_of(given, "attention_mask")
    if alone != single and len(rows) == len(masks) == 1:
        shapes = ["[B, L]", "[L]"] if alone else ["[L]", "[B, L]"]
        raise InputError(
            f"attention_mask is {shapes[1]} and the token ids are {shapes[0]}: they must agree"
        )
    if alone != single or [len(m) for m in masks] != [len(r) for r in rows]:
        raise InputError(
            f"attention_mask has rows of {[len(m) for m in masks][:8]} and the token ids of "
            f"{[len(r) for r in rows][:8]}: they must agree"
        )
    kept = []
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        what = "attention_mask" if single else f"attention_mask of sequence {i}"
        if bool(((mask != 0) & (mask != 1)).any()):
            raise InputError(f"{what} has other values than 0 and 1")
        ones = mask.nonzero()[:, 0]
        if len(ones) == 0:
            raise InputError(f"{what} has no 1: nothing would be left of the sequence")
        first, last = int(ones[0]), int(ones[-1]) + 1
        if len(ones) != last - first:
            hole = first + int((mask[first:last] == 0).nonzero()[0, 0])
            raise InputError(
                f"{what} has a hole at position {hole}: only padding in front and behind can be "
                "taken out"
            )
        kept.append(row[first:last])
    return kept


def _whole(mask: Any) -> Any:
    """An attention mask of booleans or of whole floats, as integers."""
    if isinstance(mask, list):
        return [_whole(m) for m in mask]
    if isinstance(mask, bool):
        return int(mask)
    if isinstance(mask, np.ndarray):
        mask = torch.as_tensor(mask)
    if isinstance(mask, torch.Tensor) and not mask.is_complex():
        whole = mask.to(torch.int64)
        return whole if bool((whole == mask).all()) else mask
    return mask


def warn_of_padding(model: Model, rows: list[torch.Tensor], single: bool) -> None:
    """Warns of rows that begin or end with the padding token.

    Where padding is also an end token (LLaDA), that is no sign of it by itself: then several rows
    of one length must end in end tokens, more than one in some and not as many in all, or begin
    with a different number of them.
    """
    pad = model.info.pad_token_id
    if pad is None or pad == model.info.mask_token_id:
        return
    heads, tails = [_run(row, pad) for row in rows], [_run(row.flip(0), pad) for row in rows]
    if pad in model.info.eos_token_ids:
        alike = len({len(row) for row in rows}) == 1
        behind = alike and len(set(tails)) > 1 and max(tails) > 1
        found = behind or (alike and len(set(heads)) > 1)
    else:
        found = any(heads) or any(tails)
    if not found:
        return
    padded = next(i for i in range(len(rows)) if max(heads[i], tails[i]) == max(heads + tails))
    where = "the sequence" if single else f"sequence {padded}"
    how = "begins" if heads[padded] >= tails[padded] else "ends"
    count = max(heads[padded], tails[padded])
    warnings.warn(
        f"{where} {how} with {count} padding token{'s' if count > 1 else ''} ({pad}), which the "
        "model takes for text: pass a list of sequences without padding, or attention_mask (all "
        "ones if these tokens belong there)",
        PaddingWarning,
        stacklevel=_outside(),
    )


def _run(row: torch.Tensor, token: int) -> int:
    """How many times `token` stands in front."""
    others = (row != token).nonzero()
    return int(others[0, 0]) if len(others) else len(row)


def _outside() -> int:
    """The stack level of the caller's own line, for warnings."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tabes."):
        frame, level = frame.f_back, level + 1
    return level


def _tensor(value: Any, what: str) -> torch.Tensor:
    """An int64 CPU tensor of an array; writable contiguous int64 arrays share their memory."""
    if not isinstance(value, torch.Tensor):
        order = getattr(getattr(value, "dtype", None), "byteorder", "=")
        if order in "<>":  # perhaps another machine's
            value = value.astype(value.dtype.newbyteorder("="))
        flags, strides = getattr(value, "flags", None), getattr(value, "strides", None) or ()
        # torch takes neither read-only memory nor negative strides, which an array of one token may
        # have and be contiguous.
        if flags is not None and not (
            flags.writeable and flags.c_contiguous and all(step >= 0 for step in strides)
        ):
            value = value.copy()
        try:
            value = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{what} does not hold token ids: {error}") from error
    if value.dtype in _NO_IDS or value.is_floating_point() or value.is_complex():
        raise InputError(f"{what} has dtype {value.dtype}: token ids are integers")
    if value.layout not in (torch.strided, torch.jagged) or value.is_meta:
        how = "is on the meta device" if value.is_meta else f"has layout {value.layout}"
        raise InputError(f"{what} {how}: give a dense tensor of token ids")
    result: torch.Tensor = value.detach().to(device="cpu", dtype=torch.int64).contiguous()
    if value.dtype == torch.uint64 and bool((result < 0).any()):
        raise InputError(f"{what} holds a token id of 2^63 or more")
    return result


def _row(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        row = _tensor(value, what)
        if row.dim() != 1:
            raise InputError(f"{what} has shape {list(row.shape)}: give a list of [L] token ids")
        return row
    if isinstance(value, str):
        raise InputError(f"{what} is text: text and token ids cannot be mixed")
    if isinstance(value, (bytes, bytearray, Mapping)) or not isinstance(value, Sequence):
        raise InputError(f"{what} is a {type(value).__name__}: token ids are a list, or an array")
    ids = []
    for position, token in enumerate(value):
        if isinstance(token, bool):
            raise InputError(f"{what} holds {token} at position {position}: not a token id")
        try:
            ids.append(operator.index(token))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{what} holds {token!r} at position {position}: token ids are integers"
            ) from error
    try:
        return torch.tensor(ids, dtype=torch.int64, device="cpu")
    except (RuntimeError, OverflowError, ValueError) as error:
        raise InputError(f"{what} holds a token id that does not fit 64 bits") from error
