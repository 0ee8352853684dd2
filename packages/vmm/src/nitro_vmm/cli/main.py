"""The parser, and what all commands have in common."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from nitro_vmm.cli import completion, run
from nitro_vmm.cli.command import PROGRAM
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode

COMMANDS = (run, completion)


def parser() -> argparse.ArgumentParser:
    """The parser, which completion scripts are made of, too."""
    top = argparse.ArgumentParser(
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
    try:
        try:
            arguments = parser().parse_args(argv)
            code: int = arguments.execute(arguments, started_s)
        finally:
            sys.stdout.flush()  # here, where a reader who has gone is no traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code
