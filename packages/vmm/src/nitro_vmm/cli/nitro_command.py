"""``vmm nitro-cli``."""

import argparse
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

NAME: Final = "nitro-cli"


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        NAME, help="AWS's command line: vmm nitro-cli run-enclave ...", add_help=False
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Be nitro-cli."""
    from nitro_vmm.cli.nitro.main import main  # noqa: PLC0415 - its parser is large

    return main(arguments.argv[arguments.argv.index(NAME) + 1 :])
