"""What `find_package(tabes)` finds, with packages that are nothing but their CMake files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.case("U4", "N08")

CPP = Path(__file__).parents[2] / "cpp"
BUILT_FOR = "2.13.0"
PACKAGE = """
include(CMakePackageConfigHelpers)
set(CMAKE_INSTALL_PREFIX {prefix})
set(TABES_TORCH_VERSION {version})
set(TABES_TORCH_HINT "{hint}")
configure_package_config_file({source} {out} INSTALL_DESTINATION lib/cmake/tabes)
"""
CONSUMER = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES NONE)
{before}
find_package(tabes CONFIG REQUIRED)
if(NOT TARGET tabes::tabes)
  message(FATAL_ERROR "no target")
endif()
message(STATUS "torch: ${{TORCH_INSTALL_PREFIX}}")
"""


def tabes_in(site: Path, hint: str = "") -> Path:
    """A wheel's folder tabes/ in `site`; returns what to give as tabes_DIR."""
    folder = site / "tabes" / "lib" / "cmake" / "tabes"
    folder.mkdir(parents=True)
    script = site / "package.cmake"
    source, out = CPP / "tabesConfig.cmake.in", folder / "tabesConfig.cmake"
    made = PACKAGE.format(
        prefix=site / "tabes", version=BUILT_FOR, hint=hint, source=source, out=out
    )
    script.write_text(made)
    subprocess.run(["cmake", "-P", script], check=True, capture_output=True)
    shutil.copy(CPP / "tabesTorch.cmake", folder)
    (folder / "tabesTargets.cmake").write_text("add_library(tabes::tabes INTERFACE IMPORTED)\n")
    return folder


def torch_in(site: Path, version: str = BUILT_FOR, cuda: bool = False) -> Path:
    """Torch's package files in `site`; returns what to give as Torch_DIR."""
    folder = site / "torch" / "share" / "cmake" / "Torch"
    folder.mkdir(parents=True)
    config = f'set(TORCH_INSTALL_PREFIX "{site}/torch")\nset(Torch_FOUND TRUE)\n'
    if cuda:
        config = 'message(FATAL_ERROR "no CUDA toolkit")\n'
        (site / "torch" / "lib").mkdir()
        (site / "torch" / "lib" / "libtorch_cuda.so").touch()
    (folder / "TorchConfig.cmake").write_text(config)
    (folder / "TorchConfigVersion.cmake").write_text(
        f'set(PACKAGE_VERSION "{version}")\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n'
    )
    return folder


def configure(tmp_path: Path, package: Path, *options: str, before: str = "") -> tuple[int, str]:
    source = tmp_path / "consumer"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER.format(before=before))
    cmake = shutil.which("cmake")
    assert cmake is not None
    # Nothing of the caller's environment that would help to find Torch.
    environment = {"PATH": f"{Path(cmake).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [cmake, "-S", source, "-B", tmp_path / "build", f"-Dtabes_DIR={package}", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("cuda", [False, True])
def test_torch_is_found_beside_the_package(cuda: bool, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    package = tabes_in(site)
    torch_in(site, cuda=cuda)
    code, said = configure(tmp_path, package)
    assert code == 0, said
    assert f"torch: {site}/torch" in said


def test_torch_is_found_where_a_plain_install_was_built_with_it(tmp_path: Path) -> None:
    built_with = torch_in(tmp_path / "elsewhere")
    code, said = configure(tmp_path, tabes_in(tmp_path / "prefix", hint=str(built_with)))
    assert code == 0, said
    assert f"torch: {tmp_path}/elsewhere/torch" in said


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("how", ["Torch_DIR", "CMAKE_PREFIX_PATH", "found before"])
def test_the_consumers_own_torch_comes_first(how: str, cuda: bool, tmp_path: Path) -> None:
    site, own = tmp_path / "site-packages", tmp_path / "own"
    package = tabes_in(site)
    torch_in(site, cuda=cuda)
    folder = torch_in(own, cuda=cuda and how != "found before")
    if how == "found before":
        before = f"find_package(Torch REQUIRED PATHS {folder} NO_DEFAULT_PATH)"
        code, said = configure(tmp_path, package, before=before)
    elif how == "Torch_DIR":
        code, said = configure(tmp_path, package, f"-DTorch_DIR={folder}")
    else:
        code, said = configure(tmp_path, package, f"-DCMAKE_PREFIX_PATH={folder.parent}")
    assert code == 0, said
    assert f"torch: {own}/torch" in said


def test_another_version_is_refused(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    package = tabes_in(site)
    torch_in(site, version="2.12.1")
    code, said = configure(tmp_path, package)
    assert code != 0
    assert "this tabes was built for Torch 2.13.0, but Torch 2.12.1 was found" in said


def test_without_torch_the_message_says_what_to_give(tmp_path: Path) -> None:
    code, said = configure(tmp_path, tabes_in(tmp_path / "site-packages"))
    assert code != 0
    assert "tabes needs Torch 2.13.0" in said
    assert "-DTorch_DIR=" in said
