"""What needs a GPU. Without one: skipped, saying so; TABES_REQUIRE_CUDA=1 makes that fail."""

import os

import pytest
import tabes
import torch


def test_decodes_on_cuda_as_on_cpu() -> None:
    if not torch.cuda.is_available():
        reason = "no CUDA device on this machine"
        if os.environ.get("TABES_REQUIRE_CUDA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    tokens = [1] + [3] * 20 + [2]
    on_cpu = tabes.generate(tabes.load(tabes.demo_checkpoint()), tokens)
    on_gpu = tabes.generate(tabes.load(tabes.demo_checkpoint(), device="cuda"), tokens)
    assert torch.equal(on_cpu.tokens, on_gpu.tokens)


def test_a_cpu_build_says_how_to_get_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(tabes.DeviceError, match="TABES_CUDA=ON"):
        tabes.load(tabes.demo_checkpoint(), device="cuda")
