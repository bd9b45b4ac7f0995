"""Whole decodes: against a plain PyTorch loop, and the promises of the sampler."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tabes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

MASK, BOS, EOS = 3, 1, 2
# Policies that can do without the host.
ON_DEVICE = {
    "random",
    "confidence",
    "margin",
    "entropy",
    "threshold",
    "factor",
    "entropy_bound",
    "spread",
    "pc_sampler",
    "boe",
}


def plain_decode(logits_of, tokens: torch.Tensor, steps: int, policy: str) -> torch.Tensor:
    """LLaDA's greedy sampler as a researcher would write it: one block, argmax tokens."""
    x = tokens.clone()
    total = int((x == MASK).sum())
    steps = min(steps, total)
    for i in range(steps):
        where = (x == MASK).nonzero().squeeze(1)
        logits = logits_of(x)[where].double()
        logits[:, MASK] = -torch.inf
        p = logits.softmax(-1)
        top = p.topk(2, -1).values
        score = {
            "confidence": top[:, 0],
            "margin": top[:, 0] - top[:, 1],
            "entropy": (p * p.clamp_min(1e-300).log()).sum(-1),
        }[policy]
        count = total // steps + (i < total % steps)
        best = torch.argsort(score, descending=True, stable=True)[:count]
        x[where[best]] = p.argmax(-1)[best]
    return x


@pytest.mark.parametrize("policy", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_decodes_equal_a_plain_loop(demo_model: tabes.Model, policy: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    prompts = []
    for i in range(count):
        length = 8 + 40 * i // count
        t = torch.randint(4, demo_model.info.vocab_size, (length,), generator=generator)
        t[torch.rand(length, generator=generator) < 0.7] = MASK
        t[0], t[-1], t[1] = BOS, EOS, MASK
        prompts.append(t)
    out = tabes.generate(demo_model, prompts, steps=9, policy=policy)
    for prompt, got in zip(prompts, out.tokens, strict=True):
        wanted = plain_decode(lambda x: demo_model.logits(x[None])[0], prompt, 9, policy)
        assert torch.equal(got, wanted)


lengths = st.lists(st.integers(1, 24), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    steps=st.integers(1, 30),
    policy=st.sampled_from(tabes.policy_names()),
    temperature=st.sampled_from([0.0, 0.7, 3.0]),
    block=st.sampled_from([None, 30, 100]),
    seed=st.integers(0, 2**31),
    on_device=st.booleans(),
)
def test_promises(demo_model, lengths, steps, policy, temperature, block, seed, on_device) -> None:
    rng = np.random.default_rng(seed)
    prompts = []
    for n in lengths:
        t = torch.from_numpy(rng.integers(4, demo_model.info.vocab_size, n))
        t[torch.from_numpy(rng.random(n) < 0.6)] = MASK
        t[0] = MASK
        prompts.append(t)
    settings_ = dict(steps=steps, policy=policy, temperature=temperature, block_length=block)
    if on_device and policy in ON_DEVICE:
        settings_["on_device"] = True
    out = tabes.generate(demo_model, prompts, seed=seed, **settings_)
    again = tabes.generate(demo_model, prompts, seed=seed, **settings_)
    seen = [t.clone() for t in prompts]
    tokens = list(out.tokens)
    for before, after, repeat in zip(prompts, tokens, again.tokens, strict=True):
        fixed = before != MASK
        assert torch.equal(before[fixed], after[fixed])  # given tokens never change
        assert not (after == MASK).any()
        assert torch.equal(after, repeat)  # same seed, same tokens
    for record in out.trace:
        for b, p, t in zip(record.sequence, record.position, record.token, strict=True):
            assert seen[b][p] == MASK  # revealed once, unless it was masked again
            seen[b][p] = t
        for b, p in zip(record.remasked_sequence, record.remasked_position, strict=True):
            assert prompts[b][p] == MASK
            assert seen[b][p] != MASK
            seen[b][p] = MASK
    assert all(torch.equal(a, b) for a, b in zip(seen, tokens, strict=True))
    assert out.forward_rows == sum(r.forward_rows for r in out.trace)
    last = len(prompts) - 1
    alone = tabes.generate(demo_model, [prompts[last]], seed=seed, sequence_ids=[last], **settings_)
    assert torch.equal(alone.tokens[0], tokens[last])  # alone = in a batch


@pytest.mark.parametrize("options", [{}, {"refresh_every": 3}, {"block_length": 9}])
@pytest.mark.parametrize("policy", ["confidence", "random", tabes.BoE(factor=0.0)])
def test_rows_selected_on_the_device_are_the_hosts(demo_model, policy, options) -> None:
    prompts = [[MASK] * n for n in (31, 12, 24)]
    settings_ = dict(policy=policy, steps=8, temperature=0.7, seed=3, **options)
    host = tabes.generate(demo_model, prompts, on_device=False, **settings_)
    device = tabes.generate(demo_model, prompts, on_device=True, **settings_)
    assert all(torch.equal(a, b) for a, b in zip(host.tokens, device.tokens, strict=True))
    assert host.forward_equivalents == device.forward_equivalents
    assert host.head_rows == device.head_rows
    assert device.to_dict()["trace"][0]["model_seconds"] is None


@pytest.mark.parametrize("refresh_every", [1, 3])
@pytest.mark.parametrize("policy", ["factor", tabes.BoE(), tabes.BoE.paper()])
def test_tokens_are_the_hosts_where_counts_are_not_known(demo_model, policy, refresh_every) -> None:
    prompts = [[MASK] * n for n in (31, 12, 24)]
    settings_ = dict(policy=policy, steps=8, temperature=0.7, seed=3, refresh_every=refresh_every)
    host = tabes.generate(demo_model, prompts, on_device=False, **settings_)
    device = tabes.generate(demo_model, prompts, on_device=True, **settings_)
    assert all(torch.equal(a, b) for a, b in zip(host.tokens, device.tokens, strict=True))
    assert [r.position.tolist() for r in host.trace] == [r.position.tolist() for r in device.trace]
    assert device.forward_rows >= host.forward_rows


def test_a_decode_that_needs_the_host_says_so(demo_model: tabes.Model) -> None:
    with pytest.raises(tabes.InputError, match=r"policy klass .* needs the host"):
        tabes.generate(demo_model, [MASK] * 8, policy="klass", on_device=True)
    with pytest.raises(tabes.InputError, match="on_device"):
        tabes.generate(demo_model, [MASK] * 8, on_device="cuda")


def test_graphs_are_for_a_gpu(demo_model: tabes.Model) -> None:
    with pytest.raises(tabes.InputError, match=r"cuda_graphs=true, .*'llada' on cpu"):
        tabes.generate(demo_model, [MASK] * 8, cuda_graphs=True)
    plain = tabes.generate(demo_model, [MASK] * 8, cuda_graphs=False)
    assert plain.replayed_passes == 0


def guided(model: tabes.Model, prompt: torch.Tensor, scale: float) -> torch.Tensor:
    """One guided step that reveals every mask."""
    conditional = model.logits(prompt[None])[0].double()
    without = model.logits(torch.full_like(prompt, MASK)[None])[0].double()
    logits = without + (scale + 1) * (conditional - without)
    logits[:, MASK] = -torch.inf
    return torch.where(prompt == MASK, logits.argmax(-1), prompt)


def test_guidance_matches_its_formula(demo_model: tabes.Model) -> None:
    prompt = torch.tensor([BOS, 7, 8, MASK, MASK, MASK, 9, EOS])
    out = tabes.generate(demo_model, prompt, steps=1, cfg_scale=1.5)
    assert torch.equal(out.tokens, guided(demo_model, prompt, 1.5))
    assert out.forward_equivalents == 2.0


def test_guidance_of_texts_empty_and_ragged_prompts(demo_model: tabes.Model) -> None:
    assert demo_model.tokenizer is not None
    texts = ["CC(=O)N", "", "c1ccc"]
    out = tabes.generate(demo_model, texts, gen_length=5, steps=1, cfg_scale=0.7)
    for text, tokens in zip(texts, out.tokens, strict=True):
        *prompt, end = demo_model.tokenizer.encode(text)
        canvas = torch.tensor([*prompt, *[MASK] * 5, end])
        assert torch.equal(tokens, guided(demo_model, canvas, 0.7)), text
    assert out.forward_equivalents == 2.0
    # Nothing at all but masks: with and without the prompt are the same, and so is the result.
    bare = torch.full((6,), MASK)
    free = tabes.generate(demo_model, bare, steps=1, cfg_scale=3.0)
    assert torch.equal(free.tokens, tabes.generate(demo_model, bare, steps=1).tokens)
    # Over several steps a sequence is guided in a batch as it is alone.
    together = tabes.generate(demo_model, texts, gen_length=5, steps=3, cfg_scale=0.7)
    for text, tokens in zip(texts, together.tokens, strict=True):
        alone = tabes.generate(demo_model, text, gen_length=5, steps=3, cfg_scale=0.7)
        assert torch.equal(alone.tokens, tokens), text


def test_a_python_policy_decides(demo_model: tabes.Model) -> None:
    class LeftToRight(tabes.Policy):
        def name(self) -> str:
            return "left_to_right"

        def score(self, context: tabes.StepContext) -> torch.Tensor:
            return -context.rows.double()

    out = tabes.generate(demo_model, [BOS] + [MASK] * 6 + [EOS], policy=LeftToRight(), steps=6)
    assert [int(r.position[0]) for r in out.trace] == [1, 2, 3, 4, 5, 6]

    class Broken(LeftToRight):
        def score(self, context: tabes.StepContext) -> torch.Tensor:
            return torch.full_like(context.rows, torch.nan, dtype=torch.float64)

    with pytest.raises(tabes.NumericsError, match="step 0, sequence 0, position 1"):
        tabes.generate(demo_model, [BOS, MASK, EOS], policy=Broken())


def test_a_policy_without_a_rule_is_refused(demo_model: tabes.Model) -> None:
    with pytest.raises(tabes.InputError, match="must define score"):
        tabes.generate(demo_model, [BOS, MASK, EOS], policy=tabes.Policy())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_ambient_modes_change_nothing(demo_model, grad, autocast, inference) -> None:
    prompt = [BOS] + [MASK] * 20 + [EOS]
    wanted = tabes.generate(demo_model, prompt, temperature=1.0).tokens
    with (
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.inference_mode(inference),
    ):
        assert torch.equal(tabes.generate(demo_model, prompt, temperature=1.0).tokens, wanted)


def test_threads_share_a_model(demo_model: tabes.Model) -> None:
    prompt = [BOS] + [MASK] * 12 + [EOS]
    wanted = [tabes.generate(demo_model, prompt, temperature=1.0, seed=s).tokens for s in range(8)]
    failures = []

    def work(seed: int) -> None:
        for _ in range(5):
            got = tabes.generate(demo_model, prompt, temperature=1.0, seed=seed).tokens
            if not torch.equal(got, wanted[seed]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_callback_errors_reach_the_caller(demo_model: tabes.Model) -> None:
    def fail(record, tokens):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        tabes.generate(demo_model, [BOS, MASK, MASK, EOS], callback=fail)
    assert tabes.generate(demo_model, [BOS, MASK, MASK, EOS]).finished


def test_ctrl_c_stops_a_long_decode() -> None:
    program = """
import os, signal, tabes
# A shell that starts jobs in the background makes them ignore SIGINT, which Python keeps.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = tabes.load(tabes.demo_checkpoint())
def first(record, tokens):
    if record.step == 0:
        os.kill(os.getpid(), signal.SIGINT)
try:
    tabes.generate(model, [[1] + [3] * 250 + [2]] * 8, steps=250, callback=first)
except KeyboardInterrupt:
    print("interrupted", tabes.generate(model, [1, 3, 2]).finished)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "interrupted True", done.stderr
    assert signal.SIGINT  # the signal the program sends itself


def test_nan_weights_are_a_typed_error(tiny_llada) -> None:
    folder, _ = tiny_llada(n_layers=1, d_model=32, n_heads=2, n_kv_heads=2, vocab=20)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ln_f.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(tabes.CheckpointError, match=r"ln_f\.weight\" is NaN at \[3\]"):
        tabes.load(folder)


def test_other_threads_run_while_a_decode_does(demo_model: tabes.Model) -> None:
    """A thread of pure Python keeps at least a tenth of its speed beside a decode, whatever else
    the machine does; if the interpreter lock were held it would come to nothing."""
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1

    def rate(work) -> float:
        began, before = time.monotonic(), ticks[0]
        work()
        return (ticks[0] - before) / (time.monotonic() - began)

    prompt = [[BOS] + [MASK] * 200 + [EOS]] * 4
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        alone = rate(lambda: time.sleep(0.5))
        beside = rate(lambda: tabes.generate(demo_model, prompt, steps=20))
    finally:
        stop.set()
        thread.join()
    assert beside > 0.1 * alone
