"""What a host program says first on the unix socket: ``CONNECT port``, and a newline."""

import re
import socket
from typing import Final

from nitro_vsock.errors import VsockError
from nitro_vsock.packet import SocketType

LINE_BYTES_MAX: Final = 32
PORT_MAX: Final = 0xFFFF_FFFE
"""The next one means any port (vsock(7), VMADDR_PORT_ANY)."""
LINE: Final = re.compile(rb"\s*connect\s+(\d{1,10})\s*", re.IGNORECASE)


class HandshakeError(VsockError):
    """The host program closed, or did not say ``CONNECT port``."""


def parse_line(line: bytes) -> int:
    """The port that a ``CONNECT`` line asks for.

    Raises:
        HandshakeError: It is something else.
    """
    match = LINE.fullmatch(line)
    if match is None or int(match[1]) > PORT_MAX:
        raise HandshakeError(f"{line!r} is not CONNECT and a port up to {PORT_MAX}")
    return int(match[1])


class Handshake:
    """A host program that has connected and not said yet where to.

    Args:
        sock: Its non-blocking socket.
        socket_type: On SEQPACKET the line is one message.
        deadline: When to give up, by the engine's clock.
    """

    def __init__(self, sock: socket.socket, socket_type: SocketType, deadline: float) -> None:
        self.socket, self.socket_type, self.deadline = sock, socket_type, deadline
        self.registered = False
        """Whether the engine waits for more."""
        self.unread = 0
        """Bytes at the end of the line that `read` left for `take_line`."""
        self._line = b""

    def read(self) -> int | None:
        """The port asked for, once the line is complete.

        The end of the line and what follows stay in the socket: see `take_line`.

        Raises:
            HandshakeError: That will never be.
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
    """Take the end of the line out of the socket.

    That wakes the host program, which waits for the answer, so it is done just before that is given,
    or before the socket is closed: for what is unread, the host program would get ECONNRESET.
    """
    try:  # noqa: SIM105 (for every connection: `suppress` takes longer than the call)
        sock.recv(unread)
    except OSError:
        pass
