"""A module on a unix socket, so that programs can be tested against one without any machine.

Each request, and each reply, is preceded by its length in bytes (32 bits, big-endian). A connection may carry
any number of them, one at a time. All connections talk to the same module, as all programs of an enclave do.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from nitro_nsm.client import FRAME_HEAD
from nitro_nsm.module import REQUEST_BYTES_MAX, Nsm
from nitro_nsm.unix_socket import allowed_users, listening, may_connect

CONNECTIONS_MAX = 256
"""Many more than one enclave's programs have; later ones wait until one of these has left."""


async def serve(
    nsm: Nsm, path: Path, *, ready: Callable[[], None] = lambda: None, users: Iterable[int] = ()
) -> None:
    """Serve until cancelled, then remove the socket.

    Args:
        nsm: The module.
        path: The socket's path.
        ready: Called when connections are possible.
        users: Who may connect besides root and the user that we run as. Others are disconnected.

    Raises:
        HostError: `path` cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    connections: set[socket.socket] = set()
    allowed = allowed_users(users)

    def accept() -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors. The listener would be ready again at once, so stop looking at it until a
            # client has left.
            loop.remove_reader(listener)
            return
        if not may_connect(connection, allowed):
            connection.close()
            return
        connection.setblocking(False)
        connections.add(connection)
        conversations.create_task(converse(connection))
        if len(connections) == CONNECTIONS_MAX:
            loop.remove_reader(listener)

    async def converse(connection: socket.socket) -> None:
        try:
            await _converse(nsm, connection)
        except ConnectionError:
            pass  # the client has left, perhaps in the middle of a request
        finally:
            connections.discard(connection)
            connection.close()
            loop.add_reader(listener, accept)

    with listening(path, users=users) as listener:
        try:
            async with asyncio.TaskGroup() as conversations:
                loop.add_reader(listener, accept)
                ready()
                await loop.create_future()  # nothing but being cancelled ends this
        finally:
            loop.remove_reader(listener)
            for connection in connections:  # those whose task was cancelled before it began
                connection.close()


async def _converse(nsm: Nsm, connection: socket.socket) -> None:
    while True:
        (length,) = FRAME_HEAD.unpack(await _receive(connection, FRAME_HEAD.size))
        # One byte more than a request may have is enough for the module to refuse it. The rest of it is
        # never read, so the next frame's start is unknown and the connection ends.
        reply = nsm.handle(await _receive(connection, min(length, REQUEST_BYTES_MAX + 1)))
        await asyncio.get_running_loop().sock_sendall(connection, FRAME_HEAD.pack(len(reply)) + reply)
        if length > REQUEST_BYTES_MAX:
            return


async def _receive(connection: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes.

    Raises:
        ConnectionError: The client left before.
    """
    received = bytearray()
    while len(received) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, count - len(received))
        if not part:
            raise ConnectionError("the client has left")
        received += part
    return bytes(received)
