"""Reads the console for what nothing else tells: a panic, how the application ended, and why a boot failed.

Linux gives a machine without a panic device no other sign, and an enclave's init has no other way to say what
went wrong before its heartbeat. A program in the enclave can print the same lines, and so end its own enclave
or misjudge itself, and nobody else.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from nitro_vmm.enclave.causes import Cause, recognise

LINE_BYTES_MAX: Final = 1024

PANIC: Final = re.compile(rb"(?:^|\] )Kernel panic - not syncing: ?(.*)")
PANIC_IS_OVER: Final = re.compile(rb"(?:^|\] )(?:Rebooting in \d+ seconds\.\.|---\[ end Kernel panic)")
APPLICATION: Final = re.compile(
    rb"^(?:init: the application (?:exited with (?P<status>\d{1,3})|was killed by signal (?P<signal>\d{1,2}))"
    rb"|child exited (?P<aws>with error|by signal))$"
)
"""What our init says, and AWS's, which keeps the number to itself."""


def printable(text: str) -> str:
    """Text of a guest's that may stand in a line of ours, on a terminal: without escape sequences."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


class ApplicationEnd(NamedTuple):
    """How the image's program ended, as far as its init said."""

    status: int | None = None
    """What it exited with; `None`: it did not, or its init did not say."""
    signal: int | None = None
    """Which signal killed it; `None`: none did, or its init did not say."""

    def __str__(self) -> str:
        if self.status is not None:
            return f"the application exited with {self.status}"
        if self.signal is not None:
            return f"the application was killed by signal {self.signal}"
        return "the application failed"


class ConsoleWatch:
    """Reads the console's output line by line.

    Args:
        on_line: Called with each line, without its end.
    """

    def __init__(self, on_line: Callable[[bytes], None] = lambda _line: None) -> None:
        self._on_line = on_line
        self.panic: str | None = None
        """The first line of the panic; `None` while there was none."""
        self.application: ApplicationEnd | None = None
        """How the application ended; `None` while its init has not said."""
        self.cause: Cause | None = None
        """The first thing printed that is known to keep enclaves from booting or running."""
        self.printed: bool = False
        """Whether there was any output."""
        self._line = bytearray()

    def feed(self, data: bytes) -> bool:
        """Look at output; true when the kernel has said all it had to say about its panic."""
        self.printed = True
        over = False
        for piece in data.splitlines(keepends=True):
            self._line += piece[: LINE_BYTES_MAX - len(self._line)]
            if piece.endswith(b"\n"):
                over = self._finish_line(bytes(self._line.rstrip())) or over
                self._line.clear()
        return over

    def _finish_line(self, line: bytes) -> bool:
        self._on_line(line)
        if self.cause is None:
            self.cause = recognise(line)
        if match := APPLICATION.match(line):
            self.application = _application(match)
        if self.panic is None:
            if match := PANIC.search(line):
                self.panic = printable(match[1].decode(errors="replace"))
            return False
        return bool(PANIC_IS_OVER.search(line))


def _application(match: re.Match[bytes]) -> ApplicationEnd:
    status, signal = match["status"], match["signal"]
    return ApplicationEnd(
        status=None if status is None else int(status), signal=None if signal is None else int(signal)
    )
