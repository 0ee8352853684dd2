"""``nsm completion``."""

import argparse

from nitro_nsm.cli import parser
from nitro_nsm.errors import HostError


def run(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise HostError("completion needs shtab: pip install 'nitro-nsm[completion]'") from None
    print(shtab.complete(parser(), options.shell))
    return 0
