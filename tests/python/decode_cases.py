"""Decodes drawn by Hypothesis: tiny random models of both native layouts, and every setting."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tabes
import torch
from hypothesis import strategies as st
from llada_torch import LLaDA, LLaDAConfig
from safetensors.torch import save_file

VOCABULARY, MASK, EOS = 24, 3, 2
LAYOUTS = ("llada", "bert")
# Beside the names: BoE where it pays for exact contexts, other probes, halos and points.
POLICIES: dict[str, Callable[[], Any]] = {
    **{name: functools.partial(tabes.make_policy, name) for name in tabes.policy_names()},
    "boe always": lambda: tabes.BoE(factor=0.0),
    "boe exact": lambda: tabes.BoE(
        context="exact", alpha=[0.25, 1.0], halo=1, draft="expected", factor=0.0, spread=0.0
    ),
    "boe probes": lambda: tabes.BoE(
        probes="least_entropic", rho=0.5, rule="product", adjoint="dense", every=2, factor=0.0
    ),
}
REMASKING = frozenset(name for name in POLICIES if name.startswith("remdm"))
LOOKING_AHEAD = frozenset({"info_gain", "lookum", "oracle"})
STEERING = frozenset(name for name in POLICIES if name.startswith("boe"))


def folder(layout: str, scale: float = 1.0) -> Path:
    """A checkpoint of width 16. With `scale` 0 all matrices are zero, and all logits equal."""
    path = Path(_scratch().name) / f"{layout}-{scale}"
    if path.is_dir():
        return path
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config, weights = {"llada": _llada, "bert": _bert}[layout]()
    scale *= {"llada": 4, "bert": 12}[layout]  # so that rows differ and some are certain
    weights = {k: v * scale if v.dim() > 1 else v for k, v in weights.items()}
    save_file(
        {k: v.clone(memory_format=torch.contiguous_format) for k, v in weights.items()},
        path / "model.safetensors",
    )
    special = {"vocab_size": VOCABULARY, "mask_token_id": MASK, "eos_token_id": EOS}
    (path / "config.json").write_text(json.dumps(config | special))
    return path


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tabes-cases-")


@functools.cache
def model(layout: str, scale: float = 1.0) -> tabes.Model:
    return tabes.load(folder(layout, scale))


def _llada() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = LLaDAConfig(16, 2, 2, 1, 24, VOCABULARY)
    described = {
        "model_type": "llada", "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1,
        "mlp_hidden_size": 24, "embedding_size": VOCABULARY, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta, "weight_tying": False, "include_bias": False,
        "include_qkv_bias": False, "max_sequence_length": 64,
    }  # fmt: skip
    return described, LLaDA(config).state_dict()


def _bert() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    import transformers

    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    config = transformers.BertConfig(**sizes)
    described = {"model_type": "bert", **sizes, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    return described, transformers.BertForMaskedLM(config).state_dict()


@dataclass
class Case:
    """A batch and how to decode it. Hypothesis prints it where a property fails."""

    layout: str
    policy: str
    prompts: list[list[int]]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> tabes.Model:
        return model(self.layout)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [torch.tensor(prompt) for prompt in self.prompts]

    @property
    def masks(self) -> list[int]:
        return [prompt.count(MASK) for prompt in self.prompts]

    @property
    def pace(self) -> str:
        return str(POLICIES[self.policy]().pace())

    def run(self, prompts: list[Any] | None = None, **changes: Any) -> tabes.GenerateOutput:
        return tabes.generate(
            self.model,
            self.prompts if prompts is None else prompts,
            **{"policy": POLICIES[self.policy](), **self.options, **changes},
        )


def tokens_of(out: tabes.GenerateOutput) -> list[list[int]]:
    return [t.tolist() for t in out.tokens]


@st.composite
def cases(
    draw: st.DrawFn,
    policies: Any = tuple(POLICIES),
    temperatures: Any = (0.0, 0.3, 1.0, 4.0),
    guided: bool = True,
    frozen: bool = True,
    blocks: bool = True,
    sequences: int = 3,
    longest: int = 12,
) -> Case:
    """Ragged batches with masks anywhere; the first sequence has one at least."""
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=sequences))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.3, 0.7, 1.0]))
    prompts = []
    for length in lengths:
        prompt = rng.integers(4, VOCABULARY, length)
        prompt[rng.random(length) < share] = MASK
        prompts.append(prompt.tolist())
    prompts[0][draw(st.integers(0, lengths[0] - 1))] = MASK
    steps = draw(st.integers(1, longest))
    options: dict[str, Any] = {"steps": steps, "seed": draw(st.integers(0, 2**63 - 1))}
    options["temperature"] = draw(st.sampled_from(temperatures))
    if options["temperature"] > 0:
        options["top_k"] = draw(st.sampled_from([0, 1, 4]))
        options["top_p"] = draw(st.sampled_from([1.0, 0.6]))
    if blocks and draw(st.booleans()):
        # Every block takes a step.
        options["block_length"] = draw(st.integers(-(-max(lengths) // steps), longest))
    options["forbidden"] = draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=4))
    options["logits_eos_inf"] = draw(st.booleans())
    options["confidence_eos_eot_inf"] = draw(st.booleans())
    if guided and draw(st.integers(0, 3)) == 0:
        options["cfg_scale"] = draw(st.sampled_from([0.5, 3.0]))
    elif frozen:
        options["refresh_every"] = draw(st.sampled_from([1, 1, 2, 3, 0]))
    return Case(draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(policies)), prompts, options)


def never_written(case: Case) -> set[int]:
    never = {MASK, *case.options["forbidden"]}
    return never | {EOS} if case.options["logits_eos_inf"] else never


class Plan:
    """What a sequence's steps are allowed, from the documentation of `generate` alone."""

    def __init__(self, prompt: list[int], steps: int, block_length: int | None) -> None:
        first = prompt.index(MASK) if MASK in prompt else len(prompt)
        width = block_length or max(1, len(prompt) - first)
        spans = [range(a, min(a + width, len(prompt))) for a in range(first, len(prompt), width)]
        self.blocks = [span for span in spans if any(prompt[i] == MASK for i in span)]
        shares = [
            steps // len(self.blocks) + (k < steps % len(self.blocks))
            for k in range(len(self.blocks))
        ]
        self.steps = [max(1, share) for share in shares]

    def quotas(self, prompt: list[int]) -> Iterator[tuple[range, int]]:
        """Block and number of masks of every step: equal shares, the remainder to early ones."""
        for span, steps in zip(self.blocks, self.steps, strict=True):
            masks = sum(prompt[i] == MASK for i in span)
            for k in range(min(steps, masks)):
                count = masks // steps + (k < masks % steps)
                yield span, count
