"""What a run needs before it starts, kept in its folder: models and examples.

``models/`` holds converted checkpoints, ``data/`` the examples of every task and split. Both are
made once and found again when a run goes on; so are the digests of the weights, since results of
two different models must not end up in one table.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tabes._core import InputError
from tabes.bench.suite import TASKS
from tabes.bench.task import SPLITS, Example, Sources
from tabes.convert import convert

BUNDLED = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class Setup:
    """Where things are.

    Attributes:
        out: the folder of the run.
        sources: public data that the user has.
        models: checkpoint folders that the user named, by model.
    """

    out: Path
    sources: Sources = field(default_factory=Sources)
    models: Mapping[str, Path] = field(default_factory=dict)

    def checkpoint(self, model: str) -> Path:
        """The folder of a model; converted into the run's folder where need be.

        Raises InputError, saying what to install or to name, if there is none.
        """
        if model in self.models:
            return self.models[model]
        if model == "rxnfp":
            folder = self.out / "models" / "rxnfp"
            if not (folder / "config.json").exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                convert(_rxnfp(), folder)
            return folder
        if not (BUNDLED / model / "config.json").exists():
            raise InputError(f"the model {model!r} is not bundled: --model {model}=FOLDER")
        return BUNDLED / model

    def missing(self, task: str) -> str | None:
        """What a task lacks here, None if it can run."""
        needs = TASKS[task].missing(self.sources)
        if needs is not None:
            return needs
        model = TASKS[task].model
        try:
            if model in self.models:
                return None
            if model == "rxnfp":
                _rxnfp()
            else:
                self.checkpoint(model)
        except InputError as error:
            return str(error)
        return None

    def examples(self, task: str, split: str, number: int) -> list[Example]:
        """The examples of a split, made at the first call."""
        path = self.out / "data" / f"{task}-{split}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["asked"] >= number:
                return [Example(**example) for example in kept["examples"][:number]]
        found = TASKS[task].examples(split, number, self.sources)
        if not found:
            raise InputError(f"task {task} has no examples for {split}")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"asked": number, "examples": [example.to_dict() for example in found]}
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        whole.replace(path)
        return found

    def check_same_models(self, models: set[str]) -> dict[str, str]:
        """Digests of the weights, by model.

        Raises InputError if the folder has results of other weights.
        """
        path = self.out / "weights.json"
        known: dict[str, str] = {}
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
        for model in sorted(models):
            folder = self.checkpoint(model)
            digest = _digest(folder)
            if known.setdefault(model, digest) != digest:
                raise InputError(
                    f"{folder}: its weights are not those of the results in {self.out}: give "
                    "another --out"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        return known


def _rxnfp() -> Path:
    spec = importlib.util.find_spec("rxnfp")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the reaction BERT is not installed: pip install --no-deps rxnfp==0.1.0")
    root = Path(spec.submodule_search_locations[0])
    return root / "models" / "transformers" / "bert_pretrained"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: it holds no safetensors file: give the folder of a checkpoint")
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def all_examples(
    setup: Setup, task: str, numbers: Mapping[str, int], say: Callable[[str], None]
) -> dict[str, list[Example]]:
    """Both splits of a task; `say` is told before anything that takes long."""
    found: dict[str, list[Example]] = {}
    for split in SPLITS:
        if not (setup.out / "data" / f"{task}-{split}.json").exists():
            say(f"making the examples of {task} ({split})")
        found[split] = setup.examples(task, split, numbers[split])
    return found
