"""What a load holds at its worst: the model and one tensor, whatever the allocator keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

MIB = 2**20
# Beyond model and largest tensor: what is freed between two returns of memory to the system.
SLACK = 16 * MIB

PROGRAM = """
import json, sys
from pathlib import Path
import tabes

def kib(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

tabes.load(tabes.demo_checkpoint(), dtype=sys.argv[2])  # oneDNN and the like are set up
before = kib("VmRSS:")
model = tabes.load(sys.argv[1], dtype=sys.argv[2])
print(json.dumps([(kib("VmHWM:") - before) * 1024, model.info.parameters]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_holds_the_model_and_one_tensor(
    tiny_llada: Callable[..., tuple], dtype: str
) -> None:
    vocab, width = 16_000, 1024
    folder, _ = tiny_llada(
        n_layers=5, d_model=width, n_heads=16, n_kv_heads=16, vocab=vocab, shards=4,
        dtype=torch.bfloat16,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), dtype], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    added, parameters = json.loads(done.stdout)
    size = getattr(torch, dtype).itemsize
    allowed = (parameters + vocab * width) * size + SLACK
    print(f"{dtype}: {added / MIB:.0f} MiB added, model {parameters * size / MIB:.0f} MiB")
    assert added <= allowed
    assert added > parameters * size  # the weights are really held, so the measure is one


EXHAUSTED = """
import resource, sys
from pathlib import Path
import tabes

model = tabes.load(tabes.demo_checkpoint())
canvas = [1] + [3] * 38 + [2]
wanted = tabes.generate(model, [canvas], steps=2).tokens[0]
held = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) * 1024
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, limits[1]))
try:
    tabes.generate(
        model, [canvas] * 20_000, steps=2, policy=sys.argv[1], on_device=sys.argv[2] == "device"
    )
except tabes.DeviceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
assert tabes.generate(model, [canvas], steps=2).tokens[0].equal(wanted)
"""


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("policy", ["confidence", "boe"])
def test_memory_that_runs_out_is_an_error_and_the_model_stays(policy: str, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, policy, where],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out of memory on cpu in step 0 of 20000 sequences of up to 40 tokens" in done.stdout
    assert "decode fewer at a time" in done.stdout
