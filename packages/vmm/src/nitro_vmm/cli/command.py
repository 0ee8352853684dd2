"""What the commands share: names, messages, and the parser's place for them."""

import argparse
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.streams import logs_json, report, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse gives it no other name

PROGRAM: Final = "vmm"
RUN_EXAMPLE: Final = """\
example:
  vmm run --console hello.eif --vsock-path /tmp/hello.vsock
  printf 'CONNECT 5000\\n' | nc -U /tmp/hello.vsock     # into the enclave
  # its connections to port 8000 go to the unix socket /tmp/hello.vsock_8000

"""
"""Of ``vmm run``, and of ``vmm`` itself."""


def add_command(
    commands: "Subparsers",
    name: str,
    execute: "Callable[[argparse.Namespace, float], int]",
    *,
    about: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command, whose help ends with an example and the exit codes.

    Args:
        commands: Where to.
        name: What users type.
        execute: What it does, with the arguments and the monotonic time of the start; returns the exit code.
        about: One line for the list of commands, in lower case and without a full stop.
        example: Lines of a shell.
    """
    lines = "".join(f"  {line}\n" for line in example.splitlines())
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n{lines}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    return parser


def add_json(parser: argparse.ArgumentParser, about: str = "as JSON") -> None:
    """Add ``--json``, which every command has that reports something."""
    parser.add_argument("--json", action="store_true", help=about)


def complain(message: object, *, hint: str = "", code: ExitCode, name: str) -> int:
    """Print an error and what to do about it; returns the code to exit with.

    Args:
        message: What is wrong.
        hint: What to do; empty where the message says all.
        code: What to exit with.
        name: The error's code, see `nitro_vmm.cli.codes`.
    """
    if logs_json():
        report(
            str(message),
            level="error",
            fields={"code": name, "exit_code": int(code), "hint": hint},
        )
        return code
    tell(f"{PROGRAM}: error: {message} ({name})")
    if hint:
        tell(f"  hint: {hint}")
    return code


def say(text: str, **fields: object) -> None:
    """Tell people what happens; programs get ``fields`` as well, if the log is JSON."""
    report(text if logs_json() else f"{PROGRAM}: {text}", fields=fields)
