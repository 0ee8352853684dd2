"""What ties this process to others: its parent, and a service manager."""

import os
import signal
import socket
from contextlib import suppress
from typing import Final

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""


def die_with_parent() -> None:
    """End in order, as by SIGTERM, when the program that started this one ends, however it does."""
    import ctypes  # noqa: PLC0415 - other commands need not wait for it

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGTERM)


def notify(state: str) -> None:
    """Tell systemd, if it started this process and wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
