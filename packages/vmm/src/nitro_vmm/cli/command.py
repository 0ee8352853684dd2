"""What the commands share: names, messages, and the parser's place for them."""

import sys
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.exit_code import ExitCode

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse gives it no other name

PROGRAM: Final = "vmm"


def complain(message: object, *, hint: str = "", code: ExitCode) -> int:
    """Print an error and what to do about it; returns the code to exit with."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    return code
