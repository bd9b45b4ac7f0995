"""Whether influence scores tell the truth on a task's own canvases, beside how decoding ends."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from tabes._core import BoE
from tabes.bench.campaign import Campaign
from tabes.bench.measure import encode
from tabes.bench.plan import TaskPlan
from tabes.bench.spec import Spec, policy_from
from tabes.bench.suite import TASKS
from tabes.bench.task import Example
from tabes.fidelity import Setting, fidelity
from tabes.model import Model, load

_TEXTS = 60
_CANDIDATES = 5
_FEWEST_MASKS = _CANDIDATES + 2


def half_way(model: Model, examples: Sequence[Example], number: int) -> list[torch.Tensor]:
    """Canvases with half of their masks filled by the truth, which is where a decode stands half
    way; but always with masks enough for candidates and probes."""
    found: list[torch.Tensor] = []
    for at, example in enumerate(examples):
        if len(found) == number:
            break
        if example.truth is None:
            continue
        canvas, truth = encode(model, example.text), encode(model, example.truth)
        masks = [i for i, token in enumerate(canvas) if token == model.info.mask_token_id]
        if len(truth) != len(canvas) or len(masks) < _FEWEST_MASKS:
            continue
        fill = min(len(masks) // 2, len(masks) - _FEWEST_MASKS)
        for i in random.Random(at).sample(masks, fill):
            canvas[i] = truth[i]
        found.append(torch.tensor(canvas, device="cpu"))
    return found


def setting_of(spec: Spec) -> Setting | None:
    """How a policy's influence scores are computed, None if it has none."""
    policy = policy_from(spec)
    if not isinstance(policy, BoE) or (policy.rule == "nats" and policy.weight == 0):
        return None
    return Setting.of(policy)


def settings_of(campaign: Campaign, task: TaskPlan) -> list[Setting]:
    """Of the task's ablation, each once."""
    if task.ablation is None:
        return []
    specs = campaign.ablation_specs(task, task.ablation).values()
    found = (setting_of(spec) for spec in specs)
    return list(dict.fromkeys(setting for setting in found if setting is not None))


def measure_fidelity(campaign: Campaign) -> None:
    """For every task with an ablation, kept in the run's folder."""
    path = campaign.setup.out / "fidelity.json"
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in campaign.plan.tasks:
            of_task = known.setdefault(task.task, {})
            missing = [s for s in settings_of(campaign, task) if s.label not in of_task]
            if not missing:
                continue
            campaign.say(f"fidelity of {len(missing)} settings on {task.task}")
            model = load(campaign.setup.checkpoint(TASKS[task.task].model))
            examples = campaign.setup.examples(task.task, "tune", task.tune)
            texts = half_way(model, examples, _TEXTS)
            if not texts:
                continue
            for found in fidelity(model, texts, missing, n_candidates=_CANDIDATES):
                kept = {k: v for k, v in asdict(found).items() if k != "correlations"}
                of_task[found.setting.label] = kept | {"texts": len(found.correlations)}
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    finally:
        torch.set_num_threads(threads)


def read_fidelity(campaign: Campaign, task: str) -> dict[str, dict[str, Any]]:
    """By the label of the setting."""
    path = campaign.setup.out / "fidelity.json"
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")).get(task, {})
    return found
