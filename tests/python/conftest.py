"""Checkpoints the tests share: the bundled model, the reaction BERT, and random LLaDA layouts."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tabes
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "training"))

from llada_torch import LLaDA, LLaDAConfig


@pytest.fixture(autouse=True)
def _keep_global_rng() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny tensors: on a busy machine threads that wait for each other take a hundred times as
    long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo_model() -> tabes.Model:
    return tabes.load(tabes.demo_checkpoint())


@pytest.fixture(scope="session")
def rxnfp_folder() -> Path:
    """The package's own folder: pytorch_model.bin, config.json and vocab.txt."""
    spec = importlib.util.find_spec("rxnfp")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("rxnfp is not installed: pip install --no-deps rxnfp==0.1.0")
    root = Path(spec.submodule_search_locations[0])
    return root / "models" / "transformers" / "bert_pretrained"


@pytest.fixture(scope="session")
def rxnfp_checkpoint(rxnfp_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    converted = tmp_path_factory.mktemp("rxnfp") / "converted"
    tabes.convert(rxnfp_folder, converted)
    return converted


@pytest.fixture(scope="session")
def rxnfp_model(rxnfp_checkpoint: Path) -> tabes.Model:
    return tabes.load(rxnfp_checkpoint)


@pytest.fixture
def tiny_llada(tmp_path: Path) -> Callable[..., tuple[Path, LLaDA]]:
    """Writes a random LLaDA-layout checkpoint; returns its folder and the module it came from."""

    def make(
        *,
        n_layers: int = 2,
        d_model: int = 32,
        n_heads: int = 2,
        n_kv_heads: int = 2,
        vocab: int = 40,
        dtype: torch.dtype = torch.float32,
        shards: int = 1,
    ) -> tuple[Path, LLaDA]:
        config = LLaDAConfig(d_model, n_layers, n_heads, n_kv_heads, 3 * d_model, vocab)
        torch.manual_seed(5)
        module = LLaDA(config).to(dtype)
        folder = tmp_path / f"llada{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        described = {
            "model_type": "llada",
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "mlp_hidden_size": 3 * d_model,
            "vocab_size": vocab,
            "embedding_size": vocab,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
            "weight_tying": False,
            "include_bias": False,
            "include_qkv_bias": False,
            "max_sequence_length": 128,
            "mask_token_id": 3,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        (folder / "config.json").write_text(json.dumps(described))
        weights = {k: v.contiguous() for k, v in module.state_dict().items()}
        if shards == 1:
            save_file(weights, folder / "model.safetensors")
            return folder, module
        index: dict[str, str] = {}
        for i in range(shards):
            name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = dict(list(weights.items())[i::shards])
            save_file(part, folder / name)
            index |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
        return folder, module

    return make
