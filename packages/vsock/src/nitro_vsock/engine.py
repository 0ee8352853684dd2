"""The vsock device of one guest: rings on one side, sockets on the other, a `turn` moves what there is.

Everything waits on one epoll object of the engine's own, edge-triggered and registered once per socket, so
a turn costs a handful of system calls however many connections there are: one to learn what happened, one
per connection that has something to move, whatever the number of packets.

A turn takes a batch from the transmit ring (guest to host), then fills receive buffers (host to guest), for
transmitting opens credit that receiving reports. It never waits: a slow host program has its bytes held up
to the guest's credit, a guest without buffers or credit is simply not read for. Nothing that a guest does
raises.

An interrupt is raised after the engine's lock is let go, for it may take locks that the caller of `attach`
holds.
"""

import errno
import heapq
import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from nitro_vsock.config import VsockConfig
from nitro_vsock.connection import State, Verdict
from nitro_vsock.counters import Counters
from nitro_vsock.errors import ChainError, QueueError, UsageError
from nitro_vsock.handshake import Handshake, HandshakeError
from nitro_vsock.host_side import (
    SEQPACKET_SUFFIX,
    UNIX_TYPES,
    HostSide,
    UnixHostSide,
    UnixListener,
    may_connect,
)
from nitro_vsock.link import WIDTH_MAX, WIDTH_MIN, Link
from nitro_vsock.packet import (
    COUNTER_MASK,
    EVENT_BYTES,
    EVENT_TRANSPORT_RESET,
    HEADER,
    HEADER_BYTES,
    VSOCK_F_SEQPACKET,
    VSOCK_F_STREAM,
    Address,
    Header,
    Op,
    Sequence,
    Shutdown,
    SocketType,
)
from nitro_vsock.receive_ring import ReceiveRing
from nitro_vsock.router import VsockRouter
from nitro_vsock.split_queue import Chain, SplitQueue

Service = Callable[[socket.socket], None]
ConnectResult = Callable[[bool], None]

ROUNDS_PER_TURN: Final = 16
"""Then the caller gets a word in, and calls again at once."""
TRANSMIT_BATCH: Final = 64
RECEIVE_BUFFERS_PER_ROUND: Final = 256
EPOLL_EVENTS_MAX: Final = 256
ACCEPTS_PER_ROUND: Final = 16

RESETS_MAX: Final = 256
"""RSTs that wait for receive buffers; beyond it nothing is taken from the transmit ring, so that a guest that
sends nonsense and offers no buffers cannot fill our memory (virtio 1.3 §5.10.6.1.2 asks for such a bound)."""
BAD_CHAINS_MAX: Final = 1024
"""Then the guest's driver is taken for broken, and the device stops."""

SEND_BUFFER_BYTES: Final = 256 << 10
"""A unix socket's own buffer takes the default window, so a host program in its stride costs us no copy."""
WINDOW_MIN: Final = 16 << 10
"""Window of connections that are opened while host programs leave much unread."""
STALL_PROBE_S: Final = 0.2
"""How often a guest that holds many small packets is asked whether it has read some (see `connection`)."""
ACCEPT_RETRY_S: Final = 0.5
"""How long not to accept after the host ran out of descriptors."""

HOST_PORTS: Final = range(1 << 30, 1 << 31)
"""Ports that host programs' connections get at their own end, as with Firecracker."""

SOCKET_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
KICK_EVENTS: Final = select.EPOLLIN | select.EPOLLET
"""Every write to an eventfd makes a new edge, so it need not be read."""


class Vring(NamedTuple):
    """A started virtqueue: the ring, the eventfd that the driver's kicks write, and how to interrupt it."""

    queue: SplitQueue
    kick_fd: int
    call: Callable[[], None]


class _Adoption(NamedTuple):
    """A host program's socket that is to be joined with a port of the guest; see `VsockEngine.adopt`."""

    socket: socket.socket
    guest_port: int
    socket_type: SocketType
    greeting: bytes
    host_cid: int
    host_port: int | None
    on_result: ConnectResult | None


class VsockEngine:
    """The vsock device of one guest; the package's docstring shows how to run one.

    Args:
        config: The guest's address, where the host side is, limits.
        services: Handlers of ports that the guest may connect to and that are not unix sockets. A handler
            gets a connected, blocking socket and owns it; it must neither block nor raise.
        host_side: What other guest connections are joined with; None: the unix sockets that ``config`` names.
        router: The other guests of this process.
        clock: Seconds, monotonic.

    Raises:
        HostError: The unix socket cannot be listened on.
        UsageError: Another engine of ``router`` has this CID.
    """

    def __init__(
        self,
        config: VsockConfig,
        *,
        services: Mapping[int, Service] | None = None,
        host_side: HostSide | None = None,
        router: VsockRouter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.failure: str | None = None
        """Why the rings are not served any more, until `detach`; None while all is well."""
        self._services = dict(services or {})
        self._router = router
        self._clock = clock
        self._lock = threading.RLock()
        self._wake_lock = threading.Lock()
        self._closed = self._stopping = False
        self._counters = Counters()

        self._receive_ring: ReceiveRing | None = None
        self._transmit: SplitQueue | None = None
        self._vrings: tuple[Vring | None, ...] = ()
        self._calls: list[Callable[[], None]] = []
        self._bad_chains = 0  # since the rings were attached
        self._starved = False
        self._resets: deque[bytes] = deque()
        self._event_due = False

        self._links: dict[tuple[int, int, int], Link] = {}
        self._links_by_fd: dict[int, Link] = {}
        self._lingering: set[Link] = set()
        self._ready: deque[Link] = deque()
        self._handshakes: dict[int, Handshake] = {}
        self._last_host_port = HOST_PORTS[-1]
        self._source_cid = config.source_cid or min(config.local_cids)

        self._timers: list[tuple[float, int, Link | Handshake | None]] = []
        self._timer_number = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()

        path = config.uds_path
        self._host_side = host_side or (UnixHostSide(path) if path else None)
        if router is not None:
            router.add(self)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, KICK_EVENTS)
        self._listeners: dict[int, UnixListener] = {}
        self._accepting: set[int] = set()
        try:
            if path is not None:
                self._listen(path, SocketType.STREAM)
                if config.seqpacket:
                    self._listen(path.with_name(path.name + SEQPACKET_SUFFIX), SocketType.SEQPACKET)
        except BaseException:
            self.close()
            raise

    def _listen(self, path: Path, socket_type: SocketType) -> None:
        listener = UnixListener(path, socket_type)
        self._listeners[listener.socket.fileno()] = listener
        self._epoll.register(listener.socket.fileno(), select.EPOLLIN | select.EPOLLET)

    # What a transport asks a device

    @property
    def features(self) -> int:
        """The device's feature bits that belong to vsock (virtio 1.3 §5.10.3)."""
        return 1 << VSOCK_F_STREAM | self.config.seqpacket << VSOCK_F_SEQPACKET

    @property
    def config_space(self) -> bytes:
        """``virtio_vsock_config``: the guest's CID (virtio 1.3 §5.10.4)."""
        return self.config.guest_cid.to_bytes(8, "little")

    # Life

    def fileno(self) -> int:
        """A descriptor that is readable when `turn` has something to do."""
        return self._epoll.fileno()

    def attach(self, *, receive: Vring, transmit: Vring, event: Vring | None = None) -> None:
        """The guest's driver is there: serve these rings. From any thread.

        Raises:
            UsageError: Rings are attached already, or the engine is closed.
        """
        with self._lock:
            if self._closed or self._transmit is not None:
                raise UsageError("the engine is closed" if self._closed else "rings are attached already")
            self._vrings = (receive, transmit, event)
            self._receive_ring = ReceiveRing(receive.queue, self._note_bad_chain)
            self._transmit = transmit.queue
            receive.queue.disable_notifications()
            self.failure = None
            for kick_fd in self._kick_fds():
                self._epoll.register(kick_fd, KICK_EVENTS)
        self._wake()
        for vring in (receive, transmit):
            if vring.queue.next_available:
                vring.call()  # what the device before us used may not have been told

    def detach(self) -> None:
        """The guest's driver is gone, or the rings are: forget them and every connection. From any thread.

        What the guest had sent before is delivered to the host programs. Buffers of the receive ring that
        were taken and not used count as not taken, so ``next_available`` of the queues says where to go on.
        """
        with self._lock:
            if self._transmit is None:
                return
            with suppress(QueueError):
                for _ in range(self._transmit.size // TRANSMIT_BATCH + 1):
                    if self.failure or not self._transmit_batch(self._transmit):
                        break
            self._forget_connections()
            for kick_fd in self._kick_fds():
                with suppress(OSError):
                    self._epoll.unregister(kick_fd)
            if self._receive_ring is not None:
                self._receive_ring.release()
            self._receive_ring = self._transmit = None
            self._vrings = ()
            self._calls.clear()
            self._resets.clear()
            self._event_due = self._starved = False
            self._bad_chains = 0
            self.failure = None
        self._wake()

    def reset_transport(self) -> None:
        """Tell the guest that every connection is lost, with a transport reset event (virtio 1.3 §5.10.6.7).

        For after a snapshot or a restart of the device. The guest reads its CID again and keeps its
        listeners.
        """
        with self._lock:
            self._forget_connections()
            self._resets.clear()
            self._event_due = True
        self._wake()

    def close(self) -> None:
        """Close every socket, and remove the socket files that this engine made. From any thread."""
        self.detach()
        with self._lock:
            if self._closed:
                return
            with self._wake_lock:
                self._closed = True
            if self._router is not None:
                self._router.remove(self)
            for handshake in list(self._handshakes.values()):
                self._drop_handshake(handshake)
            for link in [*self._links.values(), *self._lingering]:
                self._drop_socket(link)
            self._links.clear()
            while self._inbox:
                self._inbox.popleft()()
            for listener in self._listeners.values():
                listener.close()
            self._epoll.close()
            os.close(self._wake_fd)

    def counters(self) -> Counters:
        """A snapshot of what was counted."""
        with self._lock:
            return replace(
                self._counters,
                connections=len(self._links) + len(self._lingering),
                half_open=len(self._handshakes),
            )

    # Connections that the host opens

    def connect(self, port: int, socket_type: SocketType = SocketType.STREAM) -> socket.socket:
        """A blocking socket that is joined with the guest's ``port``. From any thread.

        What is written before the guest accepts is kept; if it refuses, the socket reads its end.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, UNIX_TYPES[socket_type])
        self.adopt(ours, port, socket_type)
        return theirs

    def adopt(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType = SocketType.STREAM,
        *,
        greeting: bytes = b"",
        source: tuple[int, int] | None = None,
        on_result: ConnectResult | None = None,
    ) -> None:
        """Join a connected socket, which the engine owns from now on, with the guest's ``guest_port``.

        From any thread. If the guest refuses, or limits do, the socket is closed.

        Args:
            sock: Stream sockets of any family, or SOCK_SEQPACKET ones of AF_UNIX.
            guest_port: The port in the guest.
            socket_type: What ``sock`` is.
            greeting: Written to ``sock`` when the guest accepts.
            source: CID and port that the guest sees; None: the host's, and a free one.
            on_result: Told whether the guest accepted.
        """
        sock.setblocking(False)
        cid, host_port = source or (self._source_cid, None)
        adoption = _Adoption(sock, guest_port, socket_type, greeting, cid, host_port, on_result)
        self._post(partial(self._connect_guest, adoption))

    def _post(self, job: Callable[[], None]) -> None:
        """Have ``job`` called by the next turn; a closed engine does it now, for it only cleans up."""
        self._inbox.append(job)
        self._wake()
        if self._closed:
            with self._lock, suppress(IndexError):
                self._inbox.popleft()()

    def _wake(self) -> None:
        with (
            self._wake_lock
        ):  # not the other one: two engines that wake each other must not wait for each other
            if not self._closed:
                with suppress(BlockingIOError):
                    os.eventfd_write(self._wake_fd, 1)

    # The turn

    def turn(self) -> float | None:
        """Do what there is to do, never blocking.

        Returns:
            Seconds after which to call again even if `fileno` is not readable: 0 when there is more to do
            now, None when there is no need.
        """
        wait: float | None = 0.0
        for _ in range(ROUNDS_PER_TURN):
            wait = self._round(0.0)
            if wait != 0.0:
                break
        return wait

    def run(self) -> None:
        """Take turns until `stop`, sleeping in between: for a thread of its own.

        It costs fewer system calls than waiting for `fileno` and calling `turn`.
        """
        wait: float | None = 0.0
        while not self._stopping:
            wait = self._round(wait)

    def stop(self) -> None:
        """Make `run` return. From any thread."""
        self._stopping = True
        self._wake()

    def _round(self, wait: float | None) -> float | None:
        """One look at everything, at the latest after ``wait`` seconds; returns how long the next may wait."""
        events = self._epoll.poll(wait, EPOLL_EVENTS_MAX) if not self._closed else []
        with self._lock:
            if self._closed:
                return None
            try:
                busy = self._serve_all(events)
            except QueueError as error:
                self._fail(str(error))
                busy = False
            calls, self._calls = self._calls, []
            self._counters.interrupts += len(calls)
            wait = 0.0 if busy else self._until_next_timer()
        for call in calls:
            call()
        return wait

    def _serve_all(self, events: list[tuple[int, int]]) -> bool:
        """Do what these events and the rings ask for; true if another look may find more.

        An event may be of a socket that `detach` has closed meanwhile. No other can have its number yet: only
        this thread makes new ones.
        """
        for fd, event in events:
            link = self._links_by_fd.get(fd)
            if link is not None:
                self._on_socket(link, event)
            elif fd in self._handshakes:
                self._on_handshake(self._handshakes[fd])
            elif fd in self._listeners:
                self._accepting.add(fd)
        if self._accepting:
            for fd in list(self._accepting):
                self._accept(fd, self._listeners[fd])
        if self._inbox:
            for _ in range(len(self._inbox)):
                self._inbox.popleft()()
        if self._timers:
            self._expire()
        transmit, ring = self._transmit, self._receive_ring
        busy = bool(self._accepting or self._inbox)
        if transmit is None or ring is None or self.failure:
            return busy
        busy |= self._transmit_batch(transmit)
        busy |= self._receive_batch(ring)
        if self._event_due:
            self._send_transport_reset()
        return busy or self._arm(transmit, ring)

    def _arm(self, transmit: SplitQueue, ring: ReceiveRing) -> bool:
        """Before sleep: ask for the kicks that matter; true if what they would tell is here already."""
        more = len(self._resets) < RESETS_MAX and transmit.enable_notifications()
        if self._starved:
            more |= ring.queue.enable_notifications()
        return more

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._forget_connections()
        self._resets.clear()

    def _note_bad_chain(self) -> None:
        self._counters.bad_chains += 1
        self._bad_chains += 1
        if self._bad_chains >= BAD_CHAINS_MAX and not self.failure:
            raise QueueError(f"{BAD_CHAINS_MAX} bad descriptor chains, the driver is broken", queue="vsock")

    # From the guest

    def _transmit_batch(self, queue: SplitQueue) -> bool:
        """Take packets from the transmit ring, and pass their data on; true if more are to be expected soon."""
        if len(self._resets) >= RESETS_MAX:
            return False
        try:
            chains = queue.pop_many(TRANSMIT_BATCH)
        except ChainError:
            self._publish(queue, 1)
            self._note_bad_chain()
            return True
        if not chains:
            return False
        queue.disable_notifications()
        links, guest_cid, unpack = self._links, self.config.guest_cid, HEADER.unpack_from
        header_bytes, rw, stream = HEADER_BYTES, int(Op.RW), int(SocketType.STREAM)  # an enum's cost time
        touched: list[Link] = []
        data_bytes = data_packets = 0
        for chain in chains:
            segments = chain.readable
            if not segments or len(segments[0]) < header_bytes:
                if not _join_header(chain):
                    self._counters.bad_packets += 1
                    continue
                segments = chain.readable
            first = segments[0]
            # Read once: the guest may rewrite it at any time.
            header = unpack(first)
            src_cid, host_cid, guest_port, host_port, length, kind, op, flags, buf_alloc, fwd_cnt = header
            link = links.get((guest_port, host_port, host_cid))
            if op != rw or link is None or src_cid != guest_cid or kind != link.kind:
                self._receive_control(Header(*header))
                continue
            if not link.receive_data(length, buf_alloc, fwd_cnt):
                self._counters.credit_violations += link.rx_cnt - link.fwd_cnt > link.buf_alloc
                self._finish(link, reset=True)
                continue
            if link.stalled:
                self._unstall(link)
            if len(first) == header_bytes and len(segments) == 2 and len(segments[1]) == length:
                del segments[0]
                payload = segments
            elif (cut := _payload(segments, length)) is not None:
                payload = cut
            else:
                self._counters.bad_packets += 1
                self._finish(link, reset=True)
                continue
            data_bytes += length
            data_packets += 1
            if kind != stream:
                self._receive_message(link, payload, flags)
                continue
            if not link.segments:
                touched.append(link)
            link.segments += payload
        for link in touched:
            if link.segments:
                self._deliver(link)
        queue.push_unwritten(chains)
        self._publish(queue, 1)
        counters = self._counters
        counters.bytes_to_host += data_bytes
        counters.packets_to_host += data_packets
        return len(chains) > 1  # a lone one may well be a question that waits for its answer

    def _publish(self, queue: SplitQueue, index: int) -> None:
        vring = self._vrings[index]
        if queue.publish() and vring is not None:
            self._calls.append(vring.call)

    def _receive_message(self, link: Link, payload: list[memoryview], flags: int) -> None:
        held = link.backlog_bytes
        for segment in payload:
            link.message += segment
        if len(link.message) > link.buf_alloc:
            self._counters.credit_violations += 1
            self._finish(link, reset=True)
            return
        try:
            if link.write_closed or link.socket is None:
                link.message.clear()
            elif flags & Sequence.END_OF_MESSAGE:
                link.end_message()
            link.note_forwarded()
        except OSError as error:
            self._host_refuses(link, error)
        self._note_held(link, held)

    def _deliver(self, link: Link) -> None:
        """Pass on what this batch brought for one stream."""
        held = link.backlog_bytes
        try:
            link.deliver()
        except OSError as error:
            self._host_refuses(link, error)
        self._note_held(link, held)

    def _flush(self, link: Link) -> None:
        """The host program reads again: pass on what is held for it."""
        held = link.backlog_bytes
        try:
            link.flush()
        except OSError as error:
            self._host_refuses(link, error)
        self._note_held(link, held)
        if link.lingering:
            if not link.backlog:
                self._drop_socket(link)
        elif not link.backlog:
            self._follow_guest_shutdown(link)

    def _note_held(self, link: Link, before: int) -> None:
        """Keep account of what is held, and send what the change made due."""
        counters = self._counters
        if link.backlog_bytes != before:
            counters.buffered_bytes += link.backlog_bytes - before
            if link.backlog_bytes > before and counters.buffered_bytes > self.config.buffered_bytes_max:
                counters.budget_resets += 1
                self._drop_backlog(link)
                self._finish(link, reset=True)
        if link.pending and not link.queued:
            self._queue(link)

    def _host_refuses(self, link: Link, error: OSError) -> None:
        """The host program takes no more; it may still send. A message that is too long ends everything."""
        if link.lingering or link.state is State.CLOSED:
            return
        if error.errno == errno.EMSGSIZE:
            self._finish(link, reset=True)
        elif link.state is State.ESTABLISHED:
            link.shut_down(Shutdown.RECEIVE)
            if link.shutdown_sent == Shutdown.BOTH:
                self._await_guest_close(link)
            self._queue(link)

    def _receive_control(self, header: Header) -> None:
        """Any packet but data of a connection that there is."""
        if header.src_cid != self.config.guest_cid:
            self._counters.bad_packets += 1
            return
        link = self._links.get((header.src_port, header.dst_port, header.dst_cid))
        if link is None:
            if header.op == Op.REQUEST:
                self._guest_connects(header)
            elif header.op != Op.RST:
                self._refuse(header)
            return
        if link.segments:
            self._deliver(link)  # what the guest sent before this
            if link.state is State.CLOSED:
                return
        if header.type != link.socket_type:
            self._finish(link, reset=True)
            return
        match link.receive(header.op, header.flags, header.buf_alloc, header.fwd_cnt):
            case Verdict.NOTHING:
                pass
            case Verdict.ACCEPTED:
                self._guest_accepted(link)
            case Verdict.SHUTDOWN:
                self._follow_guest_shutdown(link)
            case Verdict.RESET:
                self._finish(link, reset=False)
                return
            case Verdict.FINISHED | Verdict.VIOLATION:
                self._finish(link, reset=True)
                return
        if link.stalled:
            self._unstall(link)
        if link.pending:
            self._queue(link)

    def _refuse(self, header: Header) -> None:
        """Answer with RST (virtio 1.3 §5.10.6.4): the same type, the addresses the other way round."""
        self._counters.refused += header.op == Op.REQUEST
        self._resets.append(
            Header(
                header.dst_cid,
                header.src_cid,
                header.dst_port,
                header.src_port,
                0,
                header.type,
                Op.RST,
                0,
                0,
                0,
            ).pack()
        )

    def _follow_guest_shutdown(self, link: Link) -> None:
        """The guest has said that it will not send or not receive: the host program should see that."""
        if link.socket is None or link.state is not State.ESTABLISHED:
            return
        if link.guest_shutdown & Shutdown.SEND and not link.backlog and not link.write_closed:
            link.close_write()
        if link.guest_shutdown & Shutdown.RECEIVE:
            with suppress(OSError):
                link.socket.shutdown(socket.SHUT_RD)
            if link.hangup:
                self._host_closed(link)

    # The beginning of connections

    def _guest_connects(self, header: Header) -> None:
        kinds = (SocketType.STREAM, SocketType.SEQPACKET)[: 1 + self.config.seqpacket]
        if header.type not in kinds or len(self._links) + len(self._lingering) >= self.config.connections_max:
            self._refuse(header)
            return
        address = Address(header.src_port, header.dst_port, header.dst_cid)
        link = self._new_link(address, SocketType(header.type), State.CONNECTING)
        link.update_credit(header.buf_alloc, header.fwd_cnt)
        try:
            host = self._open_host_end(link)
            if isinstance(host, socket.socket):
                self._join(link, host)
        except OSError:
            del self._links[address]
            link.state = State.CLOSED
            self._refuse(header)
            return
        if isinstance(host, Future):
            host.add_done_callback(lambda future: self._post(partial(self._host_answered, link, future)))
        self._counters.opened_by_guest += 1
        if host is not None and not isinstance(host, Future) and _is_connected(host):
            self._host_accepted(link)
        else:
            self._schedule(link, self.config.connect_timeout_s)

    def _open_host_end(self, link: Link) -> "socket.socket | Future[socket.socket] | None":
        """What the guest's connection is joined with; None: `_sibling_answered` will tell.

        Raises:
            OSError: Nobody wants the connection.
        """
        guest_port, port, cid = link.address
        if cid not in self.config.local_cids:
            sibling = self._router.find(cid, seen_from=self) if self._router is not None else None
            if sibling is None:
                raise ConnectionRefusedError
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, UNIX_TYPES[link.socket_type] | socket.SOCK_NONBLOCK
            )
            self._join(link, ours)
            sibling.adopt(
                theirs,
                port,
                link.socket_type,
                source=(self.config.guest_cid, guest_port),
                on_result=lambda accepted: self._post(partial(self._sibling_answered, link, accepted)),
            )
            return None
        if self._host_side is not None:
            try:
                return self._host_side.connect(port, link.socket_type)
            except FileNotFoundError:
                if port not in self._services:
                    raise
        if port not in self._services:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair(socket.AF_UNIX, UNIX_TYPES[link.socket_type])
        ours.setblocking(False)
        self._services[port](theirs)
        return ours

    def _host_answered(self, link: Link, future: "Future[socket.socket]") -> None:
        try:
            sock = future.result()
        except Exception:  # noqa: BLE001 (whatever it is, the guest is refused)
            if link.state is State.CONNECTING:
                self._counters.refused += 1
                self._finish(link, reset=True)
            return
        if link.state is not State.CONNECTING:
            sock.close()
            return
        try:
            self._join(link, sock)
        except OSError:
            self._finish(link, reset=True)
            return
        self._host_accepted(link)

    def _sibling_answered(self, link: Link, accepted: bool) -> None:  # noqa: FBT001 (a callback)
        if link.state is not State.CONNECTING:
            return
        if accepted:
            self._host_accepted(link)
        else:
            self._counters.refused += 1
            self._finish(link, reset=True)

    def _host_accepted(self, link: Link) -> None:
        link.deadline = None
        link.accept()
        link.readable = True
        if link.socket is not None:
            self._epoll.modify(link.socket.fileno(), SOCKET_EVENTS)  # events were not looked at before
        self._follow_guest_shutdown(link)
        self._queue(link)

    def _connect_guest(self, adoption: _Adoption) -> None:
        sock, guest_port, socket_type, greeting, cid, host_port, on_result = adoption
        if host_port is None:
            host_port = self._free_host_port(guest_port)
        address = Address(guest_port, host_port, cid)
        full = len(self._links) + len(self._lingering) >= self.config.connections_max
        up = self._transmit is not None and not self.failure and not self._closed
        unknown_type = socket_type is SocketType.SEQPACKET and not self.config.seqpacket
        link = None
        if up and not full and not unknown_type and address not in self._links:
            link = self._new_link(address, socket_type, State.REQUESTED)
            try:
                self._join(link, sock)
            except OSError:
                del self._links[address]
                link = None
        if link is None:
            self._counters.refused += 1
            sock.close()
            if on_result is not None:
                on_result(False)
            return
        self._counters.opened_by_host += 1
        link.greeting, link.on_result = greeting, on_result
        self._schedule(link, self.config.connect_timeout_s)
        self._queue(link)

    def _guest_accepted(self, link: Link) -> None:
        link.deadline = None
        if link.greeting and link.socket is not None:
            with suppress(OSError):
                link.socket.send(link.greeting, socket.MSG_NOSIGNAL)
        if link.on_result is not None:
            link.on_result(True)
            link.on_result = None
        link.readable = True
        self._queue(link)

    def _free_host_port(self, guest_port: int) -> int:
        while True:
            self._last_host_port = HOST_PORTS[(self._last_host_port + 1) % len(HOST_PORTS)]
            if (guest_port, self._last_host_port, self._source_cid) not in self._links:
                return self._last_host_port

    def _new_link(self, address: Address, socket_type: SocketType, state: State) -> Link:
        left = self.config.buffered_bytes_max - self._counters.buffered_bytes
        link = Link(
            address,
            guest_cid=self.config.guest_cid,
            socket_type=socket_type,
            state=state,
            buf_alloc=max(min(self.config.buf_alloc, left // 4), min(self.config.buf_alloc, WINDOW_MIN)),
        )
        self._links[address] = link
        return link

    def _join(self, link: Link, sock: socket.socket) -> None:
        """Give the link its socket.

        Raises:
            OSError: The host is out of something; the socket is closed.
        """
        try:
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._epoll.register(sock.fileno(), SOCKET_EVENTS)
        except OSError:
            sock.close()
            raise
        link.socket = sock
        self._links_by_fd[sock.fileno()] = link

    # Host programs that connect

    def _accept(self, fd: int, listener: UnixListener) -> None:
        try:
            for _ in range(ACCEPTS_PER_ROUND):
                sock, _ = listener.socket.accept()
                self._greet(sock, listener.socket_type)
        except BlockingIOError:
            self._accepting.discard(fd)
        except OSError:  # no descriptors left: level with it later, not in a loop
            self._accepting.discard(fd)
            self._schedule(None, ACCEPT_RETRY_S)

    def _greet(self, sock: socket.socket, socket_type: SocketType) -> None:
        sock.setblocking(False)
        full = (
            len(self._handshakes) >= self.config.half_open_max
            or len(self._links) + len(self._lingering) >= self.config.connections_max
        )
        if self._transmit is None or full or not may_connect(sock, self.config.allowed_uids):
            self._counters.refused += 1
            sock.close()
            return
        handshake = Handshake(sock, socket_type, self._clock() + self.config.handshake_timeout_s)
        self._handshakes[sock.fileno()] = handshake
        self._on_handshake(handshake)
        if sock.fileno() in self._handshakes:
            self._epoll.register(sock.fileno(), SOCKET_EVENTS)
            handshake.registered = True
            heapq.heappush(self._timers, (handshake.deadline, next(self._timer_number), handshake))

    def _on_handshake(self, handshake: Handshake) -> None:
        try:
            port = handshake.read()
        except HandshakeError:
            self._counters.refused += 1
            self._drop_handshake(handshake)
            return
        if port is None:
            return
        sock = handshake.socket
        del self._handshakes[sock.fileno()]
        if handshake.registered:
            self._epoll.unregister(sock.fileno())  # so that joining tells again what has happened
        host_port = self._free_host_port(port)
        number = port if self.config.ok_port == "guest" else host_port
        greeting = b"OK %d\n" % number
        self._connect_guest(
            _Adoption(sock, port, handshake.socket_type, greeting, self._source_cid, host_port, None)
        )

    def _drop_handshake(self, handshake: Handshake) -> None:
        del self._handshakes[handshake.socket.fileno()]
        handshake.socket.close()

    # From the host

    def _on_socket(self, link: Link, events: int) -> None:
        if link.state is State.CONNECTING and link.socket is not None:
            self._host_connected(link)
            return
        if events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            link.readable = True
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                link.ending = True
            if events & (select.EPOLLHUP | select.EPOLLERR):
                link.hangup = True
                if link.lingering:
                    self._drop_socket(link)
                    return
                if link.guest_shutdown & Shutdown.RECEIVE:
                    self._host_closed(link)
                    return
            if not link.queued and link.state is State.ESTABLISHED:
                self._queue(link)
        if events & select.EPOLLOUT and link.backlog:
            self._flush(link)

    def _host_connected(self, link: Link) -> None:
        """Something happened to a socket that was connecting (or, to a sibling, is waiting for an answer)."""
        sock = link.socket
        if sock is None or link.address.host_cid not in self.config.local_cids:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._counters.refused += 1
            self._finish(link, reset=True)
        elif _is_connected(sock):
            self._host_accepted(link)

    def _receive_batch(self, ring: ReceiveRing) -> bool:
        """Fill receive buffers with what is due; true if that was something, and there may be more."""
        self._starved = False
        resets, ready = self._resets, self._ready
        budget = RECEIVE_BUFFERS_PER_ROUND
        while resets:
            if not ring.put(resets[0]):
                self._starved = True
                break
            resets.popleft()
            self._counters.resets += 1
            budget -= 1
        served = 0
        for _ in range(len(ready)):
            if self._starved or budget <= served:
                break
            link = ready.popleft()
            link.queued = False
            used, again = self._serve(ring, link)
            served += used
            if again:
                link.queued = True
                if self._starved:
                    ready.appendleft(link)
                else:
                    ready.append(link)
        self._publish(ring.queue, 0)
        return not self._starved and bool(ready or resets)

    def _serve(self, ring: ReceiveRing, link: Link) -> tuple[int, bool]:
        """What one link has for the guest: how many buffers it took, and whether there is more."""
        used = 0
        if link.state is State.CLOSED:
            return 0, False
        while link.pending:
            if not ring.peek(1):
                self._starved = True
                return used, True
            header = link.next_control()
            if header is not None:
                ring.put(header)
                used += 1
        if not link.may_read():
            return used, False
        try:
            if link.socket_type is SocketType.SEQPACKET:
                used += self._read_message(ring, link)
            else:
                used += self._read_stream(ring, link)
        except BlockingIOError:
            link.readable = False
        except OSError:
            self._finish(link, reset=True)
            return used, False
        return used, link.may_read() or bool(link.pending)

    def _read_stream(self, ring: ReceiveRing, link: Link) -> int:
        """Read from the host straight into receive buffers; returns how many.

        Raises:
            OSError: From the socket.
        """
        sock = link.socket
        credit, packets = link.credit, link.packet_credit
        if not credit or not packets or sock is None:
            self._stall(link)
            return 0
        buffers = ring.peek(min(link.width, packets))
        if not buffers:
            self._starved = True
            return 0
        views: list[memoryview] = []
        room = 0
        for buffer in buffers:
            views += buffer.data
            room += buffer.capacity
            if room >= credit:
                break
        if room > credit:
            views, room = _trim(views, credit), credit
        count = sock.recvmsg_into(views)[0]
        if not count:
            self._host_eof(link)
            return 0
        left, last, header = count, -1, b""
        lengths = []
        for buffer in buffers:
            length = buffer.capacity
            length = min(length, left)
            if length != last:
                header, last = link.header(Op.RW, length), length
            if len(buffer.first) >= HEADER_BYTES:
                buffer.first[:HEADER_BYTES] = header
            else:
                buffer.write_header(header)
            lengths.append(length)
            left -= length
            if not left:
                break
        ring.consume(lengths)
        used = len(lengths)
        link.sent(count, used)
        if count == room:
            if link.width < WIDTH_MAX:
                link.width *= 2
        else:
            link.readable = link.ending  # drained, unless the end comes next
            link.width = max(WIDTH_MIN, used)
        self._counters.bytes_to_guest += count
        self._counters.packets_to_guest += used
        return used

    def _read_message(self, ring: ReceiveRing, link: Link) -> int:
        """Send a message of the host in as many packets as it takes; returns how many now.

        Raises:
            OSError: From the socket.
        """
        sock = link.socket
        if sock is None:
            return 0
        if not link.outgoing:
            size = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            if size > link.peer_buf_alloc:
                raise OSError(errno.EMSGSIZE, "the guest cannot take a message of this size")
            link.outgoing = memoryview(sock.recv(max(size, 1)))
            if not size:
                if _at_end(sock):
                    self._host_eof(link)
                    return 0
                return self._send_piece(ring, link)
        used = 0
        while link.outgoing:
            if not link.credit or not link.packet_credit:
                self._stall(link)
                break
            sent = self._send_piece(ring, link)
            used += sent
            if not sent:
                break
        return used

    def _send_piece(self, ring: ReceiveRing, link: Link) -> int:
        buffers = ring.peek(1)
        if not buffers:
            self._starved = True
            return 0
        piece = link.outgoing[: min(buffers[0].capacity, link.credit)]
        link.outgoing = link.outgoing[len(piece) :]
        flags = 0 if link.outgoing else Sequence.END_OF_MESSAGE
        ring.put(link.header(Op.RW, len(piece), flags), piece)
        link.sent(len(piece), 1)
        self._counters.bytes_to_guest += len(piece)
        self._counters.packets_to_guest += 1
        return 1

    def _stall(self, link: Link) -> None:
        """There is data and no credit: ask once, and when it is packets that are too many, again later."""
        link.stalled = True
        link.pending |= 1 << Op.CREDIT_REQUEST
        if link.credit:
            self._schedule(link, STALL_PROBE_S)

    def _unstall(self, link: Link) -> None:
        if link.credit and link.packet_credit:
            link.stalled = False
            link.deadline = None
            self._queue(link)

    def _host_eof(self, link: Link) -> None:
        """The host program sends no more; if it has closed, it does not read either."""
        link.readable = False
        if link.hangup:
            self._host_closed(link)
        else:
            link.shut_down(Shutdown.SEND)
            if link.state is State.CLOSING:
                self._await_guest_close(link)
            self._queue(link)

    def _host_closed(self, link: Link) -> None:
        link.shut_down(Shutdown.BOTH)
        self._await_guest_close(link)
        self._queue(link)

    def _await_guest_close(self, link: Link) -> None:
        """Nothing is left to do but to hear the guest's RST; the socket is not needed for that."""
        self._close_socket(link)
        link.forwarded(0)
        self._schedule(link, self.config.close_timeout_s)

    # The end of connections

    def _queue(self, link: Link) -> None:
        if not link.queued:
            link.queued = True
            self._ready.append(link)

    def _finish(self, link: Link, *, reset: bool) -> None:
        """The connection is over for the guest; what it sent may still be on its way to the host."""
        if self._links.get(link.address) is link:
            del self._links[link.address]
        link.state = State.CLOSED
        link.deadline = None
        if reset:
            link.pending = 0
            self._resets.append(link.header(Op.RST))
        if link.on_result is not None:
            link.on_result(False)
            link.on_result = None
        link.segments.clear()
        if link.backlog and link.socket is not None and not link.hangup:
            link.lingering = True
            self._lingering.add(link)
            self._schedule(link, self.config.linger_timeout_s)
        else:
            self._drop_socket(link)

    def _forget_connections(self) -> None:
        for link in list(self._links.values()):
            if link.segments:
                self._deliver(link)
            if link.state is not State.CLOSED:
                self._finish(link, reset=False)
        self._ready.clear()

    def _drop_socket(self, link: Link) -> None:
        link.lingering = False
        link.state = State.CLOSED
        self._lingering.discard(link)
        self._close_socket(link)

    def _close_socket(self, link: Link) -> None:
        self._drop_backlog(link)
        if link.socket is not None:
            del self._links_by_fd[link.socket.fileno()]
            link.socket.close()
            link.socket = None

    def _drop_backlog(self, link: Link) -> None:
        self._counters.buffered_bytes -= link.backlog_bytes
        link.backlog.clear()
        link.backlog_bytes = 0

    # Time

    def _schedule(self, link: Link | None, delay_s: float) -> None:
        deadline = self._clock() + delay_s
        if link is not None:
            link.deadline = deadline
        heapq.heappush(self._timers, (deadline, next(self._timer_number), link))

    def _expire(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            deadline, _, what = heapq.heappop(self._timers)
            if what is None:
                self._accepting.update(self._listeners)
            elif isinstance(what, Handshake):
                if self._handshakes.get(what.socket.fileno()) is what:
                    self._counters.refused += 1
                    self._drop_handshake(what)
            elif what.deadline == deadline:
                self._link_expired(what)

    def _link_expired(self, link: Link) -> None:
        link.deadline = None
        if link.lingering:
            self._drop_socket(link)
        elif link.stalled and link.state is State.ESTABLISHED:
            link.pending |= 1 << Op.CREDIT_REQUEST
            self._queue(link)
            self._schedule(link, STALL_PROBE_S)
        elif link.state is not State.CLOSED:
            self._counters.refused += link.state in {State.REQUESTED, State.CONNECTING}
            self._finish(link, reset=True)

    def _until_next_timer(self) -> float | None:
        timers = self._timers
        while timers:
            deadline, _, what = timers[0]
            if (
                what is None
                or (isinstance(what, Link) and what.deadline == deadline)
                or (isinstance(what, Handshake) and self._handshakes.get(what.socket.fileno()) is what)
            ):
                return max(0.0, deadline - self._clock())
            heapq.heappop(timers)
        return None

    # The event queue

    def _kick_fds(self) -> list[int]:
        return [vring.kick_fd for vring in self._vrings if vring is not None and vring.kick_fd >= 0]

    def _send_transport_reset(self) -> None:
        vring = self._vrings[2]
        if vring is None:
            self._event_due = False
            return
        try:
            chain = vring.queue.pop()
        except ChainError:
            self._publish(vring.queue, 2)
            self._note_bad_chain()
            return
        if chain is None:
            vring.queue.enable_notifications()
            return
        event = (EVENT_TRANSPORT_RESET & COUNTER_MASK).to_bytes(EVENT_BYTES, "little")
        written = 0
        for segment in chain.writable:
            part = event[written : written + len(segment)]
            segment[: len(part)] = part
            written += len(part)
        vring.queue.push(chain.head, written)
        self._event_due = False
        self._publish(vring.queue, 2)


def _join_header(chain: Chain) -> bool:
    """Make the header of a packet one piece, when the driver split it; false if there is none."""
    joined = b"".join(chain.readable)
    if len(joined) < HEADER_BYTES:
        return False
    chain.readable = [memoryview(joined)]
    return True


def _payload(segments: list[memoryview], length: int) -> list[memoryview] | None:
    """The ``length`` bytes after the header; None if there are not so many."""
    first = segments[0]
    pieces = [first[HEADER_BYTES:], *segments[1:]] if len(first) > HEADER_BYTES else segments[1:]
    have = sum(map(len, pieces))
    if have < length:
        return None
    return pieces if have == length else _trim(pieces, length)


def _trim(views: list[memoryview], length: int) -> list[memoryview]:
    """The first ``length`` bytes of these."""
    trimmed = []
    for view in views:
        if not length:
            break
        trimmed.append(view[:length])
        length -= len(trimmed[-1])
    return trimmed


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _at_end(sock: socket.socket) -> bool:
    """Whether a message of no bytes was the end, rather than a message."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
