"""``eif completion``: a completion script for a shell."""

import argparse

from nitro_eif.cli import parser
from nitro_eif.errors import HostError


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("completion needs shtab: pip install 'nitro-eif[completion]'") from None
    print(shtab.complete(parser(), shell=options.shell))
    return 0
