"""What every training script shares: masking, loss, loop, resuming, the exported checkpoint.

A run resumes from ``OUT/state.pt`` if it exists, and is a function of the seed and the step alone:
stopping and resuming gives the batches an uninterrupted run would have seen. The learning rate is
constant but for a linear warm-up and, with ``--cooldown N``, a linear fall to zero over the last N
steps. What is exported is the exponential moving average of the weights.

Objective (LLaDA, arXiv 2502.09992, eq. 14): of the m positions of a sequence that may be masked, k
are, k uniform in 1..m; the loss is their cross-entropy divided by the mask rate k / m, in nats a
token. Framing tokens are never masked: without them a fully masked canvas is the same at every
position, since rotary attention over equal values cannot tell positions apart.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from llada_torch import LLaDA, LLaDAConfig
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[MASK]"]
PAD, BOS, EOS, MASK = range(4)


class Corpus(Protocol):
    def batches(self, tokens: int, seed: int, start: int) -> Iterator[Tensor]:
        """Endless batches [B, L] of about `tokens` tokens each, from batch number `start` on."""
        ...

    def maskable(self, x: Tensor) -> Tensor:
        """[B, L] bool: the positions that may be masked."""
        ...


@dataclass(frozen=True)
class Task:
    config: LLaDAConfig
    vocabulary: dict[str, int]  # begins with SPECIAL
    pattern: str  # regular expression of one token of a text
    max_length: int
    train: Corpus
    held_out: Corpus
    # What else to print of an exported checkpoint, whenever there is a new one.
    report: Callable[[Path], str] | None = None


def vocabulary_of(tokens: list[str]) -> dict[str, int]:
    return {t: i for i, t in enumerate(SPECIAL + tokens)}


def mask_tokens(
    x: Tensor, maskable: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks k of each row's m maskable positions, k uniform in 1..m and stratified over the batch.

    Returns the noised tokens, the mask, and the weight of each row's summed loss (m / k)."""
    batch, length = x.shape
    m = maskable.sum(1)
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    k = torch.minimum((u * m).long(), m - 1) + 1
    order = torch.rand(batch, length, generator=generator).masked_fill(~maskable, 2.0)
    mask = order.argsort(-1).argsort(-1) < k[:, None]
    return x.masked_fill(mask, MASK), mask, m / k


def diffusion_loss(
    logits: Tensor, x: Tensor, mask: Tensor, weight: Tensor, count: Tensor
) -> Tensor:
    """Nats a maskable token (`count` of them): a bound of the negative log-likelihood."""
    nll = F.cross_entropy(logits.float().flatten(0, 1), x.flatten(), reduction="none")
    return ((nll.view_as(x) * mask).sum(-1) * weight).sum() / count


@torch.no_grad()
def held_out_loss(model: LLaDA, corpus: Corpus) -> float:
    """The loss over a fixed sample of held-out sequences with fixed masks, token-weighted."""
    total = count = 0.0
    batches = corpus.batches(4096, seed=1, start=0)
    for i in range(24):
        x = next(batches)
        maskable = corpus.maskable(x)
        noised, mask, weight = mask_tokens(x, maskable, torch.Generator().manual_seed(i))
        n = maskable.sum()
        total += diffusion_loss(model(noised), x, mask, weight, n).item() * n.item()
        count += n.item()
    return total / count


def build_tokenizer(vocabulary: dict[str, int], pattern: str) -> Tokenizer:
    """Splits text at every match of `pattern` and frames it with [BOS] and [EOS]."""
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    t.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    t.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)]
    )
    t.decoder = decoders.Fuse()
    t.add_special_tokens(SPECIAL)
    return t


def export(
    weights: dict[str, Tensor],
    config: LLaDAConfig,
    tokenizer: Tokenizer,
    max_length: int,
    out: Path,
) -> None:
    """Writes a checkpoint folder that any LLaDA loader reads: config, tokenizer, safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()},
        out / "model.safetensors",
    )
    tokenizer.save(str(out / "tokenizer.json"))
    described = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "mlp_hidden_size": config.mlp_hidden_size,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope": True,
        "rope_full_precision": True,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "max_sequence_length": max_length,
        "mask_token_id": MASK,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument(
        "--out", type=Path, required=True, help="folder of the state and the exported model"
    )
    p.add_argument("--steps", type=int, required=True, help="total steps, earlier runs included")
    p.add_argument(
        "--cooldown", type=int, default=0, help="the last N steps lower the rate to zero"
    )
    p.add_argument("--tokens", type=int, default=6144, help="tokens a batch")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=200)
    p.add_argument("--ema", type=float, default=0.998)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--compile", action="store_true", help="torch.compile the model (needs g++)")
    return p


def learning_rate(step: int, args: argparse.Namespace) -> float:
    warm = min(1.0, (step + 1) / args.warmup)
    left = (args.steps - step) / args.cooldown if args.cooldown else 1.0
    return float(args.lr * warm * min(1.0, left))


def new_model(config: LLaDAConfig) -> LLaDA:
    model = LLaDA(config)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            depth = (
                (2 * config.n_layers) ** -0.5
                if "attn_out" in name or ("blocks" in name and "ff_out" in name)
                else 1
            )
            torch.nn.init.normal_(p, std=0.3 if "wte" in name else depth * p.shape[1] ** -0.5)
    return model


def train(task: Task, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model = new_model(task.config)
    blocks = [p for n, p in model.named_parameters() if p.ndim == 2 and "blocks" in n]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1 or "blocks" not in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(blocks, lr=args.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step = seen = 0
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        average, step, seen = state["average"], state["step"], state["seen"]
        print(f"resumed at step {step}, {seen} sequences", flush=True)
    forward = torch.compile(model, dynamic=True) if args.compile else model
    averaged = LLaDA(task.config)
    tokenizer = build_tokenizer(task.vocabulary, task.pattern)

    def save() -> None:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "average": average,
                "step": step,
                "seen": seen,
            },
            args.out / "state.tmp",
        )
        (args.out / "state.tmp").replace(state_file)
        export(average, task.config, tokenizer, task.max_length, args.out / "checkpoint")
        averaged.load_state_dict(average)
        loss = held_out_loss(averaged, task.held_out)
        print(f"step {step} sequences {seen} held-out loss {loss:.4f} nats a token", flush=True)
        if task.report is not None:
            print(f"step {step} {task.report(args.out / 'checkpoint')}", flush=True)

    started, smooth = time.monotonic(), math.nan
    for x in task.train.batches(args.tokens, args.seed, step):
        if step >= args.steps:
            break
        rate = learning_rate(step, args)
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = rate
        maskable = task.train.maskable(x)
        noised, mask, weight = mask_tokens(
            x, maskable, torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(noised)
        loss = diffusion_loss(logits, x, mask, weight, maskable.sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + len(x)
        decay = min(args.ema, step / (step + 10))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        value = loss.item()
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        if step % 50 == 0:
            print(
                f"step {step} loss {smooth:.4f} rate {rate:.2e} {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % args.save_every == 0:
            save()
    save()
