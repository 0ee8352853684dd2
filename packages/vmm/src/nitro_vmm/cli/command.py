"""What the commands share: names, messages, and the parser's place for them."""

from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.streams import tell

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse gives it no other name

PROGRAM: Final = "vmm"


def complain(message: object, *, hint: str = "", code: ExitCode) -> int:
    """Print an error and what to do about it; returns the code to exit with."""
    tell(f"{PROGRAM}: error: {message}")
    if hint:
        tell(f"  hint: {hint}")
    return code
