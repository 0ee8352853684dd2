"""How connections begin, from either side."""

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from nitro_vsock.connection import State
from nitro_vsock.handshake import take_line
from nitro_vsock.host_side import UNIX_TYPES, HostSide, UnixHostSide
from nitro_vsock.link import Link
from nitro_vsock.links import Links
from nitro_vsock.packet import Address, SocketType

Service = Callable[[socket.socket], None]
ConnectResult = Callable[[bool], None]

HOST_PORT_FIRST: Final = 1 << 30
HOST_PORT_LAST: Final = (1 << 31) - 1
"""Ports that host programs' connections get at their own end, as with Firecracker."""


class Adoption:
    """A host program's socket that is to be joined with a guest's port (`VsockEngine.adopt`)."""

    __slots__ = (
        "greeting",
        "guest_port",
        "host_cid",
        "host_port",
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
    ) -> None:
        self.socket, self.guest_port, self.socket_type = sock, guest_port, socket_type
        self.greeting, self.host_cid, self.host_port = greeting, host_cid, host_port
        self.on_result, self.unread_line = on_result, unread_line


class Sibling(Protocol):
    """Another guest of this process: its engine."""

    def adopt(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType,
        *,
        source: tuple[int, int],
        on_result: ConnectResult,
    ) -> None:
        """See `VsockEngine.adopt`."""


class Opener:
    """Joins the two ends of connections.

    Args:
        links: The guest's connections.
        host_side: What guest connections to the host are joined with.
        services: Handlers of ports that the host side does not care for.
        siblings: Finds the engine of another guest by its CID.
        post: Has something called by the engine's next turn, from any thread.
    """

    def __init__(
        self,
        links: Links,
        host_side: HostSide | None,
        services: Mapping[int, Service],
        siblings: Callable[[int], Sibling | None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._links, self._host_side, self._services = links, host_side, dict(services)
        self._siblings, self._post = siblings, post
        self.config = links.config
        self._local_cids, self._guest_cid = self.config.local_cids, self.config.guest_cid
        self._seqpacket = self.config.seqpacket
        self.source_cid = self.config.source_cid or min(self._local_cids)
        self.open = False
        """Whether there is a guest to connect to."""
        self._next_host_port = HOST_PORT_FIRST

    def guest_connects(self, address: Address, kind: int, buf_alloc: int, fwd_cnt: int) -> None:
        """The guest wants a connection; answer RST, or join it with something of the host's or a sibling.

        Args:
            address: Its ends.
            kind: What the guest says that it is: a `SocketType`, or not.
            buf_alloc: The guest's first credit, as all packets have it.
            fwd_cnt: The same.
        """
        links = self._links
        if kind == SocketType.STREAM:
            socket_type = SocketType.STREAM
        elif kind == SocketType.SEQPACKET and self._seqpacket:
            socket_type = SocketType.SEQPACKET
        else:
            self._refuse(address, kind)
            return
        if links.full:
            self._refuse(address, kind)
            return
        link = links.new(address, socket_type, State.CONNECTING)
        link.update_credit(buf_alloc, fwd_cnt)
        try:
            connected = self._join_host_end(link)
        except OSError:
            del links.by_address[address]
            link.state = State.CLOSED
            self._refuse(address, kind)
            return
        links.counters.opened_by_guest += 1
        if connected:
            self._host_accepted(link)
        else:
            links.schedule(link, self.config.connect_timeout_s)

    def _refuse(self, address: Address, kind: int) -> None:
        self._links.counters.refused += 1
        self._links.refuse(address, kind)

    def _join_host_end(self, link: Link) -> bool:
        """Join the guest's connection with what it is for; false if that has not accepted it yet.

        Raises:
            OSError: Nobody wants the connection.
        """
        _, port, cid = link.address
        if cid not in self._local_cids:
            sibling = self._siblings(cid)
            if sibling is not None:
                self._ask_sibling(link, sibling)
                return False
            if not self.config.any_cid:
                raise ConnectionRefusedError
        if self._host_side is not None:
            try:
                host = self._host_side.connect(port, link.socket_type)
            except FileNotFoundError:
                if port not in self._services:
                    raise
            else:
                if isinstance(host, Future):
                    host.add_done_callback(
                        lambda future: self._post(partial(self._host_answered, link, future))
                    )
                    return False
                unix = isinstance(self._host_side, UnixHostSide)
                self._links.join(link, host, unix=unix or host.family == socket.AF_UNIX)
                return unix or _is_connected(host)
        if port not in self._services:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair(socket.AF_UNIX, UNIX_TYPES[link.socket_type])
        self._services[port](theirs)
        self._links.join(link, ours, unix=True)
        return True

    def _ask_sibling(self, link: Link, sibling: Sibling) -> None:
        guest_port, port, _ = link.address
        ours, theirs = socket.socketpair(socket.AF_UNIX, UNIX_TYPES[link.socket_type] | socket.SOCK_NONBLOCK)
        self._links.hold(link, ours, unix=True)
        sibling.adopt(
            theirs,
            port,
            link.socket_type,
            source=(self._guest_cid, guest_port),
            on_result=lambda accepted: self._post(partial(self._sibling_answered, link, accepted)),
        )

    def _host_answered(self, link: Link, future: "Future[socket.socket]") -> None:
        try:
            sock = future.result()
        except Exception:  # noqa: BLE001 (whatever it is, the guest is refused)
            if link.state == State.CONNECTING:
                self._links.counters.refused += 1
                self._links.finish(link, reset=True)
            return
        if link.state != State.CONNECTING:
            sock.close()
            return
        try:
            self._links.join(link, sock, unix=sock.family == socket.AF_UNIX)
        except OSError:
            self._links.finish(link, reset=True)
            return
        self._host_accepted(link)

    def _sibling_answered(self, link: Link, accepted: bool) -> None:  # noqa: FBT001 (a callback)
        if link.state != State.CONNECTING:
            return
        try:
            if accepted:
                self._links.watch(link)
        except OSError:
            accepted = False
        if accepted:
            self._host_accepted(link)
        else:
            self._links.counters.refused += 1
            self._links.finish(link, reset=True)

    def host_connected(self, link: Link) -> None:
        """Something happened to a socket that was connecting."""
        sock = link.socket
        if sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._links.counters.refused += 1
            self._links.finish(link, reset=True)
        elif _is_connected(sock):
            self._links.look_again(link)
            self._host_accepted(link)

    def _host_accepted(self, link: Link) -> None:
        link.deadline = None
        link.accept()
        self._links.follow_guest_shutdown(link)
        self._links.queue(link)

    def connect_guest(self, adoption: Adoption) -> None:
        """Ask the guest to accept a connection."""
        sock, socket_type, on_result = adoption.socket, adoption.socket_type, adoption.on_result
        host_port = adoption.host_port
        if host_port is None:
            host_port = self.free_host_port(adoption.guest_port)
        address = adoption.guest_port, host_port, adoption.host_cid
        unknown_type = socket_type is SocketType.SEQPACKET and not self._seqpacket
        if not self.open or self._links.full or unknown_type or address in self._links.by_address:
            self._links.counters.refused += 1
            if adoption.unread_line:
                take_line(sock, adoption.unread_line)
            sock.close()
            if on_result is not None:
                on_result(False)
            return
        link = self._links.new(address, socket_type, State.REQUESTED)
        self._links.hold(link, sock, unix=bool(adoption.unread_line) or sock.family == socket.AF_UNIX)
        self._links.counters.opened_by_host += 1
        link.greeting, link.on_result, link.unread_line = adoption.greeting, on_result, adoption.unread_line
        self._links.schedule(link, self.config.connect_timeout_s)
        self._links.queue(link)

    def guest_accepted(self, link: Link) -> None:
        """The guest took a connection that the host had opened."""
        link.deadline = None
        if link.unread_line and link.socket is not None:
            take_line(link.socket, link.unread_line)
            link.unread_line = 0
        try:
            self._links.watch(link)
        except OSError:
            self._links.counters.refused += 1
            self._links.finish(link, reset=True)
            return
        if link.greeting and link.socket is not None:
            with suppress(OSError):
                link.socket.send(link.greeting, socket.MSG_NOSIGNAL)
        if link.on_result is not None:
            link.on_result(True)
            link.on_result = None

    def free_host_port(self, guest_port: int) -> int:
        """A port for the host's end of a connection to ``guest_port``."""
        while True:
            port = self._next_host_port
            self._next_host_port = port + 1 if port < HOST_PORT_LAST else HOST_PORT_FIRST
            if (guest_port, port, self.source_cid) not in self._links.by_address:
                return port


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
