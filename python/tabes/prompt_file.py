"""``tabes generate --prompt-file``: every line is one prompt, decoded in batches.

Results are written as batches end, in the order of the lines. A line that cannot be decoded is
reported on stderr as ``FILE:LINE: why`` while the others are decoded, and leaves an empty line in
the place of its text. With --json every result is an object on a line of its own:

==============  ===================================================================================
``line``        of the file, from 1
``sample``      of the prompt, from 0 to --samples - 1
``text``        as `GenerateOutput.texts`, null without a tokenizer
``tokens``      token ids, prompt included
==============  ===================================================================================

and a line that cannot be decoded is one object with ``line`` and ``error``: its ``type`` and
``message``.

A sequence is numbered by line and sample, whatever the batch size and the lines before it, so that
draws depend on seed, line and sample alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

import torch

import tabes
from tabes.command_line import load_model, print_json
from tabes.errors import Error, InputError, NumericsError
from tabes.files import STDIN, Line, read_lines
from tabes.generate_command import BATCH_SIZE, Decoder, conversation, texts
from tabes.generation import check_something_to_fill
from tabes.inputs import prepare
from tabes.output import GenerateOutput
from tabes.streams import say


@dataclass(frozen=True)
class _Job:
    """A sequence to decode: a sample of a line's prompt, and its tokens before the first step."""

    line: int
    sample: int
    prompt: Any
    start: torch.Tensor


@dataclass(frozen=True)
class _Failed:
    """A line that cannot be decoded, in the place of so many samples."""

    line: int
    error: Error
    samples: int = 1


@dataclass(frozen=True)
class _Done:
    job: _Job
    text: str
    record: dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    lines = read_lines(arguments.prompt_file, "--prompt-file")
    first = next(lines, None)  # before a model is loaded in vain
    if first is None:
        raise InputError(f"--prompt-file {arguments.prompt_file}: it holds no prompts")
    policy = tabes.make_policy(arguments.policy)
    decoder = Decoder(load_model(arguments), policy, arguments)
    # What an empty prompt lacks (a tokenizer, a chat template) is missing for all of them.
    prepare(decoder.model, conversation("", arguments), arguments.gen_length or 1)
    return _File(decoder).run(chain([first], lines))


class _File:
    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._arguments = decoder, decoder.arguments
        self._size: int = self._arguments.batch_size or BATCH_SIZE
        self._failed = 0  # the last line that could not be decoded

    def run(self, lines: Iterator[Line]) -> int:
        jobs = self._jobs(lines)
        while batch := list(islice(jobs, self._size)):
            if self._arguments.trace is not None and next(jobs, None) is not None:
                raise InputError(
                    f"--trace keeps one batch, and {self._arguments.prompt_file} holds more than "
                    f"{self._size} sequences: raise --batch-size, or give fewer prompts"
                )
            for result in self._decode(batch):
                self._write(result)
        return 1 if self._failed else 0

    def _jobs(self, lines: Iterator[Line]) -> Iterator[_Job | _Failed]:
        model, given = self._decoder.model, self._arguments
        for line in lines:
            try:
                if line.text is None:
                    raise InputError(line.error)
                prompt = conversation(line.text, given)
                batch = prepare(model, prompt, given.gen_length)
                check_something_to_fill(model, batch)
            except InputError as error:
                yield _Failed(line.number, error, given.samples)
            else:
                for sample in range(given.samples):
                    yield _Job(line.number, sample, prompt, batch.sequences[0])

    def _decode(self, batch: Sequence[_Job | _Failed]) -> Iterator[_Done | _Failed]:
        """The results in order: of all lines at once, or of each alone if that fails."""
        jobs = [job for job in batch if isinstance(job, _Job)]
        results: list[_Done | _Failed] = []
        try:
            if jobs:
                output = self._output(jobs)
                self._decoder.save_trace(output)
                results = _results(jobs, output)
        except (InputError, NumericsError) as error:
            if isinstance(error, InputError):
                self._decoder.check_options()
            lines = [list(several) for _, several in groupby(jobs, lambda job: job.line)]
            if len(lines) == 1:
                results = [_Failed(job.line, error) for job in jobs]
            else:
                results = [result for several in lines for result in self._alone(several)]
            good = [result.job for result in results if isinstance(result, _Done)]
            if good and self._arguments.trace is not None:
                self._decoder.save_trace(self._output(good))
        done = iter(results)
        for job in batch:
            yield job if isinstance(job, _Failed) else next(done)

    def _alone(self, jobs: list[_Job]) -> list[_Done | _Failed]:
        try:
            return _results(jobs, self._output(jobs))
        except (InputError, NumericsError) as error:
            return [_Failed(job.line, error) for job in jobs]

    def _output(self, jobs: Sequence[_Job]) -> GenerateOutput:
        first, last = jobs[0].line, jobs[-1].line
        return self._decoder.decode(
            [job.prompt for job in jobs],
            [(job.line - 1) * self._arguments.samples + job.sample for job in jobs],
            [job.start for job in jobs],
            f", line {first}" + (f" to {last}" if last > first else ""),
        )

    def _write(self, result: _Done | _Failed) -> None:
        as_json = self._arguments.json
        if isinstance(result, _Done):
            if as_json:
                print_json(result.record)
            else:
                print(result.text, flush=True)
            return
        message = " ".join(str(result.error).split())
        if result.line != self._failed:  # once, however many samples it has
            self._failed = result.line
            file = self._arguments.prompt_file
            say(f"{'stdin' if file == STDIN else file}:{result.line}: {message}")
            if as_json:
                kind = type(result.error).__name__
                print_json({"line": result.line, "error": {"type": kind, "message": message}})
        if not as_json:
            print("\n" * result.samples, end="", flush=True)


def _results(jobs: Sequence[_Job], output: GenerateOutput) -> list[_Done | _Failed]:
    return [
        _Done(
            job,
            text,
            {
                "line": job.line,
                "sample": job.sample,
                "text": None if output.texts is None else text,
                "tokens": tokens.tolist(),
            },
        )
        for job, text, tokens in zip(jobs, texts(output), output.tokens, strict=True)
    ]
