"""Memory: what a load and a step hold at their worst, that decodes do not add to it for good, and
what happens where it does not suffice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


@pytest.mark.case("N18")
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
    assert "are needed, " in done.stdout
    assert "are free)" in done.stdout


RAGGED = """
import random, sys
from pathlib import Path
import tabes, torch

torch.set_num_threads(1)
model = tabes.load(tabes.demo_checkpoint(), dtype=sys.argv[1], prepack=sys.argv[2] == "True")
mask, draw = model.info.mask_token_id, random.Random(0)

def decode():
    canvases = [[1] + [mask] * draw.randint(2, 50) + [2] for _ in range(3)]
    policy = draw.choice(("confidence", "entropy_bound", "boe", tabes.BoE(context="exact")))
    tabes.generate(model, canvases, steps=3, policy=policy)

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

# All that comes once: the longest canvases, every policy, the kernels of every tile.
for n in (*range(2, 51, 4), 50):
    for policy in ("confidence", tabes.BoE(context="exact")):
        tabes.generate(model, [[1] + [mask] * n + [2]] * 3, steps=2, policy=policy)
before = resident()
for _ in range(int(sys.argv[3])):
    decode()
print(resident() - before)
"""


@pytest.mark.case("N02")
@pytest.mark.parametrize(
    ("dtype", "prepack", "decodes"),
    [("float32", True, 120), ("bfloat16", True, 120), ("bfloat16", False, 40)],
)
def test_memory_does_not_grow_with_new_shapes(dtype: str, prepack: bool, decodes: int) -> None:
    """Ragged batches never repeat: with something kept for every number of rows this adds 200 to
    500 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", RAGGED, dtype, str(prepack), str(decodes)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout)
    print(f"{dtype}: {grown:.1f} MiB more")
    assert grown <= 16


STEERED = """
import sys
from pathlib import Path
import tabes, torch

def kib(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

torch.set_num_threads(1)
demo = tabes.load(tabes.demo_checkpoint(), dtype=sys.argv[2])
tabes.generate(demo, [1] + [3] * 30 + [2], steps=2, policy="boe")
model = tabes.load(sys.argv[1], dtype=sys.argv[2])
held = kib("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
tabes.generate(model, [4] * 8 + [model.info.mask_token_id] * 24, steps=2, policy="boe")
print((kib("VmHWM:") - held) * 1024, model.info.parameters)
"""


@pytest.mark.case("N18")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steering_holds_no_second_copy_of_the_weights(
    tiny_llada: Callable[..., tuple], dtype: str
) -> None:
    folder, _ = tiny_llada(
        n_layers=6, d_model=1024, n_heads=16, n_kv_heads=16, vocab=2_000, dtype=torch.bfloat16
    )
    done = subprocess.run(
        [sys.executable, "-c", STEERED, str(folder), dtype], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    added, parameters = map(int, done.stdout.split())
    weights = parameters * getattr(torch, dtype).itemsize
    print(f"{dtype}: a BoE step adds {added / MIB:.0f} MiB to {weights / MIB:.0f} MiB of weights")
    assert weights > 100 * MIB
    assert added < weights / 3


TOO_LARGE = """
import resource, sys, time
from pathlib import Path
import tabes

tabes.load(tabes.demo_checkpoint())
held = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.getrlimit(resource.RLIMIT_AS)[1]))
read = []
try:
    tabes.load(sys.argv[1], progress=lambda done, total: read.append(done))
except tabes.DeviceError as error:
    print(error)
assert not read
"""


@pytest.mark.case("N18")
def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    tiny_llada: Callable[..., tuple],
) -> None:
    folder, _ = tiny_llada(
        n_layers=4, d_model=1024, n_heads=16, n_kv_heads=16, vocab=2_000, dtype=torch.bfloat16
    )
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "not enough memory to load the model on cpu" in done.stdout
    assert "load it in bfloat16" in done.stdout
    assert "MiB are needed, " in done.stdout
    assert "MiB are free)" in done.stdout


MEASURED = """
import json, sys
import torch
from tabes.process_memory import AddedMemory

torch.set_num_threads(1)

def hold(mib, piece=2**16):
    # Little pieces, so that they come from the heap, which keeps what is freed.
    return [bytearray(b"x" * piece) for _ in range(mib * 2**20 // piece)]

def added(mib):
    measured = AddedMemory()
    hold(mib)
    return measured.mib()

first = added(40)
hold(400)  # another method, which took much
print(json.dumps([first, added(40), added(200), added(40)]))
"""


@pytest.mark.case("N02")
def test_the_memory_of_a_method_is_its_own() -> None:
    """Whatever ran before it in the same process."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, large, third = json.loads(done.stdout)
    for small in (first, second, third):
        assert 38 <= small <= 50
    assert 195 <= large <= 215


EVALUATED = """
import json, sys
from pathlib import Path
import tabes, torch
from tabes.evaluation import Settings, evaluate
from tabes.evaluation.data import read_file

torch.set_num_threads(1)
model = tabes.load("moses")
data = {"infill": read_file(Path(sys.argv[1]))}
out = Path(sys.argv[2])
evaluate(model, ["infill"], Settings(steps=2), out / "0", data=data)  # what comes once
held = [bytearray(b"x" * 2**16) for _ in range(16 * 400)]
held = None
report = evaluate(model, ["infill"], Settings(steps=2), out / "1", data=data)
print(json.dumps(report.values["peak_memory_mib"]))
"""


@pytest.mark.case("N02")
def test_the_memory_of_an_evaluation_is_its_own(tmp_path: Path) -> None:
    """400 MiB that were freed before are no part of it."""
    data = tmp_path / "infill.jsonl"
    data.write_text(json.dumps({"prompt": "CC(=O)[MASK]C", "answer": "CC(=O)OC"}) + "\n")
    arguments = [sys.executable, "-c", EVALUATED, str(data), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert set(peak) == {"host", "added"}
    assert 0 <= peak["added"] < 50
    assert peak["added"] < peak["host"] < model_and_torch() + 200


def model_and_torch() -> float:
    """MiB that a process holds which imports tabes and loads the model."""
    code = "import tabes; tabes.load('moses')\nfrom tabes.process_memory import memory\n"
    code += "print(memory('VmRSS'))"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))
