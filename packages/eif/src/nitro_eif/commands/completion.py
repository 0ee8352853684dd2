"""``eif completion``: a completion script for a shell."""

import argparse

from nitro_eif.errors import HostError

EXAMPLES = ("source <(eif completion bash)    # in ~/.bashrc",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("completion needs shtab", hint="pip install 'nitro-eif[completion]'") from None
    print(shtab.complete(options.make_parser(whole=True), shell=options.shell))
    return 0
