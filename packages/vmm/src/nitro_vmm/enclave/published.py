"""Ports of the enclave that this machine's programs reach over TCP or unix sockets."""

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from nitro_vmm.config import Endpoint, Published
from nitro_vmm.errors import HostError
from nitro_vsock import UnixListener, VsockEngine

logger = logging.getLogger(__name__)

BACKLOG: Final = 128
OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
RETRY_S: Final = 0.1


class PublishedPorts:
    """Listens for the enclave; its connections are handed to the vsock device, which moves their bytes.

    Args:
        published: What is published.
        resources: Gets the sockets, which are closed when the enclave has ended.
        say: Told where each port is, for people.

    Raises:
        HostError: An address is in use, or not of this machine.
        VsockError: A unix socket cannot be made.
    """

    def __init__(
        self, published: Sequence[Published], resources: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._listeners: list[tuple[socket.socket, int]] = []
        self.endpoints: list[tuple[Endpoint | Path, int]] = []
        """Where each port is, with the enclave's port; a TCP port that was 0 is the one that was free."""
        for one in published:
            if isinstance(one.listen, Path):
                unix = UnixListener(one.listen)
                resources.callback(unix.close)
                self._listeners.append((unix.socket, one.port))
                self.endpoints.append((one.listen, one.port))
            else:
                tcp = listen_at(one.listen, "publish", hint="give another --publish; port 0 is a free one")
                resources.callback(tcp.close)
                self._listeners.append((tcp, one.port))
                self.endpoints.append((Endpoint(host=one.listen.host, port=tcp.getsockname()[1]), one.port))
            say(f"port {one.port} is published at {self.endpoints[-1][0]}")

    def start(self, nursery: trio.Nursery, engine: VsockEngine) -> None:
        """Accept connections until the nursery is cancelled."""
        for listener, port in self._listeners:
            nursery.start_soon(_carry, listener, port, engine)


def listen_at(endpoint: Endpoint, purpose: str, *, hint: str) -> socket.socket:
    """A listening socket, which does not block.

    Args:
        endpoint: Where; port 0 is a free one.
        purpose: What for, for people: "publish".
        hint: What to do if it cannot be.

    Raises:
        HostError: The address is in use, or not of this machine.
    """
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise HostError(f"cannot {purpose} at {endpoint}: {error.strerror}", hint=hint, code="M23") from error
    listener.setblocking(False)
    return listener


async def _carry(listener: socket.socket, port: int, engine: VsockEngine) -> None:
    accepting = trio.socket.from_stdlib_socket(listener)
    while True:
        try:
            connection, _ = await accepting.accept()
        except ConnectionAbortedError:
            continue
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            await trio.sleep(RETRY_S)
            continue
        sock = socket.socket(fileno=connection.detach())
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        engine.adopt(sock, port)
