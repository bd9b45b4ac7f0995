"""Logits against independent PyTorch computations, on real weights and on random ones."""

from pathlib import Path

import pytest
import tabes
import torch
from reference import bert
from safetensors.torch import load_file


def test_rxnfp_single_and_ragged(rxnfp_checkpoint: Path, rxnfp_model: tabes.Model) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randint(11, 591, (n,), generator=generator) for n in (40, 7, 1, 129, 129, 512)]
    batch[0][5:20] = rxnfp_model.info.mask_token_id
    reference = bert(rxnfp_checkpoint, 4, rxnfp_model.info.mask_token_id)
    wanted = [reference.logits(reference.table[t], None) for t in batch]
    together = rxnfp_model.logits(batch)
    for tokens, logits, reference in zip(batch, together, wanted, strict=True):
        assert (logits - reference).abs().max() <= 2e-5
        alone = rxnfp_model.logits(tokens[None])[0]
        assert (alone - reference).abs().max() <= 2e-5


def test_bundled_model_matches_the_module_it_was_trained_as(demo_model: tabes.Model) -> None:
    from llada_torch import LLaDA, LLaDAConfig

    module = LLaDA(LLaDAConfig(256, 6, 8, 8, 768, demo_model.info.vocab_size, rope_theta=1e4))
    weights = load_file(tabes.demo_checkpoint() / "model.safetensors")
    module.load_state_dict({k: v.float() for k, v in weights.items()})
    module.double()
    tokens = torch.tensor([[1] + [3] * 30 + [2], [1] + [7] * 10 + [3] * 20 + [2]])
    with torch.no_grad():
        wanted = module(tokens)
    assert (demo_model.logits(tokens) - wanted).abs().max() <= 3e-5
    # bfloat16 may be off by at most twice what plain PyTorch in bfloat16 is.
    with torch.no_grad():
        naive = (module.bfloat16()(tokens).double() - wanted).abs().max()
    ours = tabes.load(tabes.demo_checkpoint(), dtype="bfloat16").logits(tokens)
    assert (ours - wanted).abs().max() <= 2 * naive


@pytest.mark.parametrize(
    "shape",
    [
        dict(n_layers=2, d_model=32, n_heads=4, n_kv_heads=4, vocab=40),
        dict(n_layers=3, d_model=96, n_heads=6, n_kv_heads=2, vocab=131),
        dict(n_layers=2, d_model=64, n_heads=2, n_kv_heads=1, vocab=50, shards=3),
        dict(n_layers=2, d_model=64, n_heads=2, n_kv_heads=2, vocab=50, dtype=torch.bfloat16),
    ],
)
def test_random_llada_layouts(tiny_llada, shape) -> None:
    folder, module = tiny_llada(**shape)
    model = tabes.load(folder, dtype="float64")
    module = module.double()
    for length in (1, 2, 33):
        tokens = torch.randint(0, shape["vocab"], (2, length))
        with torch.no_grad():
            wanted = module(tokens)
        # The module keeps rotary angles in float32, the float64 model does not.
        assert torch.allclose(model.logits(tokens).double(), wanted, atol=1e-4, rtol=1e-4)
        single = tabes.load(folder).logits(tokens)
        assert (single - wanted).abs().max() <= 2e-5 * max(1.0, wanted.abs().max().item())
