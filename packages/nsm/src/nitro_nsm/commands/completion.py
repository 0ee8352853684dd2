"""``nsm completion``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse

SUMMARY = "print a completion script for a shell (needs the extra: pip install 'nitro-nsm[completion]')"
EXAMPLES = ("nsm completion bash > ~/.local/share/bash-completion/completions/nsm",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the shell."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    from nitro_nsm.errors import HostError

    try:
        import shtab
    except ModuleNotFoundError:
        raise HostError("completion needs shtab", hint="pip install 'nitro-nsm[completion]'") from None
    print(shtab.complete(options.parser, options.shell))
    return 0
