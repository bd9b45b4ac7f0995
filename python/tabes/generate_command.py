"""``tabes generate``: masks filled or prompts continued, from the command line or from a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import tabes
from tabes import trace as tracing
from tabes.command_line import add_model, add_output, add_policy, load_model, print_json, view
from tabes.errors import InputError
from tabes.files import check_writable

if TYPE_CHECKING:
    import torch

    from tabes.inputs import Prompts
    from tabes.model import Model
    from tabes.output import GenerateOutput

BATCH_SIZE = 16
_LARGEST_BATCH = 100_000
_MOST = 2**63 - 1


def configure(command: argparse.ArgumentParser) -> None:
    command.description = "Fill the masks of prompts, or continue them by --gen-length tokens."
    add_model(command, optional=True)
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        "-p",
        action="append",
        metavar="TEXT",
        help="text with [MASK] where something is to be filled, or a prompt to continue with "
        "--gen-length; repeat it for a batch",
    )
    source.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="every line is one prompt; - for standard input. A line that cannot be decoded is "
        "reported and the others are decoded; with --json one record a line",
    )
    source.add_argument(
        "--tokens",
        action="append",
        metavar="IDS",
        help="token ids instead of text, separated by commas or spaces; repeat it for a batch",
    )
    command.add_argument("--samples", type=int, default=1, metavar="N", help="of every prompt (1)")
    command.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"with --prompt-file: sequences decoded at a time ({BATCH_SIZE}); results are the "
        "same for any",
    )
    command.add_argument("--chat", action="store_true", help="put prompts into the chat template")
    command.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    command.add_argument("--gen-length", "--max-new-tokens", type=int, metavar="N")
    command.add_argument("--block-length", "--block-size", type=int, metavar="N")
    command.add_argument("--steps", type=int, default=64, help="denoising steps (64)")
    command.add_argument(
        "--refresh-every",
        type=int,
        default=1,
        metavar="N",
        help="a full forward pass every N steps, masked positions alone between (1); 0: once",
    )
    add_policy(command, "confidence", "confidence")
    command.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0)")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P")
    command.add_argument("--top-k", type=int, default=0, metavar="K")
    command.add_argument("--cfg-scale", type=float, default=0.0, metavar="S")
    command.add_argument(
        "--forbid",
        type=lambda text: int(text) if text.isdecimal() else text,
        action="append",
        default=[],
        metavar="TOKEN",
        help="never write this token, by id or name; repeat it for several",
    )
    command.add_argument(
        "--allow-special", action="store_true", help="write special tokens such as [UNK] too"
    )
    command.add_argument("--logits-eos-inf", action="store_true", help="never write end tokens")
    command.add_argument(
        "--confidence-eos-eot-inf", action="store_true", help="reveal end tokens last"
    )
    command.add_argument(
        "--trace", metavar="FILE", help="write the decode as JSON, for the command trace"
    )
    add_output(command)
    command.set_defaults(run=_run)


class Decoder:
    """A model and how to decode with it."""

    def __init__(self, model: Model, policy: tabes.Policy, arguments: argparse.Namespace) -> None:
        self.model, self.policy, self.arguments = model, policy, arguments

    def starts(self, prompts: Prompts) -> list[torch.Tensor]:
        """The sequences before the first step."""
        from tabes.inputs import prepare

        return prepare(self.model, prompts, self.arguments.gen_length).sequences

    def decode(
        self, prompts: Prompts, ids: list[int], starts: list[torch.Tensor], title: str = ""
    ) -> GenerateOutput:
        """`prompts`, whose sequences have the numbers `ids` and are `starts` before any step."""
        given = self.arguments
        title = f"{self.model.info.family} {given.policy}{title}"
        with view(self.model, given, title) as watched:
            watched.start(starts)
            return self._generate(prompts, ids, callback=watched)

    def check_options(self) -> None:
        """Raises InputError if the options themselves, and no prompt, are at fault."""
        self._generate([self.model.info.mask_token_id], [0])

    def _generate(self, prompts: Prompts, ids: list[int], **more: Any) -> GenerateOutput:
        given = self.arguments
        return tabes.generate(
            self.model,
            prompts,
            steps=given.steps,
            gen_length=given.gen_length,
            block_length=given.block_length,
            refresh_every=given.refresh_every,
            policy=self.policy,
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k,
            cfg_scale=given.cfg_scale,
            seed=given.seed,
            sequence_ids=ids,
            forbidden=given.forbid,
            allow_special=given.allow_special,
            logits_eos_inf=given.logits_eos_inf,
            confidence_eos_eot_inf=given.confidence_eos_eot_inf,
            **more,
        )

    def save_trace(self, output: GenerateOutput) -> None:
        """Where --trace says, if it does."""
        if self.arguments.trace is not None:
            tracing.save(self.arguments.trace, output, self.model)


def _run(arguments: argparse.Namespace) -> int:
    # The input is read first: a large model is not loaded only to complain about its prompt.
    for option in ("samples", "batch_size", "gen_length"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} {value}: it must be at least 1")
        if value is not None and value > _MOST:
            raise InputError(f"--{option.replace('_', '-')} {value}: it must be at most {_MOST}")
    if arguments.system is not None and not arguments.chat:
        raise InputError("--system needs --chat")
    if arguments.trace is not None:
        check_writable(arguments.trace, "--trace")
    if arguments.prompt_file is not None:
        from tabes.prompt_file import run

        return run(arguments)
    if arguments.batch_size is not None:
        raise InputError("--batch-size is of --prompt-file: all of --prompt or --tokens is a batch")
    given = _prompts(arguments)
    if len(given) * arguments.samples > _LARGEST_BATCH:
        raise InputError(
            f"--samples {arguments.samples}: {len(given)} prompts would be more than "
            f"{_LARGEST_BATCH} sequences in one batch: --prompt-file decodes them in smaller ones"
        )
    policy = tabes.make_policy(arguments.policy)
    decoder = Decoder(load_model(arguments), policy, arguments)
    prompts: Any = [prompt for prompt in given for _ in range(arguments.samples)]
    output = decoder.decode(prompts, list(range(len(prompts))), decoder.starts(prompts))
    decoder.save_trace(output)
    if arguments.json:
        print_json(output.to_dict())
    else:
        for line in texts(output):
            print(line)
    return 0


def texts(output: GenerateOutput) -> list[str]:
    """The text of every sequence, its token ids where there is no tokenizer."""
    if output.texts is not None:
        return output.texts
    return [" ".join(map(str, row.tolist())) for row in output.tokens]


def conversation(text: str, arguments: argparse.Namespace) -> Any:
    """`text` as a prompt: as it stands, or with --chat as a user's message."""
    if not arguments.chat:
        return text
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [*system, {"role": "user", "content": text}]


def _prompts(arguments: argparse.Namespace) -> list[Any]:
    if arguments.tokens is not None:
        if arguments.chat:
            raise InputError("--chat needs text, not --tokens")
        return [_token_ids(text) for text in arguments.tokens]
    if arguments.prompt is not None:
        return [conversation(text, arguments) for text in arguments.prompt]
    if arguments.gen_length is not None and not arguments.chat:
        return [""]
    raise InputError(
        "give --prompt (with [MASK] where something is to be filled, or with --gen-length), "
        "--prompt-file or --tokens"
    )


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--tokens {text!r}: give integers") from error
