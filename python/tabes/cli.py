"""The command ``tabes``.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failure (an unusable
checkpoint, a device error, results that cannot be written, some prompts of a file that could not be
decoded), 2 wrong input, 130 interrupted.

A command is a module with a function ``configure`` that tells an argparse parser its arguments and
sets ``run``, which takes what was parsed and returns the exit code. Only the command that was named
is imported, and it imports what needs torch when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import tabes
from tabes.command_line import Parser
from tabes.streams import check_output, drop_unwritten, say, settle
from tabes.suggest import unknown_command

# Name, module and what it is for.
_COMMANDS = (
    ("generate", "tabes.generate_command", "fill masks, or continue a prompt"),
    ("trace", "tabes.trace_command", "draw a decode"),
    ("info", "tabes.info_command", "describe a checkpoint"),
    ("policies", "tabes.policies_command", "list the unmasking policies"),
    ("convert", "tabes.convert_command", "write a pytorch_model.bin checkpoint as safetensors"),
    ("fidelity", "tabes.fidelity_command", "how well influence scores predict the truth"),
    ("bench", "tabes.bench.command", "compare decoders at equal cost"),
    ("eval", "tabes.eval_command", "run public tasks on a checkpoint"),
    ("demo", "tabes.demo_command", "molecules from the bundled model"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit code.

    Raises SystemExit with the exit code for --help and --version, and for options that cannot be
    parsed.
    """
    settle()
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            arguments = _parse(given)
        except SystemExit:
            sys.stdout.flush()  # of --help
            raise
        check_output()
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except tabes.InputError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        return _fail(None, 1)  # the reader (head, say) has had enough
    except (tabes.Error, OSError, UnicodeError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        drop_unwritten()
        say("tabes: interrupted")
        return 130


def _fail(error: Exception | None, code: int) -> int:
    drop_unwritten()
    if error is not None:
        say(f"tabes: error: {' '.join(str(error).split())}")
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    module = {name: module for name, module, _ in _COMMANDS}.get(argv[0] if argv else "")
    if module is not None:
        parser = Parser(prog=f"tabes {argv[0]}")
        import_module(module).configure(parser)
        return parser.parse_args(argv[1:])
    parser = Parser(prog="tabes", description="Decode masked diffusion models.")
    parser.add_argument("--version", action="version", version=f"tabes {tabes.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, _, purpose in _COMMANDS:
        commands.add_parser(name, help=purpose)
    if argv and not argv[0].startswith("-"):
        parser.error(unknown_command(argv[0], [name for name, _, _ in _COMMANDS]))
    parser.parse_args(argv)  # ends here for --help, --version and what is neither
    parser.error("give a COMMAND")
