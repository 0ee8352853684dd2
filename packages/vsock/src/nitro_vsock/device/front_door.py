"""The unix sockets on which host programs ask for a port of the guest, by saying ``CONNECT port``.

The engine waits for these sockets together with all others, and calls here what happens to them.
"""

import select
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.connection_table import SOCKET_EVENTS, ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.dialing import ConnectRequest, Dialer
from nitro_vsock.device.timers import Timers
from nitro_vsock.host.handshake import Handshake, HandshakeError, take_line
from nitro_vsock.host.sides import ListeningStream
from nitro_vsock.host.unix import SEQPACKET_SUFFIX, UnixListener, allowed_users, may_connect

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

ACCEPTED_PER_LOOK: Final = 16
"""How many programs are let in at once, at most."""

ACCEPT_RETRY_S: Final = 0.5
"""How long not to accept after the host ran out of descriptors."""


class FrontDoor:
    """Listens for one guest, and brings every program that knocks to the `Dialer`.

    Args:
        config: Where to listen, who may connect, and the limits.
        epoll: Where sockets are registered.
        table: The guest's connections.
        dialer: What asks the guest.
        timers: What wakes programs that never finish their line.
        counters: Where everything is counted.
    """

    def __init__(
        self,
        config: "VsockSettings",
        epoll: select.epoll,
        *,
        table: ConnectionTable,
        dialer: Dialer,
        timers: Timers,
        counters: Counters,
    ) -> None:
        self._epoll = epoll
        self._table = table
        self._dialer = dialer
        self._timers = timers
        self._counters = counters
        self._seqpacket = config.seqpacket
        self._half_open_max = config.half_open_max
        self._handshake_timeout_s = config.handshake_timeout_s
        self._ok_names_guest_port = config.ok_port == "guest"
        self._users = allowed_users(config.allow_uid)
        self.deadline: float | None = None
        """When to accept again, see `nitro_vsock.device.timers`."""
        self.accepted = False
        """Whether somebody was let in since the caller set this to false."""
        self.crowded = False
        """Whether several programs come at a time."""
        self.listeners: dict[int, UnixListener] = {}
        """The listening sockets, by descriptor."""
        self.handshakes: dict[int, Handshake] = {}
        """Programs that have not finished their line, by descriptor."""

    def listen(self, path: Path) -> None:
        """Listen for streams at ``path``, and for messages beside it if the guest may have them.

        Raises:
            HostError: One of the sockets cannot be made.
        """
        self._listen(path, SocketType.STREAM)
        if self._seqpacket:
            self._listen(path.with_name(path.name + SEQPACKET_SUFFIX), SocketType.SEQPACKET)

    def _listen(self, path: Path, socket_type: SocketType) -> None:
        socket_class = ListeningStream if socket_type is SocketType.STREAM else socket.socket
        listener = UnixListener(path, socket_type, users=self._users, socket_class=socket_class)
        self.listeners[listener.socket.fileno()] = listener
        self._epoll.register(listener.socket.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Close every socket, and remove the files of those that listen."""
        for handshake in list(self.handshakes.values()):
            self._drop(handshake)
        for listener in self.listeners.values():
            listener.close()

    def accept(self, fd: int) -> None:
        """Accept who waits at the listener ``fd``: one program, or many if there was one just before.

        Several are accepted at once, because the guest then hears of all of them by one interrupt. That there
        are more is told by epoll at the next look, which is level-triggered here: to accept until nobody is
        left would take an attempt in vain for each program that comes alone.
        """
        listener = self.listeners[fd]
        count = ACCEPTED_PER_LOOK if self.crowded else 1
        try:
            for _ in range(count):
                sock, _ = listener.socket.accept()
                self.accepted = True
                self._greet(sock, listener.socket_type)
        except BlockingIOError:
            pass
        except OSError:
            # Out of descriptors or the like. The program is still in the backlog and epoll would report it at
            # once again, so stop asking for a while or we would spin.
            self._epoll.modify(fd, 0)
            self._timers.schedule(self, ACCEPT_RETRY_S, self._accept_again)

    def _accept_again(self) -> None:
        for fd in self.listeners:
            self._epoll.modify(fd, select.EPOLLIN)

    def _greet(self, sock: socket.socket, socket_type: SocketType) -> None:
        """Wait for a program's line, if it may have the guest at all.

        Raises:
            OSError: The host is out of something; the program is dropped.
        """
        sock.setblocking(False)
        full = len(self.handshakes) >= self._half_open_max or self._table.full
        if not self._dialer.guest_present or full or not may_connect(sock, self._users):
            self._counters.refused += 1
            sock.close()
            return
        handshake = Handshake(sock, socket_type)
        self.handshakes[sock.fileno()] = handshake
        # Most programs have written their line by now. Then the socket need not be registered twice.
        self.on_event(sock.fileno())
        if sock.fileno() in self.handshakes:
            try:
                self._epoll.register(sock.fileno(), SOCKET_EVENTS)
            except OSError:
                self._drop(handshake)
                raise
            handshake.registered = True
            self._timers.schedule(handshake, self._handshake_timeout_s, partial(self._refuse, handshake))

    def on_event(self, fd: int) -> None:
        """Read more of the line of the program at ``fd``, and ask the guest when it is complete."""
        handshake = self.handshakes[fd]
        try:
            port = handshake.read()
        except HandshakeError:
            self._refuse(handshake)
            return
        if port is None:
            return
        del self.handshakes[fd]
        handshake.deadline = None
        if handshake.registered:
            # Registering it again for the connection tells once more what has happened to it.
            self._epoll.unregister(fd)
        host_port = self._dialer.free_host_port(port)
        number = port if self._ok_names_guest_port else host_port
        self._dialer.connect_guest(
            ConnectRequest(
                handshake.socket,
                port,
                handshake.socket_type,
                greeting=b"OK %d\n" % number,
                host_cid=self._dialer.source_cid,
                host_port=host_port,
                on_result=None,
                unread_line=handshake.unread,
            )
        )

    def look_again(self, fd: int) -> None:
        """Have epoll tell once more what is true of the program at ``fd``."""
        handshake = self.handshakes.get(fd)
        if handshake is not None and handshake.registered:
            self._epoll.modify(fd, SOCKET_EVENTS)

    def _refuse(self, handshake: Handshake) -> None:
        self._counters.refused += 1
        self._drop(handshake)

    def _drop(self, handshake: Handshake) -> None:
        del self.handshakes[handshake.socket.fileno()]
        handshake.deadline = None
        if handshake.unread:
            take_line(handshake.socket, handshake.unread)
        handshake.socket.close()
