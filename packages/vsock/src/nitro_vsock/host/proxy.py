"""Let a guest reach chosen TCP endpoints: what AWS's vsock-proxy does, for many ports in one process.

The guest connects to a port of the host and never learns or chooses an address, because the configuration
says which endpoint a port stands for. The engine joins the guest's connection with the TCP socket itself, so
half-closes and refusals pass through.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import trio

from nitro_vsock.addresses import SocketType
from nitro_vsock.host.endpoints import Destination, Endpoint, Proxied
from nitro_vsock.host.sides import HostSide

LOGGER = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
"""How long a TCP endpoint may take to accept, all its addresses together."""
CONNECTING_MAX = 64
"""TCP connections on their way at a time, all ports together; a guest's next one is refused."""


@dataclass(slots=True)
class Route:
    """Where a port leads, and what became of its connections so far."""

    target: Destination
    connections: int = 0
    refused: int = 0


class ProxyHostSide:
    """A `HostSide` with TCP endpoints at some ports, and another host side at the others.

    Make it in a trio task. The engine may then ask from any thread.

    Args:
        proxied: The ports and their endpoints.
        others: The host side of all other ports.
        nursery: Where connections are made.
    """

    def __init__(self, proxied: Iterable[Proxied], others: HostSide, nursery: trio.Nursery) -> None:
        self.routes: dict[int, Route] = {}
        """Where each port leads. Read only; see `replace`."""
        self._others = others
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._connecting = 0
        self.replace(proxied)

    def replace(self, proxied: Iterable[Proxied]) -> None:
        """Lead to these endpoints from now on. Connections that are there, or on their way, go on.

        A port that leads where it did before keeps its counts.
        """
        routes: dict[int, Route] = {}
        for each in proxied:
            known = self.routes.get(each.port)
            routes[each.port] = known if known and known.target == each.target else Route(each.target)
        self.routes = routes  # in one step, because the engine's thread reads it at any time

    def connect(self, port: int, socket_type: SocketType) -> socket.socket | Future[socket.socket]:
        """A future of a TCP connection, or what the other host side says; see `HostSide.connect`."""
        route = self.routes.get(port)
        if route is None:
            return self._others.connect(port, socket_type)
        future: Future[socket.socket] = Future()
        if socket_type is not SocketType.STREAM:
            raise ConnectionRefusedError("TCP has no messages")
        try:
            self._token.run_sync_soon(self._begin, route, future)
        except trio.RunFinishedError:
            raise ConnectionRefusedError("the proxy has ended") from None
        return future

    def _begin(self, route: Route, future: "Future[socket.socket]") -> None:
        if self._connecting >= CONNECTING_MAX:
            route.refused += 1
            _complete(future, ConnectionRefusedError("too many connections on their way"))
            return
        try:
            self._nursery.start_soon(self._connect, route, future)
        except RuntimeError:  # the nursery has ended before the engine did
            _complete(future, ConnectionRefusedError("the proxy has ended"))
        else:
            self._connecting += 1

    async def _connect(self, route: Route, future: "Future[socket.socket]") -> None:
        try:
            stream = await dial(route.target)
        except OSError as error:
            route.refused += 1
            LOGGER.warning("proxy cannot connect", extra={"target": str(route.target), "why": str(error)})
            _complete(future, error)
            return
        finally:
            self._connecting -= 1
        route.connections += 1
        connection = socket.socket(fileno=stream.socket.detach())
        connection.setblocking(False)
        _complete(future, connection)


async def dial(target: Endpoint, family: socket.AddressFamily = socket.AF_UNSPEC) -> trio.SocketStream:
    """Connect to a TCP endpoint, within `CONNECT_TIMEOUT_S`.

    Args:
        target: Where.
        family: The only kind of address to try; by default all.

    Raises:
        ConnectionRefusedError: No address accepts; the message says what happened at each.
    """
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await _open(target, family)
    except (OSError, trio.TooSlowError) as error:
        raise ConnectionRefusedError(_why(error)) from error
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


async def _open(target: Endpoint, family: socket.AddressFamily) -> trio.SocketStream:
    if family == socket.AF_UNSPEC:
        return await trio.open_tcp_stream(target.host, target.port)
    found = await trio.socket.getaddrinfo(target.host, target.port, family, socket.SOCK_STREAM)
    for index, (_, _, _, _, address) in enumerate(found):
        try:
            return await trio.open_tcp_stream(str(address[0]), target.port)
        except OSError:
            if index == len(found) - 1:
                raise
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _why(error: BaseException) -> str:
    """What happened at each address that was tried."""
    cause = error.__cause__
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or error]
    reasons = (each.strerror if isinstance(each, OSError) else None for each in causes)
    return ", ".join(dict.fromkeys(filter(None, reasons))) or str(error) or "it took too long"


def _complete(future: "Future[socket.socket]", result: socket.socket | OSError) -> None:
    """Give the engine its answer, unless the guest's connection has gone meanwhile."""
    if not future.set_running_or_notify_cancel():
        if isinstance(result, socket.socket):
            result.close()
    elif isinstance(result, socket.socket):
        future.set_result(result)
    else:
        future.set_exception(result)
