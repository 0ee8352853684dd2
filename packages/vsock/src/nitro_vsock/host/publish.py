"""Ports of a guest that the host's programs reach over TCP, a plain unix socket, or the host's own vsock.

A `Publisher` listens, accepts in trio, and hands every connection to the guest's engine::

    with Publisher.open(Published.model_validate(Published.parse("tcp:127.0.0.1:8080=5000"))) as publisher:
        await publisher.serve(engine)
"""

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, Protocol, Self

import trio

from nitro_vsock.addresses import SocketType
from nitro_vsock.errors import HostError
from nitro_vsock.host.endpoints import Endpoint, Published, addresses
from nitro_vsock.host.listening import accept, to_stdlib
from nitro_vsock.host.unix import UnixListener, may_connect

LOGGER = logging.getLogger(__name__)

ADDRESS_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
BACKLOG = 128


class Guest(Protocol):
    """What publishing needs of a guest: `VsockEngine` has it."""

    def adopt(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType = SocketType.STREAM,
        *,
        on_result: Callable[[bool], None] | None = None,
    ) -> None:
        """Join a connected socket with the guest's port; see `VsockEngine.adopt`."""


class Publisher:
    """Listeners of the host that lead to one port of a guest.

    Args:
        listeners: Non-blocking listening sockets, owned from now on.
        port: The guest's port.
        name: What logs and statistics call it.
        users: Users whose programs may connect, for unix sockets; `None`: everybody who can reach the
            listener.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        port: int,
        *,
        name: str,
        users: frozenset[int] | None = None,
    ) -> None:
        self.name = name
        self.connections = 0
        """Connections so far that the guest accepted."""
        self.refused = 0
        """Connections so far that the guest, or our limits, refused."""
        self._listeners = list(listeners)
        self._port = port
        self._users = users
        self._closing = ExitStack()
        for listener in self._listeners:
            self._closing.callback(listener.close)

    @classmethod
    def open(cls, published: Published, *, users: frozenset[int] = frozenset()) -> Self:
        """Listen where ``published`` says.

        Args:
            published: Where, and for which port of the guest.
            users: Users whose programs may connect if that is a unix socket, see `allowed_users`.

        Raises:
            HostError: One of its listeners cannot be made.
        """
        where = published.listen
        if isinstance(where, Path):
            listener = UnixListener(where, users=users)
            publisher = cls([listener.socket], published.port, name=f"publish unix:{where}", users=users)
            publisher._closing.callback(listener.close)
            return publisher
        return cls(_listen_tcp(where), published.port, name=f"publish tcp:{where}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and remove the socket's file if there is one. Connections go on."""
        self._closing.close()

    async def serve(self, guest: Guest) -> NoReturn:
        """Join whoever connects with the guest, until cancelled.

        Raises:
            OSError: A listener cannot accept any more.
        """
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._serve_one, trio.socket.from_stdlib_socket(listener), guest)
            await trio.sleep_forever()
        raise AssertionError  # a nursery that nobody cancels does not end

    async def _serve_one(self, listener: trio.socket.SocketType, guest: Guest) -> None:
        while True:
            sock = to_stdlib(await accept(listener))
            if self._users is not None and not may_connect(sock, self._users):
                LOGGER.warning("a program of another user was refused", extra={"at": self.name})
                self.refused += 1
                sock.close()
                continue
            if sock.family in {socket.AF_INET, socket.AF_INET6}:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            guest.adopt(sock, self._port, on_result=self._count)

    def _count(self, accepted: bool) -> None:  # noqa: FBT001 (a callback)
        # The engine's thread is the only one that calls this, so the counts need no lock.
        if accepted:
            self.connections += 1
        else:
            self.refused += 1


def _listen_tcp(where: Endpoint) -> list[socket.socket]:
    """A listener at each address of ``where``; ``*`` is every address of the host.

    Raises:
        HostError: The name is unknown, or an address is in use or forbidden.
    """
    refused: OSError | None = None
    with ExitStack() as undo:
        servers: list[socket.socket] = []
        for family, address in addresses(where):
            try:
                server = socket.create_server(address, family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno not in ADDRESS_ABSENT:
                    raise HostError(f"cannot publish at {where}: {error.strerror}") from error
                refused = error  # a name may have an address of a family that this host lacks
                continue
            server.setblocking(False)
            servers.append(undo.enter_context(server))
        if not servers:
            raise HostError(f"cannot publish at {where}: {refused.strerror if refused else 'no address'}")
        undo.pop_all()
        return servers
