"""The check that runs before any shared library of tabes is loaded.

A compiled extension works with the torch release it was built against and no other: loading it next
to another one fails with missing symbols at best. Nothing here imports ``tabes._core``, and torch
only where its version stands in no file: importing it takes seconds.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def release(version: str) -> str:
    """The release segment of a version: ``"2.13.0+cu130"`` and ``"2.13.0a0"`` give ``"2.13.0"``."""
    match = re.match(r"v?\d+(\.\d+)*", version)
    return match.group().removeprefix("v") if match else version


def install_command(built_for: str, found: str | None = None) -> str:
    """The command that installs the torch release `built_for`, of the same variant as `found`."""
    command = f"pip install torch=={release(built_for)}"
    local = (found or "").partition("+")[2]
    if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", local):
        command += f" --index-url https://download.pytorch.org/whl/{local}"
    return command


def mismatch(built_for: str, found: str | None, tabes_version: str) -> str | None:
    """What is wrong with the installed torch, or None if it is the release built against.

    Args:
        built_for: version of torch at build time.
        found: version of the installed torch, None if there is none.
        tabes_version: our own version, for the message.

    Local tags (``+cpu``, ``+cu130``) are not compared, only reported.
    """
    if found is not None and release(found) == release(built_for):
        return None
    state = "no torch is installed" if found is None else f"torch {found} is installed"
    return (
        f"tabes {tabes_version} was built for torch {release(built_for)}, but {state}. "
        f"Install the matching one: {install_command(built_for, found)} "
        f"(or rebuild tabes against yours: pip install --no-build-isolation from its source)"
    )


def installed() -> str | None:
    """The version of the torch that an import gives, None if there is none."""
    if "torch" not in sys.modules:
        spec = find_spec("torch")
        if spec is None:
            return None
        try:
            text = (Path(spec.origin or "").parent / "version.py").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        written = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
        if written:
            return written[1]
    try:
        torch = import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise  # torch is there, but something that it needs is not
        return None
    return str(getattr(torch, "__version__", "of unknown version"))


class _TorchFirst:
    """Finds no module, but has torch imported before the compiled one, whoever imports that: torch
    loads the libraries that it is linked to."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "tabes._core":
            import_module("torch")


def check() -> None:
    """Raises ImportError unless the torch that tabes was built for is installed."""
    try:
        from tabes._build_info import TORCH_VERSION, VERSION
    except ModuleNotFoundError as error:
        raise ImportError(
            "this is the source tree of tabes, which has no compiled library. "
            "Build and install it with: pip install . (in the folder of pyproject.toml)"
        ) from error
    message = mismatch(TORCH_VERSION, installed(), VERSION)
    if message is not None:
        raise ImportError(message, name="torch")
    if _TorchFirst not in sys.meta_path:
        sys.meta_path.insert(0, _TorchFirst)
