"""What needs a GPU. Without one: skipped, saying so; TABES_REQUIRE_CUDA=1 makes that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tabes
import torch

MIB = 2**20
MASK = 3
CANVAS = [1] + [MASK] * 20 + [2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def gpu() -> None:
    if torch.cuda.is_available():
        return
    reason = "no CUDA device on this machine"
    if os.environ.get("TABES_REQUIRE_CUDA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def tokens(model: tabes.Model, canvas: list[int], **options: object) -> list[int]:
    out = tabes.generate(model, canvas, **options)  # type: ignore[arg-type]
    assert isinstance(out.tokens, torch.Tensor)
    return out.tokens.tolist()


@pytest.mark.usefixtures("gpu")
def test_decodes_on_cuda_as_on_cpu() -> None:
    on_cpu = tabes.load(tabes.demo_checkpoint())
    on_gpu = tabes.load(tabes.demo_checkpoint(), device="cuda")
    for policy in ("confidence", "boe"):
        wanted = tokens(on_cpu, CANVAS, policy=policy)
        assert tokens(on_gpu, CANVAS, policy=policy) == wanted


@pytest.mark.usefixtures("gpu")
def test_passes_that_come_back_are_replayed() -> None:
    model = tabes.load(tabes.demo_checkpoint(), device="cuda")
    wanted = tokens(model, CANVAS, cuda_graphs=False)
    # The first sees the shapes, the second records those that came once, the third replays all.
    runs = [tabes.generate(model, CANVAS, cuda_graphs=True) for _ in range(3)]
    for run in runs:
        assert isinstance(run.tokens, torch.Tensor)
        assert run.tokens.tolist() == wanted
    assert runs[2].replayed_passes >= len(runs[2].trace)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checkpoint_goes_straight_to_the_device(dtype: torch.dtype) -> None:
    """The device holds the model and, at its worst, one tensor of it twice."""
    folder = tabes.demo_checkpoint()
    tabes.load(folder, device="cuda", dtype=dtype)  # libraries take their workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = tabes.load(folder, device="cuda", dtype=dtype)
    added = torch.cuda.max_memory_allocated() - before
    size = model.info.parameters * dtype.itemsize
    print(f"{dtype}: {added / MIB:.1f} MiB at most, the model {size / MIB:.1f} MiB")
    # Its largest tensor is the two halves of an MLP in one, 1.5 MiB in float32; the rest of the
    # margin is what the allocator rounds up. Twice the model would be 10 MiB more and above.
    assert size <= added <= size + 4 * MIB

    assert str(model.info.device).startswith("cuda")
    canvas = torch.tensor([CANVAS])
    wanted, got = (m.logits(canvas) for m in (tabes.load(folder), model))
    assert isinstance(wanted, torch.Tensor)
    assert isinstance(got, torch.Tensor)
    # How near exactly, parity.py says.
    near = 1e-4 if dtype == torch.float32 else 0.05
    assert (got.cpu() - wanted).abs().max() <= near * wanted.abs().max()
    assert MASK not in tokens(model, CANVAS, policy="boe", steps=4)


EXHAUSTED = """
import json, sys
import tabes, torch

def allocated():
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()

model = tabes.load(tabes.demo_checkpoint(), device="cuda", dtype=sys.argv[3])
canvas = [1] + [3] * 38 + [2]
options = dict(steps=4, policy=sys.argv[1], cuda_graphs=sys.argv[2] == "graphs")
for _ in range(3):
    wanted = tabes.generate(model, [canvas], **options).tokens[0]
before = allocated()
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**27) / total)
said = ""
try:
    tabes.generate(model, [canvas] * 20_000, **options)
except tabes.DeviceError as error:
    said = str(error)
after = allocated()
torch.cuda.set_per_process_memory_fraction(1.0)
again = tabes.generate(model, [canvas], **options).tokens[0]
print(json.dumps([said, before, after, wanted.tolist(), again.tolist()]))
"""


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("graphs", ["graphs", "eager"])
@pytest.mark.parametrize("policy", ["confidence", "boe"])
def test_memory_that_runs_out_is_an_error_and_the_model_stays(
    policy: str, graphs: str, dtype: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, policy, graphs, dtype],
        # By our own adjoint, which gives the same bits every time.
        env=os.environ | {"TABES_ATTENTION": "own"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, before, after, wanted, again = json.loads(done.stdout.splitlines()[-1])
    assert "out of memory on cuda" in said
    assert "in step 0 of 20000 sequences of up to 40 tokens" in said
    assert "decode fewer at a time" in said
    assert again == wanted
    # Of the failed decode nothing is left: its token ids alone would be 6 MiB.
    print(f"{before / MIB:.1f} MiB allocated before, {after / MIB:.1f} MiB after")
    assert after <= before + 2 * MIB


def has_cuda_kernels() -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("tabes::row_statistics", "CUDA"))


def test_a_cpu_build_says_how_to_get_cuda() -> None:
    if has_cuda_kernels():
        pytest.skip("this tabes is a CUDA build")
    with pytest.raises(tabes.DeviceError, match="TABES_CUDA=ON"):
        tabes.load(tabes.demo_checkpoint(), device="cuda")
