"""Listening unix sockets that only some users may connect to."""

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nitro_nsm.errors import HostError

UCRED = struct.Struct("3i")
"""Process, user and group of a peer (unix(7), SO_PEERCRED)."""


def allowed_users(more: Iterable[int]) -> frozenset[int]:
    """The users whose programs may connect: root, the one that we run as now, and `more`."""
    return frozenset({0, os.geteuid(), *more})


def peer_user(connection: socket.socket) -> int:
    """The user of the program at the other end of a connection."""
    user: int = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[1]
    return user


def may_connect(connection: socket.socket, users: frozenset[int]) -> bool:
    """Whether the program at the other end of a connection belongs to one of `users`."""
    return peer_user(connection) in users


@contextmanager
def listening(path: Path, *, users: Iterable[int] = ()) -> Iterator[socket.socket]:
    """A non-blocking listening socket, whose file goes away when the block ends.

    The file lets only its owner connect, unless `users` names others: then everybody can, because a file
    mode cannot name users. So whoever accepts a connection asks `may_connect`, too.

    Args:
        path: Where. The file of a listener that is gone is replaced, one that is alive is not.
        users: Who may connect besides root and the user that we run as.

    Raises:
        HostError: The path is too long, in use, not a socket, or cannot be created.
    """
    made: tuple[int, int] | None = None
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            if path.is_socket() and _is_dead(path):
                path.unlink()
            os.fchmod(listener.fileno(), 0o600)  # on Linux this is the mode of the file that bind makes
            listener.bind(str(path))
            made = _inode(path)
            if set(users) - allowed_users(()):
                _open_to_all(path)
            listener.listen()
            listener.setblocking(False)
        except OSError as error:
            _remove(path, made)
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}", hint="choose another path"
            ) from error
        try:
            yield listener
        finally:
            _remove(path, made)


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)  # for a program that listens and never accepts
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _open_to_all(path: Path) -> None:
    """Let everybody connect to the socket at `path`, but not to what somebody puts in its place meanwhile."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        Path(f"/proc/self/fd/{descriptor}").chmod(0o666)
    finally:
        os.close(descriptor)


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove(path: Path, made: tuple[int, int] | None) -> None:
    """Remove our socket's file, unless somebody else's is there now."""
    with suppress(OSError):
        if made is not None and _inode(path) == made:
            path.unlink()
