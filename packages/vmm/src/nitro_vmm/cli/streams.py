"""The standard streams as they can be: closed, full, slow, or with nobody at the other end.

What goes wrong with an output ends nothing but that output, because an enclave that runs must not lose its
supervisor to a reader that went away.
"""

import logging
import os
import select
import sys
from typing import Final

STANDARD: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

LINES_MAX: Final = 10
"""How many messages of one kind are shown within `PERIOD_S`. A guest can cause some of them, as often as it
likes."""
PERIOD_S: Final = 60.0


def open_closed_streams() -> None:
    """Put /dev/null where the caller has closed a standard stream.

    Otherwise the next file that is opened gets its number, and what is printed goes into it.
    """
    for fd, (name, mode) in enumerate(STANDARD):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - a descriptor, for good


def give_up(stream_fd: int) -> None:
    """Let nothing come of a stream from now on, so that Python does not fail on it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream_fd)
    os.close(null)


def tell(line: str) -> None:
    """Print a line on standard error, if there is room for it at once."""
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, ValueError):  # a test's, or a notebook's
        print(line, file=sys.stderr)
        return
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except BlockingIOError:
        pass
    except OSError:
        give_up(fd)


class Told(logging.Handler):
    """Tells log records to the user, and not more than `LINES_MAX` of a kind in a while.

    A kind is a place in the source, because messages have the guest's numbers in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began_s: dict[tuple[str, int], float] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        kind = (record.pathname, record.lineno)
        if record.created - self._began_s.get(kind, 0.0) >= PERIOD_S:
            self._began_s[kind] = record.created
            self._counts[kind] = 0
        self._counts[kind] += 1
        if self._counts[kind] <= LINES_MAX:
            tell(self.format(record))
        if self._counts[kind] == LINES_MAX:
            tell(f"{record.name}: more such messages are not shown for {PERIOD_S:g} s")
