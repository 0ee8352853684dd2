"""The console of an enclave in the background: a file, and one more of what was before."""

import os
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 4 << 20
"""How long the file may become before it is put aside; so there is at most twice as much, whatever the guest
prints."""


class LogFile:
    """Takes what a guest prints; a `ConsoleSink`. An error of the disk loses output, and nothing else.

    Args:
        path: Where. What is put aside gets ``.1`` appended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._fd = self._open()

    def write(self, data: bytes) -> None:
        """See `ConsoleSink.write`."""
        if self._size + len(data) > LOG_BYTES_MAX:
            self._put_aside()
        try:
            self._size += os.write(self._fd, data)
        except OSError:  # full, or removed
            return

    def abandon(self) -> None:
        """See `ConsoleSink.abandon`: a file holds nobody up."""

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _put_aside(self) -> None:
        self.close()
        self._size = 0
        try:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._fd = self._open()
        except OSError:
            return

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def read_log(path: Path) -> bytes:
    """All that is kept of a console."""
    pieces = []
    for file in (path.with_name(path.name + ".1"), path):
        try:
            pieces.append(file.read_bytes())
        except OSError:  # there is none, or it was put aside just now
            continue
    return b"".join(pieces)
