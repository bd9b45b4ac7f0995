"""The bundled checkpoint as one would write it in PyTorch, in any dtype on any device.

What a 16-bit result may be off by is measured with it. The module is the one that the training
scripts use, the formulas on top of it are those of tests/python/reference.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import tabes
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "python"), str(ROOT / "python" / "training")]

import reference  # noqa: E402
from llada_torch import LLaDA, LLaDAConfig  # noqa: E402


class NaiveModel:
    """Attention by written-out products, gradients by autograd with stopped gradients.

    Entropies are those of logits in float32, as a careful user would have them; all before is in
    the model's dtype.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        folder = tabes.demo_checkpoint()
        self.config = json.loads((folder / "config.json").read_text())
        sizes = LLaDAConfig(**{f.name: self.config[f.name] for f in fields(LLaDAConfig)})
        self.module = LLaDA(sizes).to(device, dtype).eval().requires_grad_(False)
        self.module.load_state_dict(load_file(folder / "model.safetensors"))
        self.device, self.dtype = torch.device(device), dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self._context: reference.Context | None = None
        transformer: Any = self.module.model.transformer
        projections = [p for block in transformer.blocks for p in (block.k_proj, block.v_proj)]
        for i, projection in enumerate(projections):
            projection.register_forward_hook(
                lambda _module, _inputs, out, i=i: self._in_context(i, out)
            )
        self.table: Tensor = transformer.wte.weight
        self.reference = reference.Reference(
            self.table.to(self.wide), self._logits, self.config["mask_token_id"]
        )

    def _in_context(self, i: int, out: Tensor) -> Tensor:
        if self._context is None:
            return out
        # Keys before their rotation, which is the same in every pass.
        kept: Tensor = self._context(i, out, out)[0]
        return kept

    def _logits(
        self, x: Tensor, active: Tensor | None = None, context: reference.Context | None = None
    ) -> Tensor:
        """Of input embeddings [L, D]: logits [L, V], in float32 at least."""
        self._context = context
        try:
            return self.embedded(x[None], active)[0].to(self.wide)
        finally:
            self._context = None

    def embedded(self, inputs_embeds: Tensor, active: Tensor | None = None) -> Tensor:
        """[B, L, D] -> logits [B, L, V]."""
        with self.device:  # where the module makes its rotary angles
            out: Tensor = self.module.from_embeddings(inputs_embeds.to(self.dtype), active)
        return out

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Of one sequence [L], [L, V]."""
        return self._logits(self.reference.table[tokens.to(self.device)])

    def influence(
        self, tokens: Tensor, candidates: list[int], probes: list[int], **options: Any
    ) -> Tensor:
        with self.device:
            tis: Tensor = reference.influence(
                self.reference, tokens.to(self.device), candidates, probes, **options
            )
        return tis

    def steered_decode(self, tokens: Tensor, steps: int, policy: tabes.BoE) -> Tensor:
        """A greedy decode of one sequence."""
        with self.device:
            out: Tensor = reference.decode(self.reference, tokens.to(self.device), steps, policy)
        return out.cpu()

    def wrapped(self) -> tabes.Model:
        """For decodes without gradients, by the loop and the operators of tabes."""
        return tabes.wrap(
            lambda inputs_embeds: self.embedded(inputs_embeds).to(self.wide),
            mask_token_id=self.config["mask_token_id"],
            embedding_table=self.table,
            eos_token_ids=[self.config["eos_token_id"]],
        )
