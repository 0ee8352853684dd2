"""``vmm completion``."""

import argparse
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import complain
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

EXAMPLE: Final = """\
example:
  vmm completion bash > ~/.local/share/bash-completion/completions/vmm

"""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Print a completion script for a shell.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        return complain(
            "completion needs shtab", hint="pip install 'nitro-vmm[completion]'", code=ExitCode.HOST
        )
    print(shtab.complete(arguments.parser, shell=arguments.shell))
    return ExitCode.ENDED
