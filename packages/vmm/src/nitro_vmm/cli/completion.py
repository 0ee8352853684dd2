"""``vmm completion``."""

import argparse
from typing import TYPE_CHECKING

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import add_command, complain
from nitro_vmm.cli.exit_code import ExitCode

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "completion",
        execute,
        about="print a shell's completion script",
        example="vmm completion bash > ~/.local/share/bash-completion/completions/vmm",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        return complain(
            "completion needs shtab",
            hint="pip install 'nitro-vmm[completion]'",
            code=ExitCode.HOST,
            name=codes.EXTRA,
        )
    print(shtab.complete(arguments.parser, shell=arguments.shell))
    return ExitCode.ENDED
