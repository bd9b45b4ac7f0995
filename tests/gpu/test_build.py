"""What a build that is asked for CUDA says where CUDA is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def configure(build: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    assert cmake, "cmake is a test requirement"
    return subprocess.run(
        [
            cmake, "-S", str(ROOT), "-B", str(build), "-DTABES_CUDA=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_cuda_compiler_configuration_fails(tmp_path: Path) -> None:
    """A compiler that cannot be run stands for none: hiding nvcc would hide other tools too."""
    done = configure(tmp_path, CUDACXX=str(tmp_path / "no-nvcc"))
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "TABES_CUDA=ON, but there is no CUDA compiler" in said
    assert "CUDACXX=/path/to/nvcc" in said
    assert "-DTABES_CUDA=OFF" in said


def test_with_a_cpu_pytorch_configuration_fails(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    if torch.version.cuda:
        pytest.skip("this PyTorch is a CUDA build")
    done = configure(tmp_path)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "TABES_CUDA=ON needs a CUDA build of PyTorch" in said
    assert "-DTABES_CUDA=OFF" in said
