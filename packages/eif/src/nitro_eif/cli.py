"""The command ``eif``: arguments in, one of `nitro_eif.commands` called, errors to exit codes.

``eif --help`` must be fast, so a command's module is imported only when that command is asked for.
"""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from nitro_eif.commands import COMMANDS
from nitro_eif.errors import EifError, EifFormatError, HostError, UsageError

PROGRAM: Final = "eif"

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BAD_FILE: Final = 3
EXIT_HOST: Final = 4
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

_EXIT_CODES: Final = """exit codes:
  0  done; the answer is yes
  1  it failed, or the answer is no (not valid, not the same, not signed by this key)
  2  wrong usage
  3  an input file is broken
  4  a file cannot be opened, the network fails, or something is not installed
  130, 143  interrupted, terminated"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names and images may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:
            # Here and not at exit, where it would be too late to notice that the reader has left.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}", code=EXIT_HOST)


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    if hasattr(options, "text"):
        options.json = options.json or not (options.text or _is_terminal())
    try:
        with _terminable():
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
    except EifError as error:
        return _complain(error, hint=error.hint, code=exit_code(error))
    except MemoryError:
        return _complain("not enough memory", code=EXIT_HOST)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _complain(message: object, *, hint: str = "", code: int) -> int:
    from nitro_eif.commands.terminal import shown  # noqa: PLC0415 - only errors need it

    print(shown(f"{PROGRAM}: error: {message}"), file=sys.stderr)
    if hint:
        print(shown(f"  hint: {hint}"), file=sys.stderr)
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the program like an error, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: EifError) -> int:
    """The exit code that stands for an error."""
    match error:
        case EifFormatError():
            return EXIT_BAD_FILE
        case UsageError():
            return EXIT_USAGE
        case HostError():
            return EXIT_HOST
    return EXIT_FAILED


def parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        whole: Import all commands at once, as completion scripts need it, and not only the one that is used.
    """
    top = _Parser(
        prog=PROGRAM,
        description="Read, measure, build, sign and explain AWS Nitro Enclave Image Files.",
        epilog=f"example:\n  eif describe hello.eif\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser
    )
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(make_parser=parser)
        if whole:
            command.fill()
    return top


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ANN401 - as argparse's own
        # argparse's own swallows errors, and so would not notice that the reader of --help has left.
        if message:
            if not message.replace("\n", "").isprintable():  # a name with escape sequences in it
                from nitro_eif.commands.terminal import shown  # noqa: PLC0415 - seldom

                message = shown(message)
            print(message, end="", file=file or sys.stderr, flush=True)


class _CommandParser(_Parser):
    """The parser of one command, which gets its arguments when they are needed."""

    def fill(self) -> None:
        """Import the command's module and let it add its arguments, once."""
        if self.epilog is not None:
            return
        name = self.prog.rpartition(" ")[2]
        module = import_module(f"nitro_eif.commands.{name}")
        examples = "\n".join(f"  {example}" for example in module.EXAMPLES)
        self.epilog = f"example:\n{examples}\n\n{_EXIT_CODES}"
        module.add_arguments(self)
        self.set_defaults(run=module.run)

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Fill the parser, and parse as argparse does."""
        self.fill()
        return super().parse_known_args(*arguments, **named)


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from nitro_eif.image.metadata import tool_version  # noqa: PLC0415 - only here

        print(f"{PROGRAM} {tool_version()}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
