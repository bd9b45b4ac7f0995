"""What a child of fork may compute: a typed error where it would wait for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

# Runs in a fresh process: the parent does `before`, a child each of `children`, and says what came
# of it.
CODE = """
import os, sys, warnings
warnings.simplefilter("ignore")  # of fork in a process with threads
import tabes, torch
torch.set_num_threads({threads})
x = torch.tensor([1, *[3] * 40, 2])
long = torch.stack([x] * 16)
def load():
    return tabes.load(tabes.demo_checkpoint())
def compute(model):
    model.logits(long)
    tabes.generate(model, long, steps=2, policy="boe")
model = None
{before}
for after in {children!r}:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            exec(after)
            print("computed")
        except tabes.DeviceError as error:
            print("DeviceError", error)
        except BaseException as error:
            print("other", type(error), error)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def outcomes(threads: int, before: str, *children: str) -> list[str]:
    code = CODE.format(threads=threads, before=before, children=children)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == len(children), said
    return said


@pytest.mark.case("U3")
def test_a_child_of_threads_says_so() -> None:
    for said in outcomes(
        2,
        "model = load(); compute(model)",
        "compute(model)",
        "model.logits(x)",
        "load()",
        "tabes.influence(model, [x.tolist()], [[1]], [[2]])",
        "tabes.wrap(lambda inputs_embeds: inputs_embeds, mask_token_id=1,"
        " embedding_table=torch.eye(4))",
    ):
        assert said.startswith("DeviceError this process was forked from one that had computed in")
        assert "spawn" in said
        assert "torch.set_num_threads(1)" in said
    loaded = outcomes(2, "model = load()", "compute(model)")  # which takes threads as well
    assert loaded[0].startswith("DeviceError")


@pytest.mark.case("U3")
def test_a_child_that_can_go_on_does() -> None:
    did = "model = load(); compute(model)"
    assert outcomes(1, did, "compute(model)", "compute(load())") == ["computed"] * 2
    one = "torch.set_num_threads(1); compute(model)"
    assert outcomes(2, did, one, one) == ["computed"] * 2
    assert outcomes(2, "pass", "compute(load())") == ["computed"]
