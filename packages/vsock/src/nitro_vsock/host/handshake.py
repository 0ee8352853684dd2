"""What a host program says first on the guest's unix socket: ``CONNECT port``, and a newline."""

import socket
from typing import Final

from nitro_vsock.addresses import PORT_MAX, SocketType
from nitro_vsock.errors import VsockError

LINE_BYTES_MAX: Final = 32
"""Longer than any line with a port in it, and what Firecracker allows."""
PORT_DIGITS_MAX: Final = 10
"""As many as the greatest port has."""


class HandshakeError(VsockError):
    """The host program closed its socket, or said something else than ``CONNECT port``."""


def parse_line(line: bytes) -> int:
    """The port that a ``CONNECT`` line asks for.

    Raises:
        HandshakeError: The line is something else.
    """
    words = line.split()
    if len(words) == 2 and words[0].lower() == b"connect":
        number = words[1]
        if number.isdigit() and len(number) <= PORT_DIGITS_MAX and (port := int(number)) <= PORT_MAX:
            return port
    raise HandshakeError(f"{line!r} is not CONNECT and a port up to {PORT_MAX}")


class Handshake:
    """A host program that has connected and has not said yet where to.

    Args:
        sock: Its non-blocking socket.
        socket_type: On SEQPACKET sockets the line is one message.
    """

    def __init__(self, sock: socket.socket, socket_type: SocketType) -> None:
        self.socket = sock
        self.socket_type = socket_type
        self.deadline: float | None = None
        """When to give up, in seconds of the engine's clock; `None` while nobody counts."""
        self.registered = False
        """Whether the engine's epoll waits for more of the line."""
        self.unread = 0
        """Bytes at the end of the line that `read` left in the socket for `take_line`."""
        self._line = b""

    def read(self) -> int | None:
        """The port asked for, once the line is complete; `None` before.

        The end of the line and what follows it stay in the socket, as `take_line` explains.

        Raises:
            HandshakeError: The line will never be right.
        """
        try:
            while True:
                room = LINE_BYTES_MAX - len(self._line)
                seen = self.socket.recv(room, socket.MSG_PEEK)
                if not seen:
                    raise HandshakeError("the host program closed before it said CONNECT and a port")
                end = seen.find(b"\n") + 1
                if end or self.socket_type is SocketType.SEQPACKET:
                    self.unread = end or len(seen)
                    return parse_line(self._line + seen[: self.unread])
                self._line += self.socket.recv(len(seen))
                if len(self._line) == LINE_BYTES_MAX:
                    raise HandshakeError(f"no newline in the first {LINE_BYTES_MAX} bytes")
        except BlockingIOError:
            return None
        except OSError as error:
            raise HandshakeError(f"the host program is gone: {error.strerror}") from error


def take_line(sock: socket.socket, unread: int) -> None:
    """Take the end of the line, ``unread`` bytes, out of the socket.

    Reading wakes the host program, which waits for the answer to its line. So this is done just before the
    answer is given. It is also done before the socket is closed, because the host program would get
    ECONNRESET for what nobody has read.
    """
    try:  # noqa: SIM105 (once for every connection, and `suppress` takes longer than the call)
        sock.recv(unread)
    except OSError:
        pass
