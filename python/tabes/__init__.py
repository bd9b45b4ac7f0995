"""tabes: decoding of masked diffusion models.

>>> import tabes
>>> model = tabes.load(tabes.demo_checkpoint())
>>> out = tabes.generate(model, "c1ccccc1[MASK][MASK][MASK]O", steps=3)
>>> out.texts, out.forward_equivalents
"""

from __future__ import annotations

from tabes import _torch_check

_torch_check.check()

# ruff: noqa: E402  -- the compiled module must not be loaded before the check above has passed.
from pathlib import Path

from tabes import _core, trace
from tabes._build_info import VERSION as __version__
from tabes._core import (
    BoE,
    CheckpointError,
    Decision,
    DeviceError,
    Error,
    Influence,
    InputError,
    ModelInfo,
    NumericsError,
    Policy,
    Predictions,
    StepContext,
    StepRecord,
    policy_names,
)
from tabes.convert import convert
from tabes.generation import GenerateOutput, generate
from tabes.influence import influence
from tabes.model import Model, load
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


def demo_checkpoint(name: str = "moses") -> Path:
    """The folder of a bundled model: "moses" (SMILES), "sudoku" or "countdown".

    Raises InputError for another name.
    """
    models = Path(__file__).parent / "models"
    known = sorted(path.parent.name for path in models.glob("*/config.json"))
    if name not in known:
        raise InputError(f"there is no bundled model {name!r}; there are {', '.join(known)}")
    return models / name


def _installed_dir(*parts: str) -> Path:
    """A folder that the build installs beside the compiled module."""
    path = Path(_core.__file__).parent.joinpath(*parts)
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
