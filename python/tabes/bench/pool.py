"""Units run by several processes of one thread each, or in this one."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tabes._core import Error, InputError
from tabes.bench.measure import run_slice
from tabes.bench.prepare import Setup
from tabes.bench.store import Unit
from tabes.bench.suite import TASKS
from tabes.bench.task import Example
from tabes.generation import generate
from tabes.model import Model, load

Done = Callable[[Unit, dict[str, Any]], None]


class Runner:
    """Runs units; keeps models and examples between them."""

    def __init__(self, setup: Setup, numbers: dict[tuple[str, str], int], batch: int) -> None:
        self.setup = setup
        self.numbers = numbers
        self.batch = batch
        self.model = functools.cache(self._model)
        self.examples = functools.cache(self._examples)

    def _model(self, name: str) -> Model:
        model = load(self.setup.checkpoint(name))
        # Weights are laid out anew at their first use, forward and backward; that is not timed.
        generate(model, [model.info.mask_token_id] * 12, steps=4, policy="boe")
        return model

    def _examples(self, task: str, split: str) -> list[Example]:
        return self.setup.examples(task, split, self.numbers[task, split])

    def __call__(self, unit: Unit) -> dict[str, Any]:
        cell = unit.cell
        task = TASKS[cell.task]
        examples = self.examples(cell.task, cell.split)[unit.first : unit.first + unit.number]
        model = self.model(task.model)
        return run_slice(model, task, cell.spec, cell.seed, examples, unit.first, self.batch)


def run_units(
    units: Sequence[Unit],
    setup: Setup,
    numbers: dict[tuple[str, str], int],
    batch: int,
    workers: int,
    done: Done,
) -> None:
    """Runs all units and hands each result to `done`, in the order they finish.

    Raises what a unit raised; the other processes are then stopped, as they are when this one is
    interrupted.
    """
    if workers == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            runner = Runner(setup, numbers, batch)
            for unit in units:
                done(unit, runner(unit))
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(units))
    processes = []
    busy: dict[Connection, Unit] = {}
    finished = False
    try:
        for _ in range(min(workers, len(units))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, setup, numbers, batch), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = waiting.pop()
            ours.send(busy[ours])
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                unit = busy.pop(ready)
                done(unit, _received(ready, unit))
                if waiting:
                    busy[ready] = waiting.pop()
                    ready.send(busy[ready])
                else:
                    ready.close()
        finished = True
    finally:
        for process in processes:
            if not finished:
                process.terminate()
            process.join()


def _received(connection: Connection, unit: Unit) -> dict[str, Any]:
    try:
        kind, value = connection.recv()
    except EOFError:
        raise Error(
            f"a worker died at {unit.key}: if memory was short, use --workers 1; --resume goes on"
        ) from None
    if kind == "done":
        found: dict[str, Any] = value
        return found
    raise (InputError if kind == "InputError" else Error)(f"{value} (at {unit.key})")


def _work(
    connection: Connection, setup: Setup, numbers: dict[tuple[str, str], int], batch: int
) -> None:
    # An interrupt is the parent's to handle: it stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    runner = Runner(setup, numbers, batch)
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("done", runner(unit))
        except Exception as error:  # whatever it is, the parent reports it
            answer = (type(error).__name__, str(error))
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
