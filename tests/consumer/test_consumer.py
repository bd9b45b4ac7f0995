"""A C++ program outside the build finds tabes, links it, and decodes as Python does."""

import os
import subprocess
from pathlib import Path

import pytest
import tabes

EXAMPLE = Path(__file__).parents[2] / "cpp" / "examples" / "embed"


def plain_install() -> Path:
    prefix = os.environ.get("TABES_INSTALL_PREFIX")
    if not prefix:
        pytest.fail("TABES_INSTALL_PREFIX is not set: run this through tests/run")
    return Path(prefix) / "lib" / "cmake" / "tabes"


@pytest.mark.case("U4", "N08")
@pytest.mark.parametrize("source", ["wheel", "cmake --install"])
def test_embed_example(source: str, tmp_path: Path) -> None:
    package = tabes.cmake_dir() if source == "wheel" else plain_install()
    # No more than that: Torch is found beside the package, or where the package was built with it.
    configure = [
        "cmake",
        "-S",
        str(EXAMPLE),
        "-B",
        str(tmp_path),
        f"-Dtabes_DIR={package}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    for command in (configure, ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    tokens = [1] + [3] * 20 + [2]
    done = subprocess.run(
        [tmp_path / "embed", tabes.demo_checkpoint(), *map(str, tokens)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = [int(t) for t in done.stdout.splitlines()[0].split()]
    model = tabes.load(tabes.demo_checkpoint())
    assert written == tabes.generate(model, tokens, steps=16, policy="boe").tokens.tolist()

    def fails(*arguments: object) -> tuple[int, str]:
        done = subprocess.run(
            [tmp_path / "embed", *map(str, arguments)], capture_output=True, text=True
        )
        return done.returncode, done.stderr

    demo = tabes.demo_checkpoint()
    for arguments, code, message in (
        ((tmp_path / "no", 1), 1, "embed: "),  # a typed error, not an abort
        ((demo, 1, "x", 2), 1, "embed: 'x' is not a token id"),
        ((demo, 1, "3 "), 1, "is not a token id"),
        ((demo, 2**70), 1, "is not a token id"),
        ((demo, 1, 10**6), 1, "outside the vocabulary"),
        ((demo, 1, 2), 1, "embed: "),  # nothing to fill
        ((demo,), 2, "usage: "),
    ):
        returned, said = fails(*arguments)
        assert returned == code
        assert message in said
        assert said.count("\n") == 1


def dynamic_section(library: Path) -> list[str]:
    out = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


def test_the_library_needs_no_python() -> None:
    library = next(Path(tabes.__file__).parent.glob("lib*/libtabes.so*"))
    needed = [line for line in dynamic_section(library) if "NEEDED" in line]
    assert needed
    assert not any("python" in line for line in needed)


@pytest.mark.parametrize("pattern", ["lib*/libtabes.so*", "_core*.so"])
def test_the_wheel_knows_no_absolute_path(pattern: str) -> None:
    library = next(Path(tabes.__file__).parent.glob(pattern))
    lines = [line for line in dynamic_section(library) if "RUNPATH" in line or "RPATH" in line]
    assert lines
    for line in lines:
        paths = line.split("[", 1)[1].rstrip("]").split(":")
        assert all(p.startswith("$ORIGIN/") for p in paths), line


def test_the_wheel_holds_no_torch_library() -> None:
    package = Path(tabes.__file__).parent
    assert not [p for p in package.rglob("*.so*") if "torch" in p.name or "c10" in p.name]


def exported(library: Path) -> set[str]:
    """Functions, demangled, without arguments; and "class NAME" for those with type information."""
    done = subprocess.run(
        ["nm", "-DC", "--defined-only", library], capture_output=True, text=True, check=True
    )
    names = set()
    for line in done.stdout.splitlines():
        name = line.split(maxsplit=2)[2].partition("(")[0].replace("[abi:cxx11]", "")
        kind, of, rest = name.partition(" for ")
        if not of:
            names.add(name)
        elif kind == "typeinfo":
            names.add(f"class {rest}")
    return names


def test_the_library_exports_its_public_interface_alone() -> None:
    """A new name is added to the list on purpose: hosts will come to rely on it."""
    library = next(Path(tabes.__file__).parent.glob("lib*/libtabes.so*"))
    listed = set((Path(__file__).parent / "exported.txt").read_text().split("\n")) - {""}
    assert exported(library) == listed


def test_the_soname_has_the_version_that_breaks() -> None:
    library = next(Path(tabes.__file__).parent.glob("lib*/libtabes.so*"))
    soname = next(line for line in dynamic_section(library) if "SONAME" in line)
    major_minor = ".".join(tabes.__version__.split(".")[:2])
    assert f"[libtabes.so.{major_minor}]" in soname
    assert tabes._core.version == tabes.__version__
