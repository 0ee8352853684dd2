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

CONNECTIONS_MAX = 256  # many more than one enclave's programs; few enough for any limit on open files


async def serve(nsm: Nsm, path: Path, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until cancelled, then remove the socket; `ready` is called when connections are possible.

    Raises `HostError` if `path` cannot be listened on.
    """
    connections: set[asyncio.StreamWriter] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        connections.add(writer)
        try:
            await _converse(nsm, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left, perhaps in the middle of a request
        finally:
            connections.discard(writer)
            writer.close()

    with _listening(path) as listener:
        server = await asyncio.start_unix_server(converse, sock=listener)
        ready()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            for writer in connections:
                writer.close()


async def _converse(nsm: Nsm, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        (length,) = FRAME_HEAD.unpack(await reader.readexactly(FRAME_HEAD.size))
        # One byte more than a request may have is enough to be told so; what follows is no longer in step.
        reply = nsm.handle(await reader.readexactly(min(length, REQUEST_BYTES_MAX + 1)))
        writer.write(FRAME_HEAD.pack(len(reply)) + reply)
        await writer.drain()
        if length > REQUEST_BYTES_MAX:
            return


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, in place of one that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            if path.is_socket() and _is_dead(path):
                path.unlink()
            listener.bind(str(path))
            listener.listen()
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
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
