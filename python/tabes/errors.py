"""What tabes raises. The compiled module raises these same classes."""

from __future__ import annotations


class Error(RuntimeError):
    """Base of every error tabes raises."""


class CheckpointError(Error):
    """A checkpoint that cannot be used."""


class InputError(Error, ValueError):
    """An argument outside its documented range."""


class NumericsError(Error):
    """The model computed NaN or infinite values."""


class DeviceError(Error):
    """A device or dtype that is missing, or out of memory."""


# Tracebacks and pickles name them as users do.
for _class in (Error, CheckpointError, InputError, NumericsError, DeviceError):
    _class.__module__ = "tabes"
