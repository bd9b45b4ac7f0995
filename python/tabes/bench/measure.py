"""Runs a slice of a cell: what every example came to, and what it cost.

Rows are counted by sequence. The trace says which sequences took part in a step's base pass, which
makes those rows exact; what a policy adds (surrogate passes, adjoints, candidates tried) is shared
in proportion to length among the sequences it looked at. Sums are exact in any case, and with one
sequence a batch every figure is.

Wall-clock time on a shared machine means little by itself. So each batch also runs one plain
confidence step, in the same process right before, and time is reported in such steps. The same is
kept in processor time, which others on the machine disturb less.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tabes._core import InputError, StepRecord
from tabes.bench.spec import Spec, policy_from
from tabes.bench.task import Example, Task
from tabes.generation import generate
from tabes.model import Model
from tabes.output import GenerateOutput
from tabes.process_memory import AddedMemory


@dataclass(frozen=True)
class Shares:
    """Rows by sequence: through the model, its adjoint and the vocabulary projection; and the
    number of steps the sequence took part in."""

    forward: list[float]
    backward: list[float]
    head: list[float]
    steps: list[int]


def _spread(total: float, weights: Sequence[float]) -> list[float]:
    whole = sum(weights)
    return [total * w / whole if whole else 0.0 for w in weights]


def shares(trace: Sequence[StepRecord], lengths: Sequence[int], every_step: bool = False) -> Shares:
    """What each of the sequences had of a run's rows; `every_step`: also of steps in which nothing
    of theirs was masked, as with policies that mask again."""
    zeros = [0.0] * len(lengths)
    forward, backward, head, steps = zeros.copy(), zeros.copy(), zeros.copy(), [0] * len(lengths)
    for record in trace:
        masked = [max(m, every_step) for m in record.masked]
        live = [float(length if m else 0) for length, m in zip(lengths, masked, strict=True)]
        steered = [
            length if math.isfinite(fall) else 0.0
            for length, fall in zip(live, record.predicted_fall, strict=True)
        ]
        looked_at = steered if any(steered) else live
        base = sum(live)
        # A pass that guidance doubles, say, is everybody's; the rest belongs to the steered.
        own = [w if record.forward_rows >= base else w * record.forward_rows / base for w in live]
        added = _spread(record.forward_rows - sum(own), looked_at)
        adjoint = _spread(record.backward_rows, looked_at)
        projected = _spread(record.head_rows, [float(m) for m in masked])
        for b in range(len(lengths)):
            forward[b] += own[b] + added[b]
            backward[b] += adjoint[b]
            head[b] += projected[b]
            steps[b] += masked[b] > 0
    return Shares(forward, backward, head, steps)


def _plain_step(model: Model, canvases: list[list[int]]) -> GenerateOutput:
    """One confidence step over these canvases."""
    most = max(map(len, canvases))
    return generate(model, canvases, steps=most, callback=lambda *_: False)


def encode(model: Model, text: str) -> list[int]:
    """Token ids of a canvas.

    Raises InputError for a model without a tokenizer."""
    if model.tokenizer is None:
        raise InputError(f"{model.path} has no tokenizer, which the tasks' texts need")
    return model.tokenizer.encode(text)


def run_slice(
    model: Model,
    task: Task,
    spec: Spec,
    seed: int,
    examples: Sequence[Example],
    first: int,
    batch: int,
) -> dict[str, Any]:
    """Decodes and judges examples, numbered from `first` in their split.

    Returns lists by example (``outcomes`` by metric, ``texts``, ``forward_rows``,
    ``backward_rows``, ``head_rows``, ``length``, ``steps``) and of the slice ``seconds`` and
    ``cpu_seconds``, the same of one plain step of each batch (``plain_step_seconds``,
    ``plain_step_cpu_seconds``), ``added_mib`` (`AddedMemory`), ``load`` and ``when``.
    """
    policy = policy_from(spec)
    found: dict[str, Any] = {name: [] for name in ("forward_rows", "backward_rows", "head_rows")}
    found |= {"length": [], "steps": [], "outcomes": {metric: [] for metric in task.metrics}}
    texts: list[str] = []
    seconds = reference = cpu = reference_cpu = 0.0
    added = AddedMemory()
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        canvases = [encode(model, example.text) for example in part]
        lengths = [len(canvas) for canvas in canvases]
        started = time.process_time()
        reference += _plain_step(model, canvases).seconds
        between = time.process_time()
        output = generate(
            model,
            canvases,
            steps=max(lengths) if spec.steps is None else spec.steps,
            policy=policy,
            block_length=spec.block_length,
            refresh_every=spec.refresh_every,
            temperature=spec.temperature,
            seed=seed,
            # A draw belongs to the example, whatever batch it is in and whoever decodes it.
            sequence_ids=range(first + start, first + start + len(part)),
        )
        seconds += output.seconds
        cpu += time.process_time() - between
        reference_cpu += between - started
        rows = shares(output.trace, lengths, policy.pace() == "timed")
        found["forward_rows"] += rows.forward
        found["backward_rows"] += rows.backward
        found["head_rows"] += rows.head
        found["steps"] += rows.steps
        found["length"] += lengths
        for example, text in zip(part, output.texts or [], strict=True):
            for metric, value in task.judge(example, text).items():
                found["outcomes"][metric].append(value)
            texts.append(text)
    found["texts"] = texts if task.keeps_texts else None
    return found | {
        "seconds": seconds,
        "plain_step_seconds": reference,
        "cpu_seconds": cpu,
        "plain_step_cpu_seconds": reference_cpu,
        "added_mib": added.mib(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
