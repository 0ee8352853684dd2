"""Let guests reach chosen TCP endpoints: what AWS's vsock-proxy does, for many ports in one process.

The guest connects to a port of the host and never learns or chooses an address; which endpoint a port stands
for is the configuration's word. AWS's allow-list says which endpoints the configuration may name. The engine
joins the guest's connection with the TCP socket itself, so half-closes and refusals pass through.
"""

import socket
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import trio

from nitro_vsock.daemon.config import Allowlist, Target
from nitro_vsock.daemon.logs import LOGGER
from nitro_vsock.errors import UsageError
from nitro_vsock.host_side import HostSide
from nitro_vsock.packet import SocketType

CONNECT_TIMEOUT_S = 10.0
CONNECTING_MAX = 64
"""TCP connections on their way at a time, all ports together; a guest's next one is refused."""


def _addresses(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def check_allowed(target: Target, allowlist: Allowlist) -> None:
    """Whether a target may be proxied: same port, and the same name or an address in common, as vsock-proxy.

    Raises:
        UsageError: It may not.
    """
    addresses = [entry.address for entry in allowlist.allowlist if entry.port == target.port]
    if any(address.lower() == target.host.lower() for address in addresses):
        return
    if addresses and (mine := _addresses(target.host)) and any(mine & _addresses(a) for a in addresses):
        return
    raise UsageError(f"{target} is not in the allow-list of the proxy")


@dataclass(slots=True)
class Endpoint:
    """Where a port leads, and what became of it so far."""

    target: Target
    connections: int = 0
    refused: int = 0


class ProxyHostSide:
    """The host side of an engine: TCP endpoints at some ports, and something else at the others.

    Args:
        targets: Endpoint of each port.
        others: Who has the other ports.
        nursery: Where connections are made; belongs to the running trio.
    """

    def __init__(self, targets: Mapping[int, Target], others: HostSide, nursery: trio.Nursery) -> None:
        self.endpoints = {port: Endpoint(target) for port, target in targets.items()}
        self._others = others
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._connecting = 0

    def connect(self, port: int, socket_type: SocketType) -> socket.socket | Future[socket.socket]:
        """See `HostSide.connect`; from the data thread."""
        endpoint = self.endpoints.get(port)
        if endpoint is None:
            return self._others.connect(port, socket_type)
        future: Future[socket.socket] = Future()
        if socket_type is SocketType.STREAM:
            self._token.run_sync_soon(self._begin, endpoint, future)
        else:
            future.set_exception(ConnectionRefusedError("TCP has no messages"))
        return future

    def _begin(self, endpoint: Endpoint, future: "Future[socket.socket]") -> None:
        if self._connecting < CONNECTING_MAX:
            self._connecting += 1
            self._nursery.start_soon(self._connect, endpoint, future)
        else:
            endpoint.refused += 1
            _complete(future, ConnectionRefusedError("too many connections on their way"))

    async def _connect(self, endpoint: Endpoint, future: "Future[socket.socket]") -> None:
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                stream = await trio.open_tcp_stream(endpoint.target.host, endpoint.target.port)
        except (OSError, trio.TooSlowError) as error:
            endpoint.refused += 1
            LOGGER.warning("proxy cannot connect", extra={"target": str(endpoint.target), "why": _why(error)})
            _complete(future, ConnectionRefusedError(str(error)))
            return
        finally:
            self._connecting -= 1
        endpoint.connections += 1
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = socket.socket(fileno=stream.socket.detach())
        connection.setblocking(False)
        _complete(future, connection)


def _why(error: BaseException) -> str:
    """What happened at each address that was tried."""
    cause = error.__cause__
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or error]
    reasons = (each.strerror if isinstance(each, OSError) else None for each in causes)
    return ", ".join(dict.fromkeys(filter(None, reasons))) or str(error) or "it took too long"


def _complete(future: "Future[socket.socket]", result: socket.socket | OSError) -> None:
    """Tell the engine, unless the guest's connection has gone meanwhile."""
    if not future.set_running_or_notify_cancel():
        if isinstance(result, socket.socket):
            result.close()
    elif isinstance(result, socket.socket):
        future.set_result(result)
    else:
        future.set_exception(result)
