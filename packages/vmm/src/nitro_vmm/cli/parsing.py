"""Argument parsers that show the command's own usage, and guess what was meant."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import complain
from nitro_vmm.cli.exit_code import ExitCode

# Not compiled, because most command lines are right.
CHOICE = r"invalid choice: '?(.*?)'? \(choose from (.*)\)"
UNKNOWN = r"unrecognized arguments: (\S+)"


class _NarrowFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=80)


class Parser(argparse.ArgumentParser):
    """The same, with hints."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
        """See `argparse.ArgumentParser.add_argument`.

        It tries each argument with a formatter. One that looks at the terminal takes 3 ms to be imported.
        """
        chosen, self.formatter_class = self.formatter_class, _NarrowFormatter
        try:
            return super().add_argument(*names, **options)
        finally:
            self.formatter_class = chosen

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        self.print_usage(sys.stderr)
        complain(message, hint=self._hint(message), code=ExitCode.USAGE, name=codes.COMMAND_LINE)
        self.exit(ExitCode.USAGE)

    def _hint(self, message: str) -> str:
        if match := re.search(CHOICE, message):
            return _closest(match[1], re.findall(r"[\w-]+", match[2])) or f"{self.prog} --help"
        if match := re.search(UNKNOWN, message):
            option = match[1].partition("=")[0]
            return _closest(option, list(self._option_string_actions)) or f"{self.prog} --help"
        return f"{self.prog} --help"


def with_values(argv: Sequence[str]) -> list[str]:
    """The same command line, in which ``--kms`` by itself says that it has no value.

    Otherwise argparse would take the image that follows it for one.
    """
    return ["--kms=" if word == "--kms" else word for word in argv]


def _closest(word: str, known: list[str]) -> str:
    import difflib  # noqa: PLC0415 - only where something is wrong

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""
