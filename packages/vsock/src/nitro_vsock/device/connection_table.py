"""All connections of one guest: how they are found, wait for their turn, and get and lose their sockets.

How a connection begins, ends, or waits is decided elsewhere (`dialing`, `endings`, `credit_wait`). Here is
what all of these share, and the account of what is held in total.
"""

import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.packet import HEADER, Address, Op, Shutdown
from nitro_vsock.device.socket_connection import Doubt, SocketConnection
from nitro_vsock.host.handshake import take_line

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

RESETS_MAX: Final = 256
"""RSTs that wait for receive buffers, and connections that ended while they waited.

Beyond it nothing is taken from the transmit ring, so that a guest that sends nonsense and offers no buffers
cannot fill our memory. virtio 1.3 §5.10.6.1.2 wants such a bound, and wants it not to be zero.
"""

WINDOW_MIN: Final = 16 << 10
"""The window of connections that begin while host programs leave much unread, in bytes."""

SOCKET_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""Edge-triggered, and registered once for the life of a socket: so idle sockets cost nothing, busy ones no
calls."""


class ConnectionTable:
    """The connections of one guest.

    Args:
        config: The guest's address and limits.
        epoll: Where sockets are registered.
        counters: Where what is held is counted.
    """

    def __init__(self, config: "VsockSettings", epoll: select.epoll, counters: Counters) -> None:
        self._epoll = epoll
        self._counters = counters
        self._connections_max = config.connections_max
        self._guest_cid = config.guest_cid
        self._buf_alloc = config.tx_buffer_size
        self._buffered_bytes_max = config.buffered_bytes_max
        self.by_address: dict[tuple[int, int, int], SocketConnection] = {}
        """The connections that the guest knows of."""
        self.by_fd: dict[int, SocketConnection] = {}
        """The connections whose sockets are registered."""
        self.lingering: set[SocketConnection] = set()
        """Connections that are over for the guest, but still have something to deliver."""
        self.ready: deque[SocketConnection] = deque()
        """Connections that have something for the guest, in turn."""
        self.doubtful: list[SocketConnection] = []
        """Connections whose host programs may have stopped reading, see `Doubt`."""
        self.resets: deque[bytes] = deque()
        """Headers of RSTs that are due."""
        self.resets_awaited = False
        """Whether a program of the guest may wait for one of them; none does that has closed its socket."""

    def __len__(self) -> int:
        return len(self.by_address) + len(self.lingering)

    @property
    def full(self) -> bool:
        """Whether there may be no more connections."""
        return len(self) >= self._connections_max

    @property
    def choked(self) -> bool:
        """Whether the guest has to take some packets before it may send on."""
        return len(self.resets) >= RESETS_MAX or len(self.ready) > self._connections_max + RESETS_MAX

    def new(self, address: Address, socket_type: SocketType, state: int) -> SocketConnection:
        """A new connection, which has no socket yet.

        Its window is a quarter of what may still be held in total, so that a few slow host programs cannot
        use up what all connections share.
        """
        left = self._buffered_bytes_max - self._counters.buffered_bytes
        connection = SocketConnection(
            address,
            guest_cid=self._guest_cid,
            socket_type=socket_type,
            state=state,
            buf_alloc=max(min(self._buf_alloc, left // 4), min(self._buf_alloc, WINDOW_MIN)),
        )
        self.by_address[address] = connection
        return connection

    def forget(self, connection: SocketConnection) -> None:
        """The guest does not know of the connection any more, and may use its ports again."""
        if self.by_address.get(connection.address) is connection:
            del self.by_address[connection.address]

    # Sockets

    def hold(self, connection: SocketConnection, sock: socket.socket, *, unix: bool) -> None:
        """Give the connection its socket.

        What happens to the socket is of no interest before the other end accepts; then `watch` it.

        Args:
            connection: The connection.
            sock: The socket to join it with.
            unix: Whether that is a unix socket.
        """
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        connection.socket, connection.fd, connection.unix = sock, sock.fileno(), unix
        if not connection.stream:
            connection.widen()  # a message that does not fit the socket's buffer could never be sent

    def watch(self, connection: SocketConnection) -> None:
        """Have epoll tell what happens to the connection's socket, and what has happened already.

        Raises:
            OSError: The host is out of something.
        """
        self._epoll.register(connection.fd, SOCKET_EVENTS)
        self.by_fd[connection.fd] = connection

    def join(self, connection: SocketConnection, sock: socket.socket, *, unix: bool) -> None:
        """Give the connection its socket, and watch it.

        Raises:
            OSError: The host is out of something; the socket is closed.
        """
        self.hold(connection, sock, unix=unix)
        try:
            self.watch(connection)
        except OSError:
            self.close_socket(connection)
            raise

    def look_again(self, connection: SocketConnection) -> None:
        """Have epoll tell once more what is true of the connection's socket, which is watched."""
        self._epoll.modify(connection.fd, SOCKET_EVENTS)

    def close_socket(self, connection: SocketConnection) -> None:
        """Close the connection's socket, if it has one, and forget what is held for it."""
        self.drop_backlog(connection)
        connection.part()
        sock = connection.socket
        if sock is not None:
            self.by_fd.pop(connection.fd, None)
            if connection.unread_line:
                take_line(sock, connection.unread_line)
            sock.close()
            # The kernel gives the number to the next socket, which is perhaps another connection's.
            connection.socket, connection.fd = None, -1

    def drop_backlog(self, connection: SocketConnection) -> None:
        """Forget what is held for the connection's host program."""
        self._counters.buffered_bytes -= connection.held_bytes
        connection.drop_backlog()

    # What the guest is to be told

    def queue(self, connection: SocketConnection) -> None:
        """Let a connection that has something for the guest wait for its turn."""
        if not connection.queued:
            connection.queued = True
            self.ready.append(connection)

    def doubt(self, connection: SocketConnection) -> None:
        """Let a connection whose host program may have stopped reading wait for a look at it."""
        if connection.doubt != Doubt.WAITS and connection.stream and connection.unix:
            connection.doubt = Doubt.WAITS
            self.doubtful.append(connection)

    def refuse(self, address: Address, kind: int) -> None:
        """Answer a packet of the guest with an RST of the same type (virtio 1.3 §5.10.6.4)."""
        guest_port, host_port, host_cid = address
        self.resets_awaited = True
        self.resets.append(
            HEADER.pack(host_cid, self._guest_cid, host_port, guest_port, 0, kind, Op.RST, 0, 0, 0)
        )

    def reset(self, connection: SocketConnection) -> None:
        """Tell the guest that the connection is over, unless the guest has not heard of it yet."""
        if not connection.pending & 1 << Op.REQUEST:
            self.resets_awaited |= connection.guest_shutdown != Shutdown.BOTH
            self.resets.append(connection.header(Op.RST))
