"""The command ``nsm``: arguments in, one of `nitro_nsm.commands` called, errors to exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from nitro_nsm.errors import CborError, DocumentError, HostError, InputError, NsmError, UsageError

PROGRAM: Final = "nsm"
COMMANDS: Final = ("verify", "describe", "attest", "pki", "serve", "device", "preload", "kms", "completion")
"""Each is a module of `nitro_nsm.commands`, and brings its own help, arguments and `run`."""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BAD_FILE: Final = 3
EXIT_HOST: Final = 4
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = """exit codes:
    0  done; the answer is yes
    1  it failed, or the answer is no (the document does not verify)
    2  wrong usage
    3  an input file is broken
    4  a file, a directory or a socket cannot be used, or something is not installed
  130  Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        arguments: Those after the program's name; by default the process's.
    """
    try:
        try:
            options = parser().parse_args(arguments)
            code: int = options.run(options)
        finally:
            sys.stdout.flush()  # now, because a reader that has left would be a traceback at exit
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except NsmError as error:
        print(shown(f"{PROGRAM}: error: {error}"), file=sys.stderr)
        if error.hint:
            print(shown(f"  hint: {error.hint}"), file=sys.stderr)
        return exit_code(error)
    return code


def exit_code(error: NsmError) -> int:
    """The exit code that stands for an error."""
    match error:
        case UsageError():
            return EXIT_USAGE
        case InputError() | CborError() | DocumentError():
            return EXIT_BAD_FILE
        case HostError():
            return EXIT_HOST
    return EXIT_FAILED


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, which completion scripts are made of, too."""
    top = _Parser(
        prog=PROGRAM,
        description="The Nitro Secure Module in software: make and verify attestation documents.",
        epilog=f"example:\n  nsm verify document.cose\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"nitro_nsm.commands.{name}")
        summary: str = module.SUMMARY
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="example:\n"
            + "\n".join(f"  {example}" for example in module.EXAMPLES)
            + f"\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=module.run, parser=top)
        module.add_arguments(command)
    return top


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ANN401 - as argparse's own
        super()._print_message(shown(message), file)


def shown(text: str) -> str:
    """Text as it may go to a terminal, because names of files may have escape sequences in them."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - nothing else needs it

        print(f"{PROGRAM} {version('nitro-nsm')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
