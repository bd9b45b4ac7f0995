"""Checks of Python arguments before they reach C++: every complaint names the argument."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from tabes.errors import InputError


def integer(value: Any, name: str, minimum: int = -(2**63), maximum: int = 2**63 - 1) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}={value!r}: it must be an integer") from None
    if not -(2**63) <= number <= maximum:
        # Python refuses to write out integers of thousands of digits.
        shown = number if number.bit_length() < 256 else f"<{number.bit_length()} bits>"
        most = "2^64 - 1" if maximum == 2**64 - 1 else "2^63 - 1"
        raise InputError(f"{name}={shown}: it must fit 64 bits; the largest is {most}")
    if number < minimum:
        raise InputError(f"{name}={number}: it must be at least {minimum}")
    return number


def seed_of_draws(value: Any, name: str = "seed") -> int:
    """Any number of 64 bits without a sign: two of them never draw alike."""
    return integer(value, name, minimum=0, maximum=2**64 - 1)


def optional_integer(value: Any, name: str) -> int | None:
    return None if value is None else integer(value, name)


def number(value: Any, name: str) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return float(value)
    except OverflowError:  # Python refuses to write out integers of thousands of digits
        raise InputError(f"{name}: it must be a number that fits a double") from None
    except (TypeError, ValueError, RuntimeError):  # of arrays and tensors as well
        raise InputError(f"{name}={value!r}: it must be a number") from None


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: it must be True or False")
    return value


def word(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}={value!r}: it must be a string")
    if not encodable(value):
        raise InputError(f"{name}={value!a}: it holds a lone surrogate, which is no text")
    return value


def encodable(text: str) -> bool:
    """Whether `text` is without lone surrogates, which UTF-8 cannot hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def shown(path: object) -> str:
    """A path or another text for a message: what cannot be printed as it is is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def listed(values: Any, name: str, of: str) -> list[Any]:
    """The elements of a list, array or other iterable; text is none of these."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{name}={values!r}: give {of}")
    return list(values)


def numbers(values: Any, name: str) -> list[float]:
    """One number or several."""
    scalar = not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    if scalar or isinstance(values, (str, bytes)):
        return [number(values, name)]
    given = listed(values, name, "a number or a list of numbers")
    return [number(value, f"{name}[{i}]") for i, value in enumerate(given)]


def integers(values: Any, name: str, minimum: int = -(2**63)) -> list[int]:
    given = listed(values, name, "a list of integers")
    return [integer(value, f"{name}[{i}]", minimum) for i, value in enumerate(given)]
