"""Unix sockets: where a guest's connections go, and which users may connect to one that listens."""

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.errors import HostError
from nitro_vsock.host.sides import ConnectedUnixSocket

UNIX_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of ``sockaddr_un`` is 108 bytes with the terminating zero (unix(7))."""

PORT_SUFFIX_BYTES_MAX: Final = len("_4294967295")
SEQPACKET_SUFFIX: Final = ".seqpacket"
BACKLOG: Final = 128

UCRED: Final = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)

UNIX_TYPES: Final = {
    SocketType.STREAM: socket.SOCK_STREAM,
    SocketType.SEQPACKET: socket.SOCK_SEQPACKET,
}


class UnixHostSide:
    """A `HostSide` that joins a guest's connection to port P with the unix socket ``PREFIX_P``.

    The guest chooses whether it wants a stream or messages. The listener at ``PREFIX_P`` has to be of the
    same type (SOCK_STREAM or SOCK_SEQPACKET); if it is not, the guest is refused.

    Args:
        prefix: The path before ``_P``.

    Raises:
        HostError: With the longest port appended, the path would be too long.
    """

    def __init__(self, prefix: Path) -> None:
        self._prefix = os.fspath(prefix)
        _check_length(self._prefix, PORT_SUFFIX_BYTES_MAX)

    def connect(self, port: int, socket_type: SocketType) -> ConnectedUnixSocket:
        """A socket that is connected to ``PREFIX_port``; see `HostSide.connect`.

        A full backlog refuses the guest, because waiting would stop all other connections.
        """
        sock = ConnectedUnixSocket(socket.AF_UNIX, UNIX_TYPES[socket_type] | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"{self._prefix}_{port}")
        except OSError:
            sock.close()
            raise
        return sock


class UnixListener:
    """A listening unix socket whose file is removed when it is closed.

    Args:
        path: Where to listen. The file of a listener that is gone is replaced, that of a live one is not.
        socket_type: Streams or messages.
        users: Users whose programs may connect, see `allowed_users`. The file's mode keeps the others out if
            we are the only one; whoever accepts has to ask `may_connect` in any case.
        socket_class: What the socket is, such as a `ListeningStream`.

    Raises:
        HostError: The path is too long, in use, not a socket, or cannot be created.
    """

    def __init__(
        self,
        path: Path,
        socket_type: SocketType = SocketType.STREAM,
        *,
        users: Iterable[int] = (),
        socket_class: type[socket.socket] = socket.socket,
    ) -> None:
        self.path: Path = path
        self.socket_type: SocketType = socket_type
        self._inode: tuple[int, int] | None = None
        _check_length(os.fspath(path), 0)
        remove_stale(path, UNIX_TYPES[socket_type])
        kind = UNIX_TYPES[socket_type] | socket.SOCK_NONBLOCK
        self.socket: socket.socket = socket_class(socket.AF_UNIX, kind)
        try:
            os.fchmod(self.socket.fileno(), 0o600)  # on Linux, the mode of the file that bind makes
            self.socket.bind(os.fspath(path))
            self._inode = _inode(path)
            if set(users) - allowed_users(()):
                _open_to_all(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.close()
            raise HostError(f"cannot listen on {path}: {error.strerror}") from error

    def close(self) -> None:
        """Stop listening, and remove the file unless another program's is there now."""
        self.socket.close()
        with suppress(OSError):
            if _inode(self.path) == self._inode:
                self.path.unlink()


def peer_uid(sock: socket.socket) -> int:
    """The user of the program at the other end of a unix socket."""
    uid: int = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[1]
    return uid


def allowed_users(more: Iterable[int]) -> frozenset[int]:
    """The users whose programs may connect: root, the one that we run as now, and ``more``."""
    return frozenset({0, os.geteuid(), *more})


def may_connect(sock: socket.socket, users: frozenset[int]) -> bool:
    """Whether the program at the other end of ``sock`` belongs to one of ``users``."""
    return peer_uid(sock) in users


def _check_length(path: str, suffix_bytes: int) -> None:
    length = len(os.fsencode(path)) + suffix_bytes
    if length > UNIX_PATH_BYTES_MAX:
        with_port = " with a port appended" if suffix_bytes else ""
        raise HostError(
            f"socket path {path}{with_port} has {length} bytes, unix sockets allow {UNIX_PATH_BYTES_MAX}",
            hint="choose a shorter one",
        )


def _open_to_all(path: Path) -> None:
    """Let everybody connect to the socket at ``path``.

    The mode is changed through a descriptor, because another program could replace the file between our look
    at it and the change.
    """
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


def remove_stale(path: Path, unix_type: int = socket.SOCK_STREAM) -> None:
    """Remove the file at ``path`` if it belongs to a listening socket that is gone.

    Raises:
        HostError: A program listens there, or the file is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # there is no file; or bind will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} exists and is not a socket", hint="remove it or choose another path")
    with socket.socket(socket.AF_UNIX, unix_type | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass  # a full backlog or another type of socket, so a program is there
    raise HostError(f"{path} is in use by another program", hint="stop it or choose another path")
