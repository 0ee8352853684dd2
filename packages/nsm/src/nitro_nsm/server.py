"""A module on a unix socket, so that programs can be tested against one without any machine.

Each request, and each reply, is preceded by its length in bytes (32 bits, big-endian). A connection may carry
any number of them, one at a time; all connections talk to the same module, as all programs of an enclave do.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nitro_nsm.client import FRAME_HEAD
from nitro_nsm.errors import HostError
from nitro_nsm.module import REQUEST_BYTES_MAX, Nsm

CONNECTIONS_MAX = 256  # many more than one enclave's programs; later ones wait until one of these has left


async def serve(nsm: Nsm, path: Path, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until cancelled, then remove the socket; `ready` is called when connections are possible.

    Raises `HostError` if `path` cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    connections: set[socket.socket] = set()

    def accept() -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors; go on when a client has left
            loop.remove_reader(listener)
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

    with _listening(path) as listener:
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
        # One byte more than a request may have is enough to be told so; what follows is no longer in step.
        reply = nsm.handle(await _receive(connection, min(length, REQUEST_BYTES_MAX + 1)))
        await asyncio.get_running_loop().sock_sendall(connection, FRAME_HEAD.pack(len(reply)) + reply)
        if length > REQUEST_BYTES_MAX:
            return


async def _receive(connection: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes. Raises `ConnectionError` if the client leaves before."""
    received = bytearray()
    while len(received) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, count - len(received))
        if not part:
            raise ConnectionError("the client has left")
        received += part
    return bytes(received)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, in place of one that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            if path.is_socket() and _is_dead(path):
                path.unlink()
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
        except OSError as error:
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}; name another --socket"
            ) from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)  # for one that listens and never accepts
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
