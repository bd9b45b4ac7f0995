"""What tabes raises, and warns of. The compiled module raises these same classes."""

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


class PaddingWarning(UserWarning):
    """Token ids look padded. Nothing is padded here: the model takes padding for text."""


# Tracebacks and pickles name them as users do.
for _class in (Error, CheckpointError, InputError, NumericsError, DeviceError, PaddingWarning):
    _class.__module__ = "tabes"
