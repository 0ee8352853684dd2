"""The parent's side of an enclave's vsock: who gets the connections that the enclave opens.

Python programs that called `Enclave.listen` come first, then the configuration's proxied ports, then unix
sockets of this enclave, then programs that listen for all enclaves of the user, such as ``vsock-proxy``.
The heartbeat's port has a server of its own where none of these is there.

Importing this loads no trio, because a guest may open connections before that is there.
"""

import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from nitro_vmm.defaults import HEARTBEAT_PORT
from nitro_vmm.errors import UsageError
from nitro_vsock import HostSide, SocketType
from nitro_vsock.host.parent import SharedParentSide

if TYPE_CHECKING:
    from nitro_vmm.enclave.egress import Egress
    from nitro_vmm.enclave.listener import ParentListener


class ParentSide:
    """Joins the enclave's connections with programs on this machine; a `HostSide`.

    Args:
        inner: Where a connection goes that no listener of this process wants.
        heartbeat: Called when a program of the user's has taken a connection to the heartbeat's port: such a
            program answers the heartbeat itself.
        connected: Called with the port of each other connection that somebody takes.
        soon: Has a function called in the loop's thread. `connect` is called in any.
    """

    def __init__(
        self,
        inner: HostSide | None,
        heartbeat: Callable[[], None],
        connected: Callable[[int], None] = lambda _port: None,
        *,
        soon: Callable[[Callable[[], object]], object],
    ) -> None:
        self.egress: Egress | None = None
        """The ports that lead to TCP endpoints; `None` while there is no loop that could dial."""
        self._inner = inner
        self._heartbeat = heartbeat
        self._shared = SharedParentSide()
        self._connected = connected
        self._soon = soon
        self._listeners: dict[int, ParentListener] = {}

    def listen(self, port: int) -> "ParentListener":
        """Take the enclave's connections to a port.

        Raises:
            UsageError: This program listens there already, or there can be no such port.
        """
        if not 0 < port < (1 << 32) - 1:
            raise UsageError(f"there is no vsock port {port}", hint="ports are from 1 to 4294967294")
        if port in self._listeners:
            raise UsageError(f"port {port} has a listener", hint="close it first")
        from nitro_vmm.enclave.listener import ParentListener  # noqa: PLC0415 - of trio

        listener = ParentListener(port, lambda: self._forget(port))
        self._listeners[port] = listener
        return listener

    def end(self) -> None:
        """The enclave has ended."""
        for listener in self._listeners.values():
            listener.end()

    def connect(self, port: int, socket_type: SocketType) -> "socket.socket | Future[socket.socket]":
        """See `HostSide.connect`."""
        egress = self.egress
        if socket_type is SocketType.STREAM and (listener := self._listeners.get(port)) is not None:
            offered: Future[socket.socket] = Future()
            self._soon(lambda: self._offer(listener, offered))
            return offered
        if socket_type is SocketType.STREAM and egress is not None and port in egress.targets:
            self._connected(port)
            dialled: Future[socket.socket] = Future()
            target = egress.targets[port]
            self._soon(lambda: egress.dial(target, dialled))
            return dialled
        connection = self._elsewhere(port, socket_type)
        self._note(port)
        return connection

    def _offer(self, listener: "ParentListener", offered: "Future[socket.socket]") -> None:
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        if listener.offer(ours):
            self._note(listener.port)
            offered.set_result(theirs)
        else:
            theirs.close()
            ours.close()
            offered.set_exception(ConnectionRefusedError(listener.port))

    def _note(self, port: int) -> None:
        if port == HEARTBEAT_PORT:
            self._heartbeat()
        else:
            self._connected(port)

    def _elsewhere(self, port: int, socket_type: SocketType) -> "socket.socket | Future[socket.socket]":
        if self._inner is not None:
            try:
                return self._inner.connect(port, socket_type)
            except FileNotFoundError:
                pass
        if port == HEARTBEAT_PORT:  # on EC2, nitro-cli listens there, so that nobody else can
            raise FileNotFoundError(port)
        return self._shared.connect(port, socket_type)

    def _forget(self, port: int) -> None:
        self._listeners.pop(port, None)
