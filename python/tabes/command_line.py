"""What several commands share: their parser, options, loading, views and output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tabes.streams import say
from tabes.suggest import unknown_option

if TYPE_CHECKING:
    from tabes.canvas import View
    from tabes.model import Model


class Parser(argparse.ArgumentParser):
    """Complains in one line, with what was probably meant, and loses no output that fails."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        known = self._known()
        # Before anything else is missed: it may be what was misspelt.
        for word in words[: words.index("--") if "--" in words else None]:
            option = word.partition("=")[0]
            # What argparse would take for a letter and its value.
            if f"-{option}" in known and option not in known and not option.startswith("--"):
                self.error(f"there is no option {option}: did you mean -{option}?")
            if not option.startswith("--") or " " in word:
                continue
            if not any(other.startswith(option) for other in known):
                self.error(unknown_option(option, known))
        arguments, rest = self.parse_known_args(words, namespace)
        if rest and rest[0].startswith("-"):
            self.error(unknown_option(rest[0], known))
        if rest:
            self.error(f"what is {rest[0]!r} for? There is no argument in this place")
        return arguments

    def _known(self) -> list[str]:
        """The options of this parser and of its commands."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += [
                    option for parser in action.choices.values() for option in parser._known()
                ]
        return known

    def error(self, message: str) -> NoReturn:
        say(f"tabes: error: {' '.join(message.split())} (see {self.prog} --help)")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        # The base class keeps quiet where this fails.
        if message:
            (sys.stdout if file is None else file).write(message)


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The checkpoint, and how it is loaded: the arguments of `tabes.load`."""
    about = "checkpoint folder, or the name of a bundled model"
    if optional:
        parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{about} (moses)")
    else:
        parser.add_argument("model", metavar="CHECKPOINT", help=about)
    parser.add_argument("--device", default="cpu", help="cpu (default) or a CUDA device")
    parser.add_argument(
        "--dtype", default="float32", help="float32 (default), bfloat16, float16, float64"
    )
    parser.add_argument(
        "--mask-token-id", type=int, metavar="ID", help="what is filled (as the checkpoint says)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors to leave out, * for any text: 'cls.species.*'; may be repeated",
    )
    parser.add_argument(
        "--eos-token-id",
        type=int,
        action="append",
        metavar="ID",
        help="what ends a text (as the checkpoint says); repeat it for several",
    )
    parser.add_argument(
        "--no-prepack", action="store_true", help="plain weights: slower, and less memory"
    )


def load_model(arguments: argparse.Namespace) -> Model:
    """The model that the arguments of `add_model` name."""
    from tabes.model import load

    path = "moses" if arguments.model is None else arguments.model
    return load(
        path,
        arguments.device,
        arguments.dtype,
        mask_token_id=arguments.mask_token_id,
        ignore=arguments.ignore,
        eos_token_ids=arguments.eos_token_id,
        prepack=not arguments.no_prepack,
    )


def add_policy(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    parser.add_argument(
        "--policy",
        "--alg",
        "--remasking",
        default=default,
        metavar="POLICY",
        help=f"which positions come first: a name, or one with settings, as 'boe(alpha=0.3)'; "
        f"tabes policies lists them ({about})",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--no-canvas", action="store_true", help="a progress bar at most")


def view(model: Model, arguments: argparse.Namespace, title: str) -> View:
    """A canvas on a terminal, a bar if only stderr is one, else nothing."""
    from tabes.canvas import Bar, Canvas, Silence

    if not sys.stderr.isatty():
        return Silence()
    from rich.console import Console

    console = Console(stderr=True)
    if arguments.json or arguments.no_canvas or not sys.stdout.isatty() or console.is_dumb_terminal:
        return Bar(console)
    tokenizer = model.tokenizer
    piece = (lambda token: f" {token}") if tokenizer is None else tokenizer.piece
    return Canvas(console, piece, model.info.mask_token_id, title)


def print_json(value: Any) -> None:
    """One line of JSON on stdout, escaped where that cannot hold a character."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    print(text, flush=True)
