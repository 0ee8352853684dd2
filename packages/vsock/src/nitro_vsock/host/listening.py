"""Accepting connections in trio for ever, whatever the host runs out of meanwhile."""

import errno
import logging
import socket

import trio

LOGGER = logging.getLogger(__name__)

NO_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
"""Errors of accept(2) that will not go away. The others concern one connection, or pass."""

ACCEPT_RETRY_S = 1.0
"""How long not to accept after the host ran out of something, such as descriptors."""


async def accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """The next connection, however long it takes the host to have a descriptor for it.

    Raises:
        OSError: This is not a listener, or not any more.
    """
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            if error.errno in NO_LISTENER:
                raise
            if error.errno == errno.ECONNABORTED:
                continue
            LOGGER.error("cannot accept", extra={"why": error.strerror})  # noqa: TRY400 (a traceback tells no more)
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            return connection


def to_stdlib(connection: trio.socket.SocketType) -> socket.socket:
    """The non-blocking socket of the standard library behind a trio socket, which is of no use any more."""
    found = socket.socket(fileno=connection.detach())
    found.setblocking(False)
    return found
