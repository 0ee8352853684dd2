"""The parser, and what all commands have in common."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from nitro_vmm.cli import (
    attest,
    cache,
    completion,
    console,
    doctor,
    explain,
    init,
    nitro_command,
    ps,
    run,
    stop,
)
from nitro_vmm.cli.command import PROGRAM, complain
from nitro_vmm.cli.configure import with_values
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.parsing import Parser
from nitro_vmm.cli.streams import give_up, open_closed_streams
from nitro_vmm.errors import UsageError, VmmError

COMMANDS = (run, ps, console, attest, stop, cache, doctor, explain, init, nitro_command, completion)

DEBUG = "VMM_DEBUG"
"""The environment variable that brings the traceback of an error that should not be."""


def parser() -> argparse.ArgumentParser:
    """The parser, which completion scripts are made of, too."""
    top = Parser(
        prog=PROGRAM,
        description="AWS Nitro Enclaves on any machine.",
        epilog=run.EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    top.set_defaults(parser=top)  # `completion` prints it
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for chosen in commands.choices.values():
        chosen.set_defaults(chosen=chosen)  # whose usage is shown when it gets what it does not know
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        print(f"{PROGRAM} {version('nitro-vmm')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    started_s = time.monotonic()
    open_closed_streams()
    try:
        try:
            code = _execute(argv, started_s)
        finally:
            sys.stdout.flush()  # here, where a reader who has gone is no traceback
    except BrokenPipeError:
        give_up(sys.stdout.fileno())
        return ExitCode.FAILED
    except OSError as error:  # of the answer itself: commands explain their own
        give_up(sys.stdout.fileno())
        return complain(f"standard output: {error.strerror}", code=ExitCode.HOST)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


def _execute(argv: Sequence[str] | None, started_s: float) -> int:
    try:
        argv = with_values(sys.argv[1:] if argv is None else argv)
        arguments, unknown = parser().parse_known_args(argv)
        if unknown and arguments.command != nitro_command.NAME:  # which parses what follows by itself
            arguments.chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
        arguments.argv = argv
        return int(arguments.execute(arguments, started_s))
    except OSError:
        raise
    except VmmError as error:
        code = ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.HOST
        return complain(error, hint=error.hint, code=code)
    except MemoryError:
        return complain("there is not enough memory", hint="ulimit -v", code=ExitCode.HOST)
    except Exception as error:
        if DEBUG in os.environ:
            raise
        return complain(
            f"this is a bug of {PROGRAM}'s: {type(error).__name__}: {error}",
            hint=f"set {DEBUG}=1 for the traceback, and please report it",
            code=ExitCode.FAILED,
        )
