"""How connections begin, from either side: who is asked, and what the answer, or its absence, means."""

import errno
import logging
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.endings import Endings
from nitro_vsock.device.lane import Lane, Lanes
from nitro_vsock.device.packet import Address
from nitro_vsock.device.router import Sibling
from nitro_vsock.device.sibling_credit import SiblingCredit
from nitro_vsock.device.socket_connection import SocketConnection
from nitro_vsock.device.timers import Timers
from nitro_vsock.host.handshake import take_line
from nitro_vsock.host.sides import ConnectedUnixSocket, HostSide
from nitro_vsock.host.unix import UNIX_TYPES

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

LOGGER = logging.getLogger(__name__)

Service = Callable[[socket.socket], None]
"""Gets a connected, blocking socket, which it owns. It must neither block nor raise."""
ConnectResult = Callable[[bool], None]
"""Is told whether the guest accepted."""

HOST_PORT_FIRST: Final = 1 << 30
HOST_PORT_LAST: Final = (1 << 31) - 1
"""Ports that host programs' connections get at their own end; Firecracker uses the same."""


class ConnectRequest:
    """A host program's socket that is to be joined with a port of the guest.

    Args:
        sock: The program's socket, non-blocking.
        guest_port: The port in the guest.
        socket_type: What ``sock`` is.
        greeting: Written to ``sock`` when the guest accepts.
        host_cid: The CID that the guest sees the connection come from.
        host_port: The port that it sees; `None`: a free one.
        on_result: Told whether the guest accepted.
        unread_line: Bytes at the front of ``sock`` that are not for the guest, see `take_line`.
        lanes: Where credit comes from if the other end is a guest of ours.
    """

    __slots__ = (
        "greeting",
        "guest_port",
        "host_cid",
        "host_port",
        "lanes",
        "on_result",
        "socket",
        "socket_type",
        "unread_line",
    )

    def __init__(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType,
        *,
        greeting: bytes,
        host_cid: int,
        host_port: int | None,
        on_result: ConnectResult | None,
        unread_line: int = 0,
        lanes: Lanes | None = None,
    ) -> None:
        self.socket = sock
        self.guest_port = guest_port
        self.socket_type = socket_type
        self.greeting = greeting
        self.host_cid = host_cid
        self.host_port = host_port
        self.on_result = on_result
        self.unread_line = unread_line
        self.lanes = lanes


class Dialer:
    """Begins the connections of one guest.

    Args:
        config: Who the host is for the guest, and how long either side may take to accept.
        table: The guest's connections.
        endings: What ends those that are not accepted.
        timers: What wakes those that wait too long.
        counters: Where everything is counted.
        sibling_credit: What has credit follow the guest at the other end.
        host_side: What guest connections to the host are joined with; `None`: with services only.
        services: Handlers of the ports that the host side does not care for.
        find_sibling: Finds another guest by its CID.
        post: Has something called by the engine's next turn, from any thread.
    """

    def __init__(
        self,
        config: "VsockSettings",
        table: ConnectionTable,
        endings: Endings,
        timers: Timers,
        counters: Counters,
        *,
        sibling_credit: SiblingCredit,
        host_side: HostSide | None,
        services: Mapping[int, Service],
        find_sibling: Callable[[int], Sibling | None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._table = table
        self._endings = endings
        self._timers = timers
        self._sibling_credit = sibling_credit
        self._counters = counters
        self._host_side = host_side
        self._services = dict(services)
        self._find_sibling = find_sibling
        self._post = post
        self._local_cids = config.local_cids
        self._guest_cid = config.guest_cid
        self._any_cid = config.any_cid
        self._seqpacket = config.seqpacket
        self._connect_timeout_s = config.connect_timeout_s
        self.source_cid = config.source_cid or min(self._local_cids)
        """The CID that the guest sees host connections come from."""
        self.guest_present = False
        """Whether there is a guest that could accept."""
        self._next_host_port = HOST_PORT_FIRST
        self._told_lack_of_descriptors = False

    # The guest asks

    def guest_connects(self, address: Address, kind: int, buf_alloc: int, fwd_cnt: int) -> None:
        """The guest wants a connection: join it with a socket of the host or a sibling, or answer RST.

        Args:
            address: The connection's two ends.
            kind: What the guest says that it is: the number of a `SocketType`, or any other.
            buf_alloc: The guest's window, as in every packet.
            fwd_cnt: What the guest has taken, as in every packet.
        """
        if kind == SocketType.STREAM:
            socket_type = SocketType.STREAM
        elif kind == SocketType.SEQPACKET and self._seqpacket:
            socket_type = SocketType.SEQPACKET
        else:
            self._refuse(address, kind)
            return
        if self._table.full:
            self._refuse(address, kind)
            return
        connection = self._table.new(address, socket_type, State.CONNECTING)
        connection.update_credit(buf_alloc, fwd_cnt)
        try:
            connected = self._join_host_end(connection)
        except OSError as error:
            self._table.forget(connection)
            connection.end()
            self._refuse(address, kind)
            self._tell_lack_of_descriptors(error)
            return
        self._counters.opened_by_guest += 1
        if connected:
            self._host_accepted(connection)
        else:
            self._timers.schedule(connection, self._connect_timeout_s, partial(self._give_up, connection))

    def _refuse(self, address: Address, kind: int) -> None:
        self._counters.refused += 1
        self._table.refuse(address, kind)

    def _tell_lack_of_descriptors(self, error: OSError) -> None:
        """Say once that more open files are needed, because the guest sees a mere refusal."""
        if error.errno in (errno.EMFILE, errno.ENFILE) and not self._told_lack_of_descriptors:
            self._told_lack_of_descriptors = True
            LOGGER.warning("a guest's connection is refused: too many open files; see ulimit -n")

    def _give_up(self, connection: SocketConnection) -> None:
        """The other end refused, or takes too long."""
        self._counters.refused += 1
        self._endings.finish(connection, reset=True)

    def _join_host_end(self, connection: SocketConnection) -> bool:
        """Join the guest's connection with its other end; false if that has not accepted it yet.

        Siblings come first, because a host side that takes every CID must not take theirs. Then the host side
        is asked, and then the services, so that a user's socket replaces a service at the same port.

        Raises:
            OSError: Nobody wants the connection.
        """
        _, port, cid = connection.address
        if cid not in self._local_cids:
            sibling = self._find_sibling(cid)
            if sibling is not None:
                self._ask_sibling(connection, sibling)
                return False
            if not self._any_cid:
                raise ConnectionRefusedError
        if self._host_side is not None:
            try:
                host = self._host_side.connect(port, connection.socket_type)
            except FileNotFoundError:
                if port not in self._services:
                    raise
            else:
                if isinstance(host, Future):
                    # The future may complete in any thread, so only the engine's next turn looks at it.
                    host.add_done_callback(
                        lambda future: self._post(partial(self._host_answered, connection, future))
                    )
                    return False
                known = isinstance(host, ConnectedUnixSocket)
                self._table.join(connection, host, unix=known or host.family == socket.AF_UNIX)
                return known or _is_connected(host)
        if port not in self._services:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair(socket.AF_UNIX, UNIX_TYPES[connection.socket_type])
        self._services[port](theirs)
        self._table.join(connection, ours, unix=True)
        return True

    def _ask_sibling(self, connection: SocketConnection, sibling: Sibling) -> None:
        guest_port, port, _ = connection.address
        unix_type = UNIX_TYPES[connection.socket_type] | socket.SOCK_NONBLOCK
        ours, theirs = socket.socketpair(socket.AF_UNIX, unix_type)
        self._table.hold(connection, ours, unix=True)
        lanes = Lanes(Lane(), Lane())
        self._sibling_credit.join(connection, lanes.out, lanes.back)
        sibling.adopt(
            theirs,
            port,
            connection.socket_type,
            source=(self._guest_cid, guest_port),
            lanes=lanes,
            on_result=lambda accepted: self._post(partial(self._sibling_answered, connection, accepted)),
        )

    def _host_answered(self, connection: SocketConnection, future: "Future[socket.socket]") -> None:
        try:
            sock = future.result()
        except Exception:  # noqa: BLE001 (whatever it is, the guest is refused)
            if connection.state == State.CONNECTING:
                self._give_up(connection)
            return
        if connection.state != State.CONNECTING:
            sock.close()  # the guest, or the time-out, was faster
            return
        try:
            self._table.join(connection, sock, unix=sock.family == socket.AF_UNIX)
        except OSError:
            self._endings.finish(connection, reset=True)
            return
        self._host_accepted(connection)

    def _sibling_answered(self, connection: SocketConnection, accepted: bool) -> None:  # noqa: FBT001 (a callback)
        if connection.state != State.CONNECTING:
            return
        try:
            if accepted:
                self._table.watch(connection)
        except OSError:
            accepted = False
        if accepted:
            self._table.doubt(connection)  # the sibling may have ended its receiving before we watched
            self._host_accepted(connection)
        else:
            self._give_up(connection)

    def host_connected(self, connection: SocketConnection) -> None:
        """Something happened to a socket that was connecting: it is connected, refused, or neither yet."""
        sock = connection.socket
        if sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._give_up(connection)
        elif _is_connected(sock):
            # The event that told of this is gone, and may have told of data as well.
            self._table.look_again(connection)
            self._host_accepted(connection)

    def _host_accepted(self, connection: SocketConnection) -> None:
        connection.deadline = None
        connection.accept()
        self._endings.follow_guest_shutdown(connection)  # the guest may have ended its sending meanwhile
        self._table.queue(connection)

    # The host asks

    def connect_guest(self, request: ConnectRequest) -> None:
        """Ask the guest to accept a connection."""
        sock, socket_type, on_result = request.socket, request.socket_type, request.on_result
        host_port = request.host_port
        if host_port is None:
            host_port = self.free_host_port(request.guest_port)
        address = request.guest_port, host_port, request.host_cid
        unknown_type = socket_type is SocketType.SEQPACKET and not self._seqpacket
        if not self.guest_present or self._table.full or unknown_type or address in self._table.by_address:
            self._counters.refused += 1
            if request.unread_line:
                take_line(sock, request.unread_line)
            sock.close()
            if on_result is not None:
                on_result(False)
            return
        connection = self._table.new(address, socket_type, State.REQUESTED)
        self._table.hold(connection, sock, unix=bool(request.unread_line) or sock.family == socket.AF_UNIX)
        self._counters.opened_by_host += 1
        connection.greeting, connection.on_result = request.greeting, on_result
        connection.unread_line = request.unread_line
        if request.lanes is not None:
            self._sibling_credit.join(connection, request.lanes.back, request.lanes.out)
        self._timers.schedule(connection, self._connect_timeout_s, partial(self._give_up, connection))
        self._table.queue(connection)

    def guest_accepted(self, connection: SocketConnection) -> None:
        """The guest accepted a connection that the host had asked for."""
        connection.deadline = None
        if connection.unread_line and connection.socket is not None:
            take_line(connection.socket, connection.unread_line)
            connection.unread_line = 0
        else:
            # A sibling, or a socket of long standing, may have ended its receiving before we watch it.
            self._table.doubt(connection)
        try:
            self._table.watch(connection)
        except OSError:
            self._give_up(connection)
            return
        if connection.greeting and connection.socket is not None:
            try:  # noqa: SIM105 (once for every connection, and `suppress` takes longer)
                connection.socket.send(connection.greeting, socket.MSG_NOSIGNAL)
            except OSError:
                pass  # a program that is gone by now is noticed like any other
        if connection.on_result is not None:
            connection.on_result(True)
            connection.on_result = None

    def free_host_port(self, guest_port: int) -> int:
        """A port for the host's end of a connection to ``guest_port``.

        Ports are given in turn, so that one is used again as late as possible.
        """
        while True:
            port = self._next_host_port
            self._next_host_port = port + 1 if port < HOST_PORT_LAST else HOST_PORT_FIRST
            if (guest_port, port, self.source_cid) not in self._table.by_address:
                return port


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
