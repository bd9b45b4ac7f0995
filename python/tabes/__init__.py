"""tabes: decoding of masked diffusion models.

>>> import tabes
>>> model = tabes.load(tabes.demo_checkpoint())
>>> out = tabes.generate(model, "c1ccccc1[MASK][MASK][MASK]O", steps=3)
>>> out.texts, out.forward_equivalents
"""

from __future__ import annotations

from tabes import _torch_check

_torch_check.check()

# ruff: noqa: E402  -- nothing else is looked at before the check above has passed.
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tabes._build_info import VERSION as __version__
from tabes.bundled import demo_checkpoint
from tabes.errors import (
    CheckpointError,
    DeviceError,
    Error,
    InputError,
    NumericsError,
    PaddingWarning,
)

if TYPE_CHECKING:
    from tabes import trace
    from tabes._core import (
        BoE,
        Decision,
        Influence,
        ModelInfo,
        Policy,
        Predictions,
        StepContext,
        StepRecord,
        policy_names,
    )
    from tabes.convert import convert
    from tabes.generation import generate
    from tabes.influence import influence
    from tabes.model import Model, load
    from tabes.output import GenerateOutput
    from tabes.policies import make_policy
    from tabes.wrap import wrap

__all__ = [
    "BoE",
    "CheckpointError",
    "Decision",
    "DeviceError",
    "Error",
    "GenerateOutput",
    "Influence",
    "InputError",
    "Model",
    "ModelInfo",
    "NumericsError",
    "PaddingWarning",
    "Policy",
    "Predictions",
    "StepContext",
    "StepRecord",
    "__version__",
    "cmake_dir",
    "convert",
    "demo_checkpoint",
    "generate",
    "include_dir",
    "influence",
    "load",
    "make_policy",
    "policy_names",
    "trace",
    "wrap",
]

# The module of every name that is imported at its first use. Most of them need torch, which takes
# seconds to import; `tabes --help` needs none.
_HOMES = {
    "BoE": "tabes._core",
    "Decision": "tabes._core",
    "GenerateOutput": "tabes.output",
    "Influence": "tabes._core",
    "Model": "tabes.model",
    "ModelInfo": "tabes._core",
    "Policy": "tabes._core",
    "Predictions": "tabes._core",
    "StepContext": "tabes._core",
    "StepRecord": "tabes._core",
    "convert": "tabes.convert",
    "generate": "tabes.generation",
    "influence": "tabes.influence",
    "load": "tabes.model",
    "make_policy": "tabes.policies",
    "policy_names": "tabes._core",
    "wrap": "tabes.wrap",
}


class _Package(ModuleType):
    """Functions that are called as their modules keep their names when those are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and _HOMES.get(name) == value.__name__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # a type checker knows every name from above, and no others

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        if not name.startswith("__"):
            try:
                return import_module(f"tabes.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"tabes.{name}":
                    raise  # the module is there, but something that it needs is not
        raise AttributeError(f"module 'tabes' has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def _installed_dir(*parts: str) -> Path:
    """A folder that the build installs beside the compiled module."""
    core = import_module("tabes._core")
    path = Path(str(core.__file__)).parent.joinpath(*parts)
    if not path.is_dir():
        raise Error(
            f"{path} does not exist: this installation of tabes has no C++ development files"
        )
    return path


def cmake_dir() -> Path:
    """The folder of tabesConfig.cmake, for ``find_package(tabes CONFIG)``: pass it as tabes_DIR."""
    return _installed_dir("lib", "cmake", "tabes")


def include_dir() -> Path:
    """The folder to put on the include path for ``#include <tabes/denoiser.h>``."""
    return _installed_dir("include")
