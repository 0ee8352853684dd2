"""The standard streams as they can be: closed, full, slow, or with nobody at the other end.

What goes wrong with an output ends nothing but that output, because an enclave that runs must not lose its
supervisor to a reader that went away.
"""

import os
import select
import sys
from typing import Final

STANDARD: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


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
