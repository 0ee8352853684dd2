"""The enclave's console on its way to a file descriptor."""

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

BUFFER_BYTES_MAX: Final = 256 << 10
BATCH_S: Final = 0.005
ABANDONED_S: Final = 0.5
"""How long the last output may take to be written when the machine was told to end."""


class ConsoleWriter:
    """Writes to a file descriptor in a thread of its own, so that a slow reader stops nobody but the guest.

    Nothing is lost: a guest that prints faster than the reader reads waits, until `abandon`.

    Args:
        fd: Where it goes.
        clean: Applied to all output, in order, such as `EscapeFilter.feed`.
        held: Write nothing before `release`. Without that, `close` drops everything.
    """

    def __init__(self, fd: int, *, clean: Callable[[bytes], bytes] = bytes, held: bool = False) -> None:
        self._fd = fd
        self._clean = clean
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._held = held
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Take what the guest prints; waits while the buffer is full."""
        with self._changed:
            while len(self._buffer) > BUFFER_BYTES_MAX and not self._abandoned:
                self._changed.wait()
            if not self._buffer:  # asked after the wait, in which the thread may have emptied it
                self._changed.notify_all()
            self._buffer += data

    def release(self) -> None:
        """Write what was held, and all that follows."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

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
                while self._held or not self._buffer:
                    if self._closing:
                        return
                    self._changed.wait()
            if not self._closing:
                time.sleep(BATCH_S)
            with self._changed:
                printed, self._buffer = bytes(self._buffer), bytearray()
                self._changed.notify_all()
            data = bytearray(self._clean(printed))
            try:
                while data:
                    try:
                        del data[: os.write(self._fd, data)]
                    except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                        select.select([], [self._fd], [])
            except OSError:  # nobody reads any more
                self._fd = os.open(os.devnull, os.O_WRONLY)
