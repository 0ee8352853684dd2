"""The question that an engine asks for every connection of its guest: which socket is the other end?

And unix sockets of which the engine knows what it would have to ask others.
"""

import socket
from typing import TYPE_CHECKING, Protocol

from nitro_vsock.addresses import SocketType

if TYPE_CHECKING:
    from concurrent.futures import Future


class ConnectedUnixSocket(socket.socket):
    """A unix socket that is connected, so that the engine need not ask it, which would take time."""

    __slots__ = ()


class ListeningStream(socket.socket):
    """A listening unix stream socket whose `accept` need not ask what it is, which would take time.

    `socket.family` and `socket.type` look for a member of an enum whenever they are asked.
    """

    __slots__ = ()

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM


class HostSide(Protocol):
    """What a guest's connections to the host are joined with."""

    def connect(self, port: int, socket_type: SocketType) -> "socket.socket | Future[socket.socket]":
        """The host's end of a connection to ``port``.

        The engine calls this in `VsockEngine.turn`, so it must not block. The engine owns the socket, and
        closes it.

        Returns:
            A non-blocking socket that is connected or connecting, or a future of one. Any thread may complete
            the future, so a task may resolve a name and connect first.

        Raises:
            FileNotFoundError: Nobody cares for this port. A service of the engine may have it, else the guest
                is refused.
            OSError: The guest is refused.
        """
        ...


class RefusingHostSide:
    """The host side of a guest that may connect nowhere."""

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:
        """Refuse.

        Raises:
            FileNotFoundError: Always.
        """
        raise FileNotFoundError(f"no listener for port {port} ({socket_type.name})")
