"""What goes to a terminal: names of files may have escape sequences in them, which it would obey."""

import argparse
from typing import Any


def shown(text: str) -> str:
    """Text with all that cannot be printed escaped, but for ends of lines and tabs."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


class Parser(argparse.ArgumentParser):
    """A parser whose messages are `shown`."""

    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ANN401 - as argparse's own
        super()._print_message(shown(message), file)
