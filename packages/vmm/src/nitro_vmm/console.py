"""The enclave's console on its way to a file descriptor, and what can be read off it."""

import os
import re
import select
import threading
import time
from typing import Final

BUFFER_BYTES_MAX: Final = 256 << 10
BATCH_S: Final = 0.005
ABANDONED_S: Final = 0.5
"""How long the last output may take to be written when the machine was told to end."""
LINE_BYTES_MAX: Final = 1024

PANIC: Final = re.compile(rb"(?:^|\] )Kernel panic - not syncing: ?(.*)")
PANIC_IS_OVER: Final = re.compile(rb"(?:^|\] )(?:Rebooting in \d+ seconds\.\.|---\[ end Kernel panic)")


class ConsoleWriter:
    """Writes to a file descriptor in a thread of its own, so that a slow reader stops nobody but the guest.

    Nothing is lost: a guest that prints faster than the reader reads waits, until `abandon`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Take what the guest prints; waits while the buffer is full."""
        with self._changed:
            if not self._buffer:
                self._changed.notify_all()
            while len(self._buffer) > BUFFER_BYTES_MAX and not self._abandoned:
                self._changed.wait()
            self._buffer += data

    def abandon(self) -> None:
        """Never wait for the reader again: the machine is to end."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left, however long the reader takes; after `abandon`, only what it takes at once."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(ABANDONED_S if self._abandoned else None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._buffer:
                    if self._closing:
                        return
                    self._changed.wait()
            if not self._closing:
                time.sleep(BATCH_S)
            with self._changed:
                data, self._buffer = self._buffer, bytearray()
                self._changed.notify_all()
            try:
                while data:
                    try:
                        del data[: os.write(self._fd, data)]
                    except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                        select.select([], [self._fd], [])
            except OSError:  # nobody reads any more
                self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class PanicWatch:
    """Finds a kernel panic in what the console prints.

    Linux gives a machine without a panic device no other sign; a program in the enclave that prints the same
    two lines ends its own enclave.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """The panic's first line."""
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
                self.reason = match[1].decode(errors="replace")
            return False
        return bool(PANIC_IS_OVER.search(line))
