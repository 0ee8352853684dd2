"""The parser, and what all commands have in common."""

import argparse
import errno
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Final, NoReturn

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import PROGRAM, RUN_EXAMPLE, complain
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.parsing import Parser, with_values
from nitro_vmm.cli.streams import give_up, open_closed_streams
from nitro_vmm.errors import UsageError, VmmError

COMMANDS: Final = {
    "run": ("run",),
    "ps": ("ps", "describe", "stats"),
    "console": ("logs", "console"),
    "attest": ("attest",),
    "stop": ("stop", "terminate", "wait", "rm"),
    "snapshot": ("snapshot",),
    "cache": ("cache",),
    "doctor": ("doctor",),
    "explain": ("explain",),
    "init": ("init",),
    "nitro_command": ("nitro-cli",),
    "completion": ("completion",),
}
"""The modules of the commands, in the order of ``--help``, and which commands each of them adds.

Only the module of the command that is used is imported, because a start is waited for.
"""

VERSION: Final = "--version"

DEBUG = "VMM_DEBUG"
"""The environment variable that brings the traceback of an error that should not be."""


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser, which completion scripts are made of, too.

    Args:
        command: The only command that is wanted; `None`, or what is none: all. ``--version`` wants none.
    """
    top = Parser(
        prog=PROGRAM,
        description="AWS Nitro Enclaves on any machine.",
        epilog=RUN_EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(VERSION, action=_Version)
    top.set_defaults(parser=top)  # `completion` prints it
    # Named, because argparse would make a formatter to find the name, and that looks at the terminal.
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=PROGRAM)
    wanted = [module for module, names in COMMANDS.items() if command in names and command != "completion"]
    for module in () if command == VERSION else wanted or COMMANDS:
        import_module(f"nitro_vmm.cli.{module}").add(commands)
    for chosen in commands.choices.values():
        chosen.set_defaults(chosen=chosen)  # whose usage is shown when it gets what it does not know
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{PROGRAM} {_version()}")
        parser.exit()


def _version() -> str:
    """The version that is installed.

    The directory that an installer leaves has it in its name ("Recording installed projects", PyPA
    specifications). Asking `importlib.metadata` takes longer than all the rest.
    """
    for directory in sys.path:
        with suppress(OSError):
            for name in os.listdir(directory or "."):  # noqa: PTH208 - pathlib takes 10 ms to import
                if name.startswith("nitro_vmm-") and name.endswith(".dist-info"):
                    return name.removeprefix("nitro_vmm-").removesuffix(".dist-info")
    from importlib.metadata import version  # noqa: PLC0415 - only where it was installed in another way

    return version("nitro-vmm")


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
        if error.errno in {errno.EMFILE, errno.ENFILE}:  # before the command could begin
            hint, name = "raise the limit of open files (ulimit -n)", codes.LIMITS[error.errno]
            return complain(error, hint=hint, code=ExitCode.HOST, name=name)
        return complain(f"standard output: {error.strerror}", code=ExitCode.HOST, name=codes.OUTPUT)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """The ``vmm`` command: `main`, and the end of the process.

    The interpreter is not taken apart, because after an enclave that takes 50 ms. So
    what must happen at the end happens in `main`, and not in ``atexit``.
    """
    code = main(argv)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _execute(argv: Sequence[str] | None, started_s: float) -> int:
    try:
        argv = with_values(sys.argv[1:] if argv is None else argv)
        arguments, unknown = parser(argv[0] if argv else None).parse_known_args(argv)
        if unknown and arguments.command not in COMMANDS["nitro_command"]:  # which parses what follows itself
            arguments.chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
        arguments.argv = argv
        return int(arguments.execute(arguments, started_s))
    except OSError:
        raise
    except VmmError as error:
        code = ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.HOST
        return complain(error, hint=error.hint, code=code, name=error.code)
    except MemoryError:
        return complain(
            "there is not enough memory",
            hint="ulimit -v",
            code=ExitCode.HOST,
            name=codes.LIMITS[errno.ENOMEM],
        )
    except Exception as error:
        if DEBUG in os.environ:
            raise
        return complain(
            f"this is a bug of {PROGRAM}'s: {type(error).__name__}: {error}",
            hint=f"set {DEBUG}=1 for the traceback, and please report it",
            code=ExitCode.FAILED,
            name=codes.BUG,
        )
