"""Standard input as the enclave's console, and the terminal's settings meanwhile."""

import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager


def stdin_fd() -> int:
    """Standard input's descriptor; -1 if it is closed, or no file as in a notebook."""
    try:
        return -1 if sys.stdin is None else sys.stdin.fileno()
    except ValueError:  # UnsupportedOperation is one
        return -1


def pollable(fd: int) -> bool:
    """Whether the descriptor can be waited for; files and /dev/null are always ready."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True


def may_read(fd: int) -> bool:
    """Whether reading would not stop this process as a background job.

    A terminal that is not the controlling one (after setsid, in containers, under systemd) stops nobody.
    """
    if not os.isatty(fd):
        return True
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


@contextmanager
def terminal_without_echo() -> Iterator[None]:
    """Leave echo and line editing to the guest while a terminal is its console; Ctrl-C stays ours."""
    fd = stdin_fd()
    if fd < 0 or not os.isatty(fd) or not may_read(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
