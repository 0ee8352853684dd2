"""All connections of one guest: how they are found, wait for their turn, and end.

What is decided about one connection is in `connection`, how its bytes reach the socket in `link`; here is
what follows from both for the rest: RSTs that are due, bytes held in total, sockets to be closed, time that
is up.
"""

import errno
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from nitro_vsock.config import VsockConfig
from nitro_vsock.connection import State
from nitro_vsock.counters import Counters
from nitro_vsock.handshake import take_line
from nitro_vsock.link import Link
from nitro_vsock.packet import HEADER, Address, Op, Shutdown, SocketType

RESETS_MAX: Final = 256
"""RSTs that wait for receive buffers, and connections that ended while they waited. Beyond it nothing is
taken from the transmit ring, so that a guest that sends nonsense and offers no buffers cannot fill our memory
(virtio 1.3 §5.10.6.1.2 wants such a bound)."""

WINDOW_MIN: Final = 16 << 10
"""Window of connections that are opened while host programs leave much unread."""
STALL_PROBE_S: Final = 0.2
"""How often a guest that holds many small packets is asked whether it has read some (see `connection`)."""

SOCKET_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Links:
    """The connections of one guest.

    Args:
        config: Limits and timeouts.
        epoll: Where sockets are registered, once each.
        counters: Where everything is counted.
        schedule: Called with a link and seconds: `expire` is due then, unless its ``deadline`` changes.
    """

    def __init__(
        self,
        config: VsockConfig,
        epoll: select.epoll,
        counters: Counters,
        schedule: Callable[[Link, float], None],
    ) -> None:
        self.config, self.counters, self.schedule = config, counters, schedule
        self._epoll = epoll
        self._connections_max, self._guest_cid = config.connections_max, config.guest_cid
        self._buf_alloc, self._buffered_bytes_max = config.buf_alloc, config.buffered_bytes_max
        self.by_address: dict[tuple[int, int, int], Link] = {}
        self.by_fd: dict[int, Link] = {}
        self.lingering: set[Link] = set()
        """Those that are over for the guest, but have something to deliver yet."""
        self.ready: deque[Link] = deque()
        """Those that have something for the guest, in turn."""
        self.resets: deque[bytes] = deque()
        """Headers of RSTs that are due."""

    def __len__(self) -> int:
        return len(self.by_address) + len(self.lingering)

    @property
    def full(self) -> bool:
        """Whether there may be no more."""
        return len(self) >= self._connections_max

    @property
    def choked(self) -> bool:
        """Whether the guest has to take some packets before it may send on."""
        return len(self.resets) >= RESETS_MAX or len(self.ready) > self._connections_max + RESETS_MAX

    def new(self, address: Address, socket_type: SocketType, state: int) -> Link:
        """A new connection, without its socket yet."""
        left = self._buffered_bytes_max - self.counters.buffered_bytes
        link = Link(
            address,
            guest_cid=self._guest_cid,
            socket_type=socket_type,
            state=state,
            buf_alloc=max(min(self._buf_alloc, left // 4), min(self._buf_alloc, WINDOW_MIN)),
        )
        self.by_address[address] = link
        return link

    def hold(self, link: Link, sock: socket.socket, *, unix: bool) -> None:
        """Give the link its socket, of which nothing is of interest until the other end accepts: `watch`.

        Args:
            link: Whose.
            sock: What to join it with.
            unix: Whether it is a unix socket.
        """
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        link.socket, link.fd, link.unix = sock, sock.fileno(), unix
        if not link.stream:
            link.widen()

    def watch(self, link: Link) -> None:
        """Have epoll tell what happens to the link's socket, and what has happened already.

        Raises:
            OSError: The host is out of something.
        """
        self._epoll.register(link.fd, SOCKET_EVENTS)
        self.by_fd[link.fd] = link

    def join(self, link: Link, sock: socket.socket, *, unix: bool) -> None:
        """Give the link its socket, and watch it.

        Raises:
            OSError: The host is out of something; the socket is closed.
        """
        self.hold(link, sock, unix=unix)
        try:
            self.watch(link)
        except OSError:
            self._close_socket(link)
            raise

    def look_again(self, link: Link) -> None:
        """Have epoll tell again what is true of the link's socket."""
        if link.socket is not None:
            self._epoll.modify(link.fd, SOCKET_EVENTS)

    def queue(self, link: Link) -> None:
        """The link has something for the guest: let it wait for its turn."""
        if not link.queued:
            link.queued = True
            self.ready.append(link)

    def refuse(self, address: Address, kind: int) -> None:
        """Answer a packet of the guest with RST, of the same type (virtio 1.3 §5.10.6.4)."""
        guest_port, host_port, host_cid = address
        self.resets.append(
            HEADER.pack(host_cid, self._guest_cid, host_port, guest_port, 0, kind, Op.RST, 0, 0, 0)
        )

    # From the guest to the host

    def deliver(self, link: Link) -> None:
        """Pass on what this batch brought for one stream."""
        held = link.held_bytes
        try:
            link.deliver()
        except OSError as error:
            self._host_refuses(link, error)
        self.note_held(link, held)

    def deliver_message(self, link: Link, payload: list[memoryview], *, last: bool) -> None:
        """Take a piece of a message from the guest, and pass the message on with its last one."""
        held = link.held_bytes
        for segment in payload:
            link.message += segment
        if len(link.message) > link.buf_alloc or (link.lengths and len(link.lengths) > link.buf_alloc):
            self.counters.credit_violations += 1
            self.counters.buffered_bytes += link.held_bytes - held
            self.finish(link, reset=True)
            return
        try:
            if link.write_closed or link.socket is None:
                link.message.clear()
            elif last:
                link.deliver_message()
            link.note_forwarded()
        except OSError as error:
            self._host_refuses(link, error)
        self.note_held(link, held)

    def flush(self, link: Link) -> None:
        """The host program reads again: pass on what is held for it."""
        held = link.held_bytes
        try:
            link.flush()
        except OSError as error:
            self._host_refuses(link, error)
        self.note_held(link, held)
        if link.lingering:
            if not link.holding:
                self.drop_socket(link)
        elif not link.holding:
            self.follow_guest_shutdown(link)

    def note_held(self, link: Link, before: int) -> None:
        """Keep account of what is held, and send what the change made due."""
        counters = self.counters
        now = link.held_bytes
        if now != before:
            counters.buffered_bytes += now - before
            if now > before and counters.buffered_bytes > self._buffered_bytes_max:
                counters.budget_resets += 1
                self._drop_backlog(link)
                self.finish(link, reset=True)
        if link.pending and not link.queued:
            self.queue(link)

    def _host_refuses(self, link: Link, error: OSError) -> None:
        """The host program takes no more; it may still send. A message that is too long ends everything."""
        if link.lingering or link.state == State.CLOSED:
            return
        if error.errno == errno.EMSGSIZE:
            self.finish(link, reset=True)
        elif link.state == State.ESTABLISHED:
            link.shut_down(Shutdown.RECEIVE)
            if link.shutdown_sent == Shutdown.BOTH:
                self._await_guest_close(link)
            self.queue(link)

    def follow_guest_shutdown(self, link: Link) -> None:
        """The guest has said that it will not send or not receive: the host program should see that."""
        if link.socket is None or link.state != State.ESTABLISHED:
            return
        if link.guest_shutdown & Shutdown.SEND and not link.holding and not link.write_closed:
            link.close_write()
        if link.guest_shutdown & Shutdown.RECEIVE:
            with suppress(OSError):
                link.socket.shutdown(socket.SHUT_RD)
            if link.hangup:
                self.host_closed(link)

    # From the host to the guest

    def stall(self, link: Link) -> None:
        """There is data and no credit: ask once, and when it is packets that are too many, again later."""
        link.stalled = True
        link.pending |= 1 << Op.CREDIT_REQUEST
        if link.credit:
            self.schedule(link, STALL_PROBE_S)

    def unstall(self, link: Link) -> None:
        """There is news of the guest's credit: go on if it is enough."""
        if link.state != State.ESTABLISHED or not link.credit:
            return
        if link.packet_credit:
            link.stalled = False
            link.deadline = None
            self.queue(link)
        elif link.deadline is None:
            self.schedule(link, STALL_PROBE_S)

    def host_eof(self, link: Link) -> None:
        """The host program sends no more; if it has closed, it does not read either."""
        link.readable = False
        if link.hangup:
            self.host_closed(link)
        else:
            link.shut_down(Shutdown.SEND)
            if link.state == State.CLOSING:
                self._await_guest_close(link)
            self.queue(link)

    def host_closed(self, link: Link) -> None:
        """The host program neither sends nor reads any more."""
        link.shut_down(Shutdown.BOTH)
        self._await_guest_close(link)
        self.queue(link)

    def _await_guest_close(self, link: Link) -> None:
        """Nothing is left to do but to hear the guest's RST; the socket is not needed for that."""
        self._close_socket(link)
        link.forwarded(0)
        self.schedule(link, self.config.close_timeout_s)

    # The end

    def finish(self, link: Link, *, reset: bool) -> None:
        """The connection is over for the guest; what it sent may still be on its way to the host."""
        if self.by_address.get(link.address) is link:
            del self.by_address[link.address]
        link.state = State.CLOSED
        link.deadline = None
        if reset and not link.pending & 1 << Op.REQUEST:  # the guest has not heard of it else
            self.resets.append(link.header(Op.RST))
        if link.on_result is not None:
            link.on_result(False)
            link.on_result = None
        link.segments.clear()
        if link.holding and link.socket is not None and not link.hangup:
            link.lingering = True
            self.lingering.add(link)
            self.schedule(link, self.config.linger_timeout_s)
        else:
            self.drop_socket(link)

    def forget_all(self) -> None:
        """The guest has forgotten everything, so shall we; but what it sent is delivered."""
        for link in list(self.by_address.values()):
            if link.segments:
                self.deliver(link)
            if link.state != State.CLOSED:
                self.finish(link, reset=False)
        self.ready.clear()
        self.resets.clear()

    def drop_socket(self, link: Link) -> None:
        """The connection is over for the host as well."""
        link.lingering = False
        link.state = State.CLOSED
        self.lingering.discard(link)
        self._close_socket(link)

    def _close_socket(self, link: Link) -> None:
        self._drop_backlog(link)
        if link.socket is not None:
            self.by_fd.pop(link.fd, None)
            if link.unread_line:
                take_line(link.socket, link.unread_line)
            link.socket.close()
            link.socket, link.fd = None, -1  # the number may be another socket's soon

    def _drop_backlog(self, link: Link) -> None:
        self.counters.buffered_bytes -= link.held_bytes
        link.drop_backlog()

    def expire(self, link: Link) -> None:
        """The link's time is up: to be accepted, to be closed, to be read, or to be asked about again."""
        link.deadline = None
        if link.lingering:
            self.drop_socket(link)
        elif link.stalled and link.state == State.ESTABLISHED:
            link.pending |= 1 << Op.CREDIT_REQUEST
            self.queue(link)
            self.schedule(link, STALL_PROBE_S)
        elif link.state != State.CLOSED:
            self.counters.refused += link.state in (State.REQUESTED, State.CONNECTING)
            self.finish(link, reset=True)
