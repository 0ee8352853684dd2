"""Finds a kernel panic in what the console prints.

Linux gives a machine without a panic device no other sign; a program in the enclave that prints the same two
lines ends its own enclave.
"""

import re
from typing import Final

LINE_BYTES_MAX: Final = 1024

PANIC: Final = re.compile(rb"(?:^|\] )Kernel panic - not syncing: ?(.*)")
PANIC_IS_OVER: Final = re.compile(rb"(?:^|\] )(?:Rebooting in \d+ seconds\.\.|---\[ end Kernel panic)")


def printable(text: str) -> str:
    """Text of a guest's that may stand in a line of ours, on a terminal: without escape sequences."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


class PanicWatch:
    """Reads the console's output line by line."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """The first line of the panic; `None` while there was none."""
        self._line = bytearray()

    def feed(self, data: bytes) -> bool:
        """Look at output; true when the kernel has said all it had to say about its panic."""
        over = False
        for piece in data.splitlines(keepends=True):
            self._line += piece[: LINE_BYTES_MAX - len(self._line)]
            if piece.endswith(b"\n"):
                over = self._finish_line(bytes(self._line.rstrip())) or over
                self._line.clear()
        return over

    def _finish_line(self, line: bytes) -> bool:
        if self.reason is None:
            if match := PANIC.search(line):
                self.reason = printable(match[1].decode(errors="replace"))
            return False
        return bool(PANIC_IS_OVER.search(line))
