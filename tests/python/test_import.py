"""What `import tabes` does, and when torch comes in."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import tabes
from tabes import _core, _torch_check


def fresh(code: str) -> str:
    """What a new interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.case("N09")
def test_torch_comes_with_the_first_name_that_needs_it() -> None:
    code = """
import sys, tabes
import tabes.trace
folder, version, error = tabes.demo_checkpoint(), tabes.__version__, tabes.InputError
assert "torch" not in sys.modules and "tabes._core" not in sys.modules
assert set(tabes.__all__) <= set(dir(tabes))
tabes.load
loaded = list(sys.modules)
assert loaded.index("torch") < loaded.index("tabes._core")
print("done")
"""
    assert fresh(code) == "done"


@pytest.mark.case("N09")
def test_the_compiled_module_comes_after_torch_whoever_imports_it() -> None:
    code = "import sys, tabes._core; print('torch' in sys.modules)"
    assert fresh(code) == "True"
    # Without torch's own loading of its libraries, ours would not find them everywhere.
    code = """
import sys, tabes
sys.modules["torch"] = None
try:
    import tabes._core
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert fresh(code) == "torch"


@pytest.mark.case("N09")
def test_functions_named_as_their_modules_stay_functions() -> None:
    code = """
import tabes.wrap, tabes.fidelity, tabes.convert
import tabes
from tabes import convert, influence, wrap
for function in (convert, influence, wrap, tabes.convert, tabes.influence, tabes.wrap):
    assert type(function).__name__ == "function", function
import tabes.wrap
from tabes.influence import influence as same
assert tabes.influence is same and callable(tabes.wrap)
print(tabes.text.__name__, tabes.harness.__name__)
"""
    assert fresh(code) == "tabes.text tabes.harness"


def test_every_public_name_is_there() -> None:
    for name in tabes.__all__:
        assert getattr(tabes, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        _ = tabes.generat
    assert not hasattr(tabes, "__wrapped__")
    assert not hasattr(tabes, "_nothing")


@pytest.mark.parametrize("name", ["Error", "InputError", "CheckpointError", "DeviceError"])
def test_errors_are_the_same_classes_everywhere(name: str) -> None:
    error = getattr(tabes, name)
    assert getattr(_core, name) is error
    assert f"{error.__module__}.{error.__qualname__}" == f"tabes.{name}"
    again = pickle.loads(pickle.dumps(error("why")))
    assert type(again) is error
    assert str(again) == "why"
    with pytest.raises(tabes.InputError):
        _core.make_policy("no such policy")


@pytest.mark.case("N09")
def test_the_version_of_torch_is_read_or_asked_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert _torch_check.installed() == torch.__version__  # of the torch that is imported
    monkeypatch.delitem(sys.modules, "torch")
    assert _torch_check.installed() == torch.__version__  # of its file
    assert "torch" not in sys.modules
    # A torch that keeps its version elsewhere is imported, and one that is blocked is none.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '9.8.7'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _torch_check.installed() == "9.8.7"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _torch_check.installed() is None
    monkeypatch.setitem(sys.modules, "torch", torch)
