"""``evaluate``: tasks over data, batch by batch, into outcomes and a report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tabes._build_info import VERSION
from tabes._core import InputError
from tabes.arguments import integer, optional_integer
from tabes.evaluation.data import Data, Row
from tabes.evaluation.decoding import Reply, check_length, decode
from tabes.evaluation.execution import Limits
from tabes.evaluation.outcomes import Store
from tabes.evaluation.settings import Settings
from tabes.evaluation.suite import make_task
from tabes.evaluation.tasks import Canvas, Outcome, Prompting, Task
from tabes.inputs import token_ids
from tabes.model import Model
from tabes.process_memory import AddedMemory
from tabes.statistics import score

Progress = Callable[[str, int, int], None]

_SAMPLE = 1 << 20  # bytes read at three places of a weights file to know it again


@dataclass(frozen=True)
class Report:
    """What `evaluate` returns: the contents of the results file, and where both files are."""

    values: dict[str, Any]
    results: Path
    outcomes: Path


@dataclass(frozen=True)
class _Job:
    """A task with its data, ready to run.

    Attributes:
        keys, examples, canvases: of the rows to run: their names, a hash of each, their tokens.
        run: a hash of all else that outcomes depend on.
    """

    task: Task
    data: Data
    keys: list[str]
    examples: list[str]
    canvases: list[Canvas]
    protocol: str
    run: str


def evaluate(
    model: Model,
    tasks: Sequence[str],
    settings: Settings,
    out: Path,
    *,
    data: Mapping[str, Data] | None = None,
    prompting: Prompting | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    allow_code_execution: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs tasks; writes ``outcomes.jsonl`` and ``results-POLICY-HASH.json`` into the folder `out`.

    What outcomes.jsonl already holds is not run again if nothing that it depends on has changed:
    the example, its prompt, the protocol, settings, checkpoint, device, dtype, version of tabes.
    The batch size may change, since a sequence decodes the same in any batch. A reply that a task
    cannot judge counts as wrong, with the ``error`` beside it, and is counted under ``errors``.

    Args:
        model: from `tabes.load` or `tabes.wrap`, with a tokenizer.
        tasks: names, see `task_names`.
        settings: how to decode.
        out: made if it does not exist.
        data: rows by task; by default the task's own.
        prompting: how to ask, where that differs from the task's own way.
        limit: only the first so many rows of each task.
        batch_size: sequences decoded together.
        allow_code_execution: whether programs written by the model may be run here.
        limits: of each of them.
        progress: called with the task's name, examples done and examples in all.

    Raises:
        InputError: an argument or a row is not usable (all rows are checked before the first is
            run), or a task runs code and that is not allowed.
    """
    batch_size = integer(batch_size, "batch_size", minimum=1)
    if optional_integer(limit, "limit") is not None:
        integer(limit, "limit", minimum=1)
    made = prepare(tasks, prompting, limits, allow_code_execution)
    unused = set(data or {}) - {task.name for task in made}
    if unused:
        raise InputError(f"there is data for {', '.join(sorted(unused))}, which is not to be run")
    token_ids(model, settings.forbidden, "forbidden")  # names that the vocabulary lacks
    print_of_model = fingerprint(model)
    jobs = [
        _job(model, task, settings, (data or {}).get(task.name), limit, print_of_model)
        for task in made
    ]
    memory = _Memory(model)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error}") from error
    with Store.open(out / "outcomes.jsonl") as store:
        for job in jobs:
            _run(model, job, settings, store, batch_size, progress)
    values = {
        "format": "tabes-eval",
        "version": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "model": {
            "path": None if model.path is None else model.path.resolve().name,
            "family": model.info.family,
            "parameters": model.info.parameters,
            "device": model.info.device,
            "dtype": model.info.dtype,
            "fingerprint": print_of_model,
        },
        "settings": settings.to_dict(),
        "prompting": dataclasses.asdict(prompting or Prompting()),
        "batch_size": batch_size,
        "peak_memory_mib": memory.to_dict(),
        "tasks": {job.task.name: _summary(job, store) for job in jobs},
    }
    # Runs with other settings may share the folder, and with it the file of outcomes.
    name = _digest(*(job.run for job in jobs))[:8]
    results = out / f"results-{settings.make_policy().name()}-{name}.json"
    try:
        results.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"{results}: {error}") from error
    return Report(values, results, store.path)


def prepare(
    names: Sequence[str],
    prompting: Prompting | None = None,
    limits: Limits | None = None,
    allow_code_execution: bool = False,
) -> list[Task]:
    """The tasks of these names, repeated ones once.

    Raises InputError if there are none, for an unknown name, for prompting that a task does not
    know, and for a task that runs code where that is not allowed.
    """
    if not names:
        raise InputError("there are no tasks to run")
    tasks = [
        make_task(name, prompting or Prompting(), limits or Limits())
        for name in dict.fromkeys(names)
    ]
    for task in tasks:
        if task.runs_code and not allow_code_execution:
            raise InputError(
                f"{task.name} runs the programs that the model writes, with your rights: allow it "
                "with --allow-code-execution (allow_code_execution=True), best in a container"
            )
    return tasks


def _job(
    model: Model,
    task: Task,
    settings: Settings,
    data: Data | None,
    limit: int | None,
    print_of_model: str,
) -> _Job:
    data = task.default_data() if data is None else data
    rows = data.rows[:limit]
    canvases = []
    for number, row in enumerate(rows):
        where = f"{task.name}, {data.source}, example {number}"
        task.check(row, where)
        canvas = _canvas(task, model, row, where, settings.gen_length)
        check_length(model, canvas, where)
        canvases.append(canvas)
    protocol = task.protocol(model)
    return _Job(
        task,
        data,
        [task.key(row, number) for number, row in enumerate(rows)],
        [_digest(dict(row), c.tokens) for row, c in zip(rows, canvases, strict=True)],
        canvases,
        protocol,
        _digest(
            VERSION,
            print_of_model,
            model.info.device,
            model.info.dtype,
            protocol,
            settings.to_dict(),
            dataclasses.asdict(task.limits) if task.runs_code else None,
        ),
    )


def _canvas(task: Task, model: Model, row: Row, where: str, gen_length: int) -> Canvas:
    try:
        return task.canvas(model, row, where, gen_length)
    except InputError as error:  # the tokenizer's complaints name no example
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}") from error


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run(
    model: Model,
    job: _Job,
    settings: Settings,
    store: Store,
    batch_size: int,
    progress: Progress | None,
) -> None:
    named = zip(job.keys, job.examples, strict=True)
    left = [n for n, name in enumerate(named) if store.find(job.run, *name) is None]
    for first in range(0, len(left), batch_size):
        if progress is not None:
            progress(job.task.name, len(job.keys) - len(left) + first, len(job.keys))
        batch = left[first : first + batch_size]
        replies, cost = decode(model, [job.canvases[n] for n in batch], batch, settings)
        number = store.next_batch(job.run)
        lines = []
        for n, reply in zip(batch, replies, strict=True):
            where = f"{job.task.name}, {job.data.source}, example {n}"
            outcome = _judged(job.task, model, job.data.rows[n], where, reply)
            lines.append(
                {
                    "run": job.run,
                    "task": job.task.name,
                    "key": job.keys[n],
                    "example": job.examples[n],
                    "metrics": outcome.metrics,
                    "answer": outcome.answer,
                    "note": outcome.note,
                    "error": outcome.error,
                    "text": reply.text,
                    "batch": number,
                    "cost": cost.to_dict(),
                }
            )
        store.append(lines)
    if progress is not None:
        progress(job.task.name, len(job.keys), len(job.keys))


def _judged(task: Task, model: Model, row: Row, where: str, reply: Reply) -> Outcome:
    """The outcome of a reply; one that cannot be judged is wrong, and ends no evaluation."""
    try:
        return task.judge(model, row, where, reply.tokens, reply.text)
    except OSError:
        raise  # the machine's doing, not the reply's: the example is run again later
    except Exception as error:
        return Outcome(dict.fromkeys(task.metrics, 0.0), error=f"{type(error).__name__}: {error}")


def _summary(job: _Job, store: Store) -> dict[str, Any]:
    """Means over the run's examples with 95 % intervals, and what all of it cost."""
    found = [store.find(job.run, *name) for name in zip(job.keys, job.examples, strict=True)]
    done = [line for line in found if line is not None]
    metrics: dict[str, Any] = {}
    for name in job.task.metrics:
        values = [float(line["metrics"][name]) for line in done]
        metrics[name] = score(values).to_dict()
    return {
        "protocol": job.protocol,
        "run": job.run,
        "data": {"source": job.data.source, "sha256": job.data.sha256},
        "examples": len(done),
        "errors": sum(line.get("error") is not None for line in done),
        "metrics": metrics,
        "cost": store.cost(job.run, (int(line["batch"]) for line in done)).to_dict(),
    }


def fingerprint(model: Model) -> str:
    """What tells models apart: the files of the checkpoint by name and size, small ones by all of
    their content, weights by their beginning, middle and end; of a wrapped model what it predicts
    for a few tokens."""
    digest = hashlib.sha256()
    for path in [] if model.path is None else sorted(model.path.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".txt") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    if model.path is None:
        most = min(8, model.info.vocab_size, model.info.max_length)
        tokens = torch.arange(most, device="cpu")
        logits = model.core.logits([tokens])
        digest.update(logits.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Memory:
    """The most memory held from here on."""

    def __init__(self, model: Model) -> None:
        device = model.info.device
        self._host, self._device = AddedMemory(), device if device.startswith("cuda") else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)

    def to_dict(self) -> dict[str, float | None]:
        """MiB: all that the process held (``host``), of that what came after the start
        (``added``), and what it held on the model's own device. None where nobody can tell."""
        peak = {"host": self._host.peak(), "added": self._host.mib()}
        if self._device is not None:
            peak["device"] = torch.cuda.max_memory_allocated(self._device) / (1 << 20)
        return peak


def versions() -> dict[str, str]:
    """Of everything that scores may depend on."""
    return {
        "tabes": VERSION,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": str(np.__version__),
        "tokenizers": metadata.version("tokenizers"),
        "platform": f"{sys.platform} {platform.machine()}",
    }
