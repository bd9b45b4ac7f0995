"""The command ``tabes``.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failure (an unusable
checkpoint, a device error), 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import tabes
from tabes import eval_command, fidelity_command
from tabes import trace as tracing
from tabes.bench import command as bench_command
from tabes.canvas import Bar, Canvas, Silence, View
from tabes.command_line import add_model_options
from tabes.figure_file import check_figure
from tabes.files import check_writable
from tabes.generation import generate
from tabes.inputs import Prompts
from tabes.model import Model, load
from tabes.output import GenerateOutput
from tabes.text import MASK_LITERAL

# The molecules that the bundled model learned from: tokens without frame, mean and deviation.
_LENGTH_MEAN, _LENGTH_DEVIATION, _LENGTH_RANGE = 35.4, 4.5, (13, 50)
# Few enough that the order matters: at one token a step the bundled model is nearly always right.
_COMPARISON_STEPS = 12
_DRAWING_TEMPERATURE = 0.7
# Of drawings that go to a file or a pipe, which have no width of their own.
_PLAIN_WIDTH = 160


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tabes: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except tabes.InputError as error:
        return _fail(error, 2)
    except (tabes.Error, OSError, UnicodeError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader (head, say) has had enough. Nothing may be flushed into the pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("tabes: interrupted", file=sys.stderr)
        return 130


def _fail(error: Exception, code: int) -> int:
    print(f"tabes: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tabes", description="Decode masked diffusion models.")
    parser.add_argument("--version", action="version", version=f"tabes {tabes.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser(
        "generate",
        help="fill masks, or continue a prompt",
        description="Fill the masks of prompts, or continue them by --gen-length tokens.",
    )
    _add_model(command)
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        "-p",
        action="append",
        metavar="TEXT",
        help=f"text with {MASK_LITERAL} where something is to be filled, or a prompt to continue "
        "with --gen-length; repeat it for a batch",
    )
    source.add_argument(
        "--prompt-file", metavar="FILE", help="one prompt a line; - for standard input"
    )
    source.add_argument(
        "--tokens",
        action="append",
        metavar="IDS",
        help="token ids instead of text, separated by commas or spaces; repeat it for a batch",
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
    _add_sampling(command, "confidence")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a setting of the policy, such as tau=0.8 of threshold (help(tabes.make_policy))",
    )
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0)")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P")
    command.add_argument("--top-k", type=int, default=0, metavar="K")
    command.add_argument("--cfg-scale", type=float, default=0.0, metavar="S")
    command.add_argument("--forbid", type=int, action="append", default=[], metavar="ID")
    command.add_argument("--logits-eos-inf", action="store_true", help="never write end tokens")
    command.add_argument(
        "--confidence-eos-eot-inf", action="store_true", help="reveal end tokens last"
    )
    _add_steering(command)
    command.add_argument(
        "--trace", metavar="FILE", help="write the decode as JSON, for the command trace"
    )
    _add_output(command)
    command.set_defaults(run=_generate)

    command = commands.add_parser(
        "trace",
        help="draw a decode",
        description="Draw a decode that generate --trace wrote: in the terminal, or as a figure.",
    )
    command.add_argument("file", metavar="FILE", help="what generate --trace wrote")
    command.add_argument(
        "--out", "-o", metavar="FIGURE", help="an .svg or .png file to make (needs matplotlib)"
    )
    command.add_argument(
        "--sequence", type=int, default=0, metavar="N", help="which of a batch, from 0 (0)"
    )
    command.set_defaults(run=_trace)

    command = commands.add_parser("info", help="describe a checkpoint")
    _add_model(command)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "convert",
        help="write a pytorch_model.bin checkpoint as safetensors",
        description="Write the checkpoint folder SRC, with pytorch_model.bin or its shards, to the "
        "new folder DST with safetensors. Pickled code is never run.",
    )
    command.add_argument("src", metavar="SRC")
    command.add_argument("dst", metavar="DST")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_convert)

    fidelity_command.add_command(commands)
    bench_command.add_command(commands)
    eval_command.add_command(commands)

    command = commands.add_parser(
        "demo",
        help="molecules from the bundled model",
        description="Decode molecules (SMILES) with the bundled model, from nothing but masks. "
        "Without --policy the same canvases are decoded by confidence and by BoE in as many steps, "
        "then by confidence at BoE's cost. With RDKit installed each is marked valid or invalid.",
    )
    command.add_argument("--number", "-n", type=int, default=8, help="how many molecules (8)")
    command.add_argument(
        "--length", type=int, metavar="L", help="their tokens (as the training data's, 13 to 50)"
    )
    command.add_argument(
        "--steps",
        type=int,
        help=f"denoising steps ({_COMPARISON_STEPS}; with --policy as many as tokens)",
    )
    _add_sampling(command, None)
    command.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"(0, where the order alone makes the difference; with --policy "
        f"{_DRAWING_TEMPERATURE})",
    )
    _add_output(command)
    command.set_defaults(run=_demo)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint folder (the bundled SMILES model)"
    )
    add_model_options(parser)


def _add_sampling(parser: argparse.ArgumentParser, policy: str | None) -> None:
    names = ", ".join(tabes.policy_names())
    parser.add_argument(
        "--policy",
        "--alg",
        "--remasking",
        default=policy,
        help=f"{names} ({policy or 'confidence and boe, compared'})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")


def _add_steering(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --policy boe", "defaults and meaning: help(tabes.BoE)")
    group.add_argument(
        "--n-candidates", metavar="N", help="rows that get a gradient: a number, or as 3x per quota"
    )
    group.add_argument("--prefilter", help="by what candidates come first: confidence or margin")
    group.add_argument(
        "--alpha",
        action="append",
        metavar="A",
        help="where between mask (0) and prediction (1); several: commas, or repeat it",
    )
    group.add_argument("--draft", help="what candidates become: token or expected")
    group.add_argument("--tau", type=float, metavar="T", help="temperature of the prediction")
    group.add_argument("--rule", help="product or nats")
    group.add_argument("--gamma", type=float, metavar="G", help="exponent of the confidence")
    group.add_argument("--weight", type=float, metavar="W", help="of the influence, by nats")
    group.add_argument("--factor", type=float, metavar="F", help="reveal what this rule accepts")
    group.add_argument("--spread", type=float, metavar="W", help="weight of standing apart")
    group.add_argument("--spread-width", type=float, metavar="N", help="its reach in positions")
    group.add_argument("--anti-collapse", type=float, metavar="W", help="weight of the penalty")
    group.add_argument("--h-max", type=float, metavar="H", help="entropy floor of the penalty")
    group.add_argument("--rho", type=float, metavar="R", help="most other probes, as share of L")
    group.add_argument(
        "--probes", help="candidates, least_entropic, most_entropic, random, nearest"
    )
    group.add_argument("--halo", type=int, metavar="N", help="neighbours that are active as well")
    group.add_argument("--context", help="frozen or exact")
    group.add_argument("--adjoint", help="active or dense")
    group.add_argument("--every", type=int, metavar="N", help="steer every N-th step")
    group.add_argument("--min-masked", type=int, metavar="N", help="steer only with as many masks")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--no-canvas", action="store_true", help="a progress bar at most")


def _load(arguments: argparse.Namespace) -> Model:
    path = tabes.demo_checkpoint() if arguments.model is None else arguments.model
    return load(path, arguments.device, arguments.dtype, mask_token_id=arguments.mask_token_id)


def _policy(arguments: argparse.Namespace) -> tabes.Policy:
    """The policy that --policy and its settings ask for."""
    given = {
        name: value
        for name in tabes.BoE().settings()
        if (value := getattr(arguments, name)) is not None
    }
    name: str = arguments.policy
    if name in ("boe", "boe_paper"):
        if "alpha" in given:
            given["alpha"] = _numbers("--alpha", given["alpha"])
        if given.get("n_candidates", "").isdecimal():
            given["n_candidates"] = int(given["n_candidates"])
    elif given:
        option = next(iter(given)).replace("_", "-")
        raise tabes.InputError(f"--{option} is a setting of --policy boe, not of {name}")
    for setting in arguments.set:
        key, equals, value = setting.partition("=")
        if not equals or name in ("boe", "boe_paper"):
            raise tabes.InputError(
                f"--set {setting}: give NAME=NUMBER, and BoE's settings as options of their own"
            )
        given[key] = _numbers(f"--set {key}=", [value])[0]
    return tabes.make_policy(name, **given)


def _numbers(option: str, texts: list[str]) -> list[float]:
    try:
        return [float(part) for text in texts for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise tabes.InputError(f"{option} {' '.join(texts)}: give numbers") from error


def _view(model: Model, arguments: argparse.Namespace, title: str) -> View:
    """A canvas on a terminal, a bar if only stderr is one, else nothing."""
    if not sys.stderr.isatty():
        return Silence()
    from rich.console import Console

    console = Console(stderr=True)
    if arguments.json or arguments.no_canvas or not sys.stdout.isatty() or console.is_dumb_terminal:
        return Bar(console)
    tokenizer = model.tokenizer
    piece = (lambda token: f" {token}") if tokenizer is None else tokenizer.piece
    return Canvas(console, piece, model.info.mask_token_id, title)


def _generate(arguments: argparse.Namespace) -> int:
    # The input is read first: a large model is not loaded only to complain about its prompt.
    prompts, policy = _prompts(arguments), _policy(arguments)
    if arguments.trace is not None:
        check_writable(arguments.trace, "--trace")
    model = _load(arguments)
    with _view(model, arguments, f"{model.info.family} {arguments.policy}") as view:
        output = generate(
            model,
            prompts,
            steps=arguments.steps,
            gen_length=arguments.gen_length,
            block_length=arguments.block_length,
            refresh_every=arguments.refresh_every,
            policy=policy,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            top_k=arguments.top_k,
            cfg_scale=arguments.cfg_scale,
            seed=arguments.seed,
            forbidden=arguments.forbid,
            logits_eos_inf=arguments.logits_eos_inf,
            confidence_eos_eot_inf=arguments.confidence_eos_eot_inf,
            callback=view,
        )
    if arguments.trace is not None:
        tracing.save(arguments.trace, output, model, policy)
    if arguments.json:
        _print_json(output.to_dict())
    elif output.texts is not None:
        for text in output.texts:
            print(text)
    else:
        for row in output.tokens:
            print(*row.tolist())
    return 0


def _prompts(arguments: argparse.Namespace) -> Prompts:
    if arguments.tokens is not None:
        if arguments.chat:
            raise tabes.InputError("--chat needs text, not --tokens")
        return [_token_ids(text) for text in arguments.tokens]
    texts: list[str]
    if arguments.prompt_file is not None:
        texts = _read_lines(arguments.prompt_file)
    elif arguments.prompt is not None:
        texts = arguments.prompt
    elif arguments.gen_length is not None and not arguments.chat:
        texts = [""]
    else:
        raise tabes.InputError(
            f"give --prompt (with {MASK_LITERAL} where something is to be filled, or with "
            "--gen-length), --prompt-file or --tokens"
        )
    if not arguments.chat:
        if arguments.system is not None:
            raise tabes.InputError("--system needs --chat")
        return texts
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [[*system, {"role": "user", "content": text}] for text in texts]


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise tabes.InputError(f"--tokens {text!r}: give integers") from error


def _read_lines(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise tabes.InputError(f"--prompt-file {name}: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise tabes.InputError(f"--prompt-file {name}: it holds no prompts")
    return lines


def _trace(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        check_figure(arguments.out)
    decodes = tracing.read(arguments.file)
    if not 0 <= arguments.sequence < len(decodes):
        raise tabes.InputError(
            f"--sequence {arguments.sequence}: {arguments.file} has {len(decodes)} sequences, "
            "counted from 0"
        )
    decode = decodes[arguments.sequence]
    if arguments.out is not None:
        tracing.draw(decode, arguments.out)
        print(arguments.out)
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print(tracing.render(decode, console.width))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    info, tokenizer = model.info, model.tokenizer
    values: dict[str, Any] = {
        "path": str(model.path),
        "family": info.family,
        "parameters": info.parameters,
        "num_layers": info.num_layers,
        "hidden_size": info.hidden_size,
        "vocab_size": info.vocab_size,
        "max_length": info.max_length,
        "mask_token_id": info.mask_token_id,
        "eos_token_id": info.eos_token_id,
        "eos_token_ids": list(info.eos_token_ids),
        "bos_token_id": info.bos_token_id,
        "pad_token_id": info.pad_token_id,
        "device": str(info.device),
        "dtype": str(info.dtype),
        "tokenizer_size": None if tokenizer is None else tokenizer.vocab_size,
        "mask_token": None if tokenizer is None else tokenizer.mask_token,
        "chat_template": tokenizer is not None and tokenizer.chat_template is not None,
        "tabes": tabes.__version__,
    }
    if arguments.json:
        _print_json(values)
    else:
        for name, value in values.items():
            print(f"{name:15} {_plain(value)}")
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _convert(arguments: argparse.Namespace) -> int:
    result = tabes.convert(arguments.src, arguments.dst)
    if arguments.json:
        _print_json(
            {
                "path": str(result.path),
                "tensors": result.tensors,
                "bytes": result.bytes,
                "files": result.files,
                "config_additions": result.config_additions,
            }
        )
    else:
        print(f"{result.path}: {result.tensors} tensors, {result.bytes / 1e6:.1f} MB")
        for name, value in result.config_additions.items():
            print(f"added to config.json: {name} = {value}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.number < 1:
        raise tabes.InputError(f"--number {arguments.number}: it must be at least 1")
    if arguments.length is not None and arguments.length < 1:
        raise tabes.InputError(f"--length {arguments.length}: it must be at least 1")
    prompts = [MASK_LITERAL * length for length in _demo_lengths(arguments)]
    longest = max(prompt.count(MASK_LITERAL) for prompt in prompts)
    model = load(tabes.demo_checkpoint())
    runs: list[dict[str, Any]] = []

    def run(policy: str, steps: int, default: float, note: str = "") -> GenerateOutput:
        with _view(model, arguments, policy) as view:
            output = generate(
                model,
                prompts,
                steps=steps,
                policy=policy,
                temperature=default if arguments.temperature is None else arguments.temperature,
                seed=arguments.seed,
                callback=view,
            )
        smiles = output.texts or []
        valid = _validity(smiles)
        runs.append({"policy": policy, "smiles": smiles, "valid": valid, **output.to_dict()})
        if not arguments.json:
            print(f"# {policy}{note}")
            for i, text in enumerate(smiles):
                print(text if valid is None else f"{text}\t{'valid' if valid[i] else 'invalid'}")
            print(f"# {_summary(output, valid)}", flush=True)
        return output

    if arguments.policy is not None:
        steps = longest if arguments.steps is None else arguments.steps
        run(arguments.policy, steps, _DRAWING_TEMPERATURE)
    else:
        steps = _COMPARISON_STEPS if arguments.steps is None else arguments.steps
        run("confidence", steps, 0.0)
        steered = run("boe", steps, 0.0)
        # Gradients cost as much as steps do, so the same steps alone would flatter them.
        same_cost = round(steered.forward_equivalents)
        if len(steered.trace) < same_cost:
            run("confidence", same_cost, 0.0, " at the cost of boe")
    if arguments.json:
        _print_json({"runs": runs})
    return 0


def _demo_lengths(arguments: argparse.Namespace) -> list[int]:
    if arguments.length is not None:
        return [arguments.length] * arguments.number
    draw = random.Random(arguments.seed)
    low, high = _LENGTH_RANGE
    return [
        min(max(round(draw.gauss(_LENGTH_MEAN, _LENGTH_DEVIATION)), low), high)
        for _ in range(arguments.number)
    ]


def _validity(smiles: list[str]) -> list[bool] | None:
    """Whether RDKit can read each SMILES, None if it is not installed."""
    try:
        chem, log = import_module("rdkit.Chem"), import_module("rdkit.RDLogger")
    except ImportError:
        return None
    log.DisableLog("rdApp.*")
    return [bool(text) and chem.MolFromSmiles(text) is not None for text in smiles]


def _summary(output: GenerateOutput, valid: list[bool] | None) -> str:
    count = len(output.texts or [])
    judged = (
        f"{count} molecules; pip install rdkit to check them"
        if valid is None
        else f"{sum(valid)} of {count} valid (RDKit)"
    )
    return (
        f"{judged}; {len(output.trace)} steps, {output.forward_equivalents:.1f} "
        f"forward-equivalents, {output.seconds:.2f} s"
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))
