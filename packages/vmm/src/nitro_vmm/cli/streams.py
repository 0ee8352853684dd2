"""The standard streams as they can be: closed, full, slow, or with nobody at the other end.

What goes wrong with an output ends nothing but that output, because an enclave that runs must not lose its
supervisor to a reader that went away.
"""

import os
import select
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    os.close(stream_fd)  # first, because there may be no room for another descriptor
    null = os.open(os.devnull, os.O_WRONLY)
    if null != stream_fd:
        os.dup2(null, stream_fd)
        os.close(null)


_as_json = False


def log_as_json() -> None:
    """Let `report` print JSON from now on, in the shape of ``vhost-user-vsock --log-format json``."""
    global _as_json  # noqa: PLW0603 - standard error is one for the process, and so is its format
    _as_json = True


def logs_json() -> bool:
    """Whether `log_as_json` was called."""
    return _as_json


def report(message: str, *, level: str = "info", fields: "Mapping[str, object] | None" = None) -> None:
    """Tell something on standard error: as text, or as one object of JSON with time, level and message.

    Args:
        message: As people read it.
        level: ``info``, ``warning`` or ``error``, which text does not show.
        fields: More for programs; text does not show them.
    """
    if not _as_json:
        tell(message)
        return
    import json  # noqa: PLC0415 - text does not need it
    import time  # noqa: PLC0415

    now_s = time.time()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
    entry = {
        "time": f"{moment}.{int(now_s % 1 * 1000):03}Z",
        "level": level,
        "message": message,
        **(fields or {}),
    }
    tell(json.dumps(entry, default=str))


def shown(text: str) -> str:
    """Text as it may go to a terminal: file names and what guests say may have escape sequences in them."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def tell(line: str) -> None:
    """Print a line on standard error, as `shown`, if there is room for it at once."""
    line = shown(line)
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
