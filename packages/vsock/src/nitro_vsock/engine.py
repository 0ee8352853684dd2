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

import heapq
import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from nitro_vsock.config import VsockConfig
from nitro_vsock.connection import State
from nitro_vsock.counters import Counters
from nitro_vsock.errors import ChainError, QueueError, UsageError
from nitro_vsock.handshake import Handshake, HandshakeError, take_line
from nitro_vsock.host_side import (
    SEQPACKET_SUFFIX,
    UNIX_TYPES,
    HostSide,
    UnixHostSide,
    UnixListener,
    allowed_users,
    may_connect,
)
from nitro_vsock.link import Link
from nitro_vsock.links import SOCKET_EVENTS, Links
from nitro_vsock.opening import Adoption, ConnectResult, Opener, Service
from nitro_vsock.packet import (
    EVENT_BYTES,
    EVENT_TRANSPORT_RESET,
    VSOCK_F_SEQPACKET,
    VSOCK_F_STREAM,
    Shutdown,
    SocketType,
)
from nitro_vsock.receive import Receiver
from nitro_vsock.receive_ring import ReceiveRing
from nitro_vsock.router import VsockRouter
from nitro_vsock.split_queue import SplitQueue, SplitQueueState
from nitro_vsock.transmit import Transmitter

ROUNDS_PER_TURN: Final = 16
"""Then the caller gets a word in, and calls again at once."""
EPOLL_EVENTS_MAX: Final = 256

BAD_CHAINS_MAX: Final = 1024
"""Then the guest's driver is taken for broken, and the device stops."""

SHORT_SLEEPS: Final = 3
"""A sleep is short up to so many times the time to look for events instead; waking up is a part of it."""

LATE_ROUNDS_MAX: Final = 16
"""How many looks at everything, between sleeps, the guest may wait to hear that its packets were taken."""

ACCEPT_RETRY_S: Final = 0.5
"""How long not to accept after the host ran out of descriptors."""

KICK_EVENTS: Final = select.EPOLLIN | select.EPOLLET
"""Every write to an eventfd makes a new edge, so it need not be read."""


class Vring(NamedTuple):
    """A started virtqueue: the ring, the eventfd that the driver's kicks write, and how to interrupt it."""

    queue: SplitQueue
    kick_fd: int
    call: Callable[[], None]


@dataclass(frozen=True, slots=True)
class VsockState:
    """How far the rings of a vsock device were served: what a saved machine keeps of the device.

    Connections are not a part of it, because their other ends are sockets of programs that go on without
    the saved machine.
    """

    receive: SplitQueueState
    transmit: SplitQueueState
    event: SplitQueueState | None = None
    """`None` for a driver that set up no event queue."""


class _Rings(NamedTuple):
    """The rings of a guest's driver, and what serves them."""

    receiver: Receiver
    transmitter: Transmitter
    receive: Vring
    transmit: Vring
    event: Vring | None

    def kick_fds(self) -> list[int]:
        vrings = (self.receive, self.transmit, self.event)
        return [vring.kick_fd for vring in vrings if vring is not None and vring.kick_fd >= 0]


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
        self._router = router
        self._clock = clock
        self._spin_s = config.spin_s
        self._spin_pays = False
        self._users = allowed_users(config.allowed_uids)
        self._lock = threading.RLock()
        self._wake_lock = threading.Lock()
        self._closed = self._stopping = self._running = False
        self._rings: _Rings | None = None
        self._calls: list[Callable[[], None]] = []
        self._late_call: Callable[[], None] | None = None
        self._late_rounds = 0
        self._bad_chains = 0  # since the rings were attached
        self._detached = 0  # how many times, or connections were forgotten otherwise
        self._event_due = False
        self._handshakes: dict[int, Handshake] = {}
        self._timers: list[tuple[float, int, Link | Handshake | None]] = []
        self._timer_number = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()

        path = config.uds_path
        host_side = host_side or (UnixHostSide(path) if path else None)
        if router is not None:
            router.add(self)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, KICK_EVENTS)
        self._counters = Counters()
        self._links = Links(config, self._epoll, self._counters, self._schedule)
        self._opener = Opener(self._links, host_side, services or {}, self._find_sibling, self._post)
        self._listeners: dict[int, UnixListener] = {}
        try:
            if path is not None:
                self._listen(path, SocketType.STREAM)
                if config.seqpacket:
                    self._listen(path.with_name(path.name + SEQPACKET_SUFFIX), SocketType.SEQPACKET)
        except BaseException:
            self.close()
            raise

    def _listen(self, path: Path, socket_type: SocketType) -> None:
        listener = UnixListener(path, socket_type, users=self._users)
        self._listeners[listener.socket.fileno()] = listener
        self._epoll.register(listener.socket.fileno(), select.EPOLLIN)

    def _find_sibling(self, cid: int) -> "VsockEngine | None":
        return self._router.find(cid, seen_from=self) if self._router is not None else None

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
            UsageError: Rings are attached already, the engine is closed, or a kick descriptor is no eventfd.
        """
        with self._lock:
            self._check_attachable()
            receive.queue.disable_notifications()
            ring = ReceiveRing(receive.queue, self._note_bad_chain)
            self._rings = _Rings(
                Receiver(self._links, ring),
                Transmitter(self._links, transmit.queue, self._opener, self._note_bad_chain),
                receive,
                transmit,
                event,
            )
            self.failure = None
            watched: list[int] = []
            try:
                for kick_fd in self._rings.kick_fds():
                    self._epoll.register(kick_fd, KICK_EVENTS)
                    watched.append(kick_fd)
            except OSError as error:
                for kick_fd in watched:
                    self._epoll.unregister(kick_fd)
                self._rings = None
                raise UsageError(
                    f"cannot wait for kicks at descriptor {kick_fd}: {error.strerror}"
                ) from error
            self._opener.open = True
        self._wake()
        for vring in (receive, transmit):
            if vring.queue.next_available:
                vring.call()  # what the device before us used may not have been told

    def _check_attachable(self) -> None:
        if self._closed or self._rings is not None:
            raise UsageError("the engine is closed" if self._closed else "rings are attached already")

    def detach(self, *, keep_connections: bool = False) -> None:
        """The guest's driver is gone, or the rings are: forget them and every connection. From any thread.

        What the guest had sent before is delivered to the host programs. Buffers of the receive ring that
        were taken and not used count as not taken, so ``next_available`` of the queues says where to go on.

        Args:
            keep_connections: The guest is only paused: it will go on with the same rings, at the same place.
        """
        with self._lock:
            self._detached += 1
            rings, self._rings = self._rings, None
            if rings is None:
                if not keep_connections:
                    self._event_due = False
                    self._links.forget_all()
                return
            with suppress(QueueError):
                self._take_all(rings)
                if rings.transmit.queue.publish():
                    self._late_call = rings.transmit.call
            if self._late_call is not None:
                self._calls.append(self._late_call)
            calls = self._calls if keep_connections else []  # a guest that goes on waits for these
            self._opener.open = False
            if not keep_connections:
                self._links.forget_all()
            for kick_fd in rings.kick_fds():
                with suppress(OSError):
                    self._epoll.unregister(kick_fd)
            rings.receiver.ring.release()
            self._calls = []
            self._late_call, self._late_rounds = None, 0
            # A guest that is only paused still has to hear that its connections are gone.
            self._event_due = self._event_due and keep_connections
            self._bad_chains = 0
            self.failure = None
        for call in calls:
            call()
        self._wake()

    def _take_all(self, rings: _Rings) -> None:
        """Take what is in the transmit ring, at most what it holds."""
        queue = rings.transmit.queue
        first = queue.next_available
        while not self.failure and (queue.next_available - first) & 0xFFFF < queue.size:
            before = queue.next_available
            rings.transmitter.batch()
            if queue.next_available == before:
                break

    def state(self) -> VsockState | None:
        """How far the attached rings were served; `None` while there are none. From any thread.

        The engine goes on as before. Save the guest's memory before it takes its next turn: ask for the state
        while no thread is in `turn` or `run`.
        """
        with self._lock:
            rings = self._rings
            if rings is None:
                return None
            receive = rings.receive.queue.state()
            unused = rings.receiver.ring.held
            return VsockState(
                # Buffers that were taken and hold nothing yet count as not taken, or they would be lost.
                replace(receive, next_available=(receive.next_available - unused) & 0xFFFF),
                rings.transmit.queue.state(),
                None if rings.event is None else rings.event.queue.state(),
            )

    def restore(
        self, state: VsockState, *, receive: Vring, transmit: Vring, event: Vring | None = None
    ) -> None:
        """Serve the rings of a saved machine from where they were: `attach` for a guest that goes on.

        Its connections ended with the machine that was saved. So the guest is sent a transport reset event
        (virtio 1.3 §5.10.6.7): it closes them, reads its CID again and keeps its listeners.

        Args:
            state: What `state` returned when the machine was saved.
            receive: The receive queue, made anew with the layout and features of the saved one.
            transmit: The transmit queue.
            event: The event queue, if the driver had set up one.

        Raises:
            UsageError: As `attach`.
        """
        with self._lock:
            self._check_attachable()
        receive.queue.restore(state.receive)
        transmit.queue.restore(state.transmit)
        if event is not None and state.event is not None:
            event.queue.restore(state.event)
        self.reset_transport()
        self.attach(receive=receive, transmit=transmit, event=event)

    def reset_transport(self) -> None:
        """Tell the guest that every connection is lost, with a transport reset event (virtio 1.3 §5.10.6.7).

        For after a snapshot or a restart of the device; before `attach`, lest what the guest opens meanwhile
        is lost as well. The guest reads its CID again and keeps its listeners.
        """
        with self._lock:
            self._detached += 1
            self._links.forget_all()
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
            for link in [*self._links.by_address.values(), *self._links.lingering]:
                self._links.drop_socket(link)
            self._links.by_address.clear()
            while self._inbox:
                self._inbox.popleft()()
            for listener in self._listeners.values():
                listener.close()
            with self._wake_lock:
                if self._running:
                    os.eventfd_write(self._wake_fd, 1)  # `run` does the rest
                else:
                    self._release()

    def _release(self) -> None:
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake_fd)

    def counters(self) -> Counters:
        """A snapshot of what was counted."""
        with self._lock:
            return replace(
                self._counters,
                connections=len(self._links),
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
        cid, host_port = source or (self._opener.source_cid, None)
        adoption = Adoption(
            sock,
            guest_port,
            socket_type,
            greeting=greeting,
            host_cid=cid,
            host_port=host_port,
            on_result=on_result,
        )
        self._post(partial(self._opener.connect_guest, adoption))

    def _post(self, job: Callable[[], None]) -> None:
        """Have ``job`` called by the next turn; a closed engine does it now, for it only cleans up."""
        self._inbox.append(job)
        self._wake()
        if self._closed:
            with suppress(IndexError):
                self._inbox.popleft()()

    def _wake(self) -> None:
        with self._wake_lock:  # not the other one: engines that wake each other must not wait for each other
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

        It costs fewer system calls than waiting for `fileno` and calling `turn`. Not for the main thread:
        Python runs the handlers of signals there, and `run` seldom gives it the opportunity.
        """
        with self._wake_lock:
            self._running = True
        try:
            wait: float | None = 0.0
            while not (self._stopping or self._closed):
                wait = self._round(wait)
        finally:
            self._spin_pays = False
            self._call_late()
            with self._wake_lock:
                self._running = False
                if self._closed:
                    self._release()

    def stop(self) -> None:
        """Make `run` return. From any thread."""
        self._stopping = True
        self._wake()

    def _round(self, wait: float | None) -> float | None:
        """One look at everything, after at most ``wait`` seconds; returns how long the next may wait."""
        detached = self._detached
        try:
            if wait != 0.0 and self._spin_s:
                events = self._spin(wait)
            else:
                events = self._epoll.poll(wait, EPOLL_EVENTS_MAX)
        except (OSError, ValueError):
            if not self._closed:
                raise
            return None
        with self._lock:
            if self._closed:
                return None
            if detached != self._detached:
                events = self._events_again(events)
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

    def _events_again(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Another thread has detached since: a socket may be gone, and a new one have its number.

        What was seen of sockets is dropped, and epoll asked to tell it again.
        """
        for fd, _ in events:
            link, handshake = self._links.by_fd.get(fd), self._handshakes.get(fd)
            if link is not None:
                self._links.look_again(link)
            elif handshake is not None and handshake.registered:
                self._epoll.modify(fd, SOCKET_EVENTS)
        return [(fd, event) for fd, event in events if fd in self._listeners]

    def _spin(self, wait: float | None) -> list[tuple[int, int]]:
        """Look for events for a while before going to sleep, as long as that is worth it.

        It is until a look finds nothing, and again once a sleep turns out to have been a short one.
        """
        poll, now = self._epoll.poll, time.perf_counter
        begin = now()
        if self._spin_pays:
            end = begin + self._spin_s
            while begin < end:
                events: list[tuple[int, int]] = poll(0, EPOLL_EVENTS_MAX)
                if events:
                    return events
                begin = now()
        self._call_late()
        events = poll(wait, EPOLL_EVENTS_MAX)
        self._spin_pays = now() - begin < SHORT_SLEEPS * self._spin_s
        return events

    def _call_late(self) -> None:
        """Raise the interrupt that was put off, before we sleep."""
        with self._lock:
            call, self._late_call, self._late_rounds = self._late_call, None, 0
            self._counters.interrupts += call is not None
        if call is not None:
            call()

    def _serve_all(self, events: list[tuple[int, int]]) -> bool:
        """Do what these events and the rings ask for; true if another look may find more."""
        accepting: list[UnixListener] = []
        for fd, event in events:
            link = self._links.by_fd.get(fd)
            if link is not None:
                self._on_socket(link, event)
            elif fd in self._handshakes:
                self._on_handshake(self._handshakes[fd])
            elif fd in self._listeners:
                accepting.append(self._listeners[fd])
        # Not before: a new socket may get the number of one that was closed just now.
        for listener in accepting:
            self._accept(listener)
        if self._inbox:
            for _ in range(len(self._inbox)):
                self._inbox.popleft()()
        if self._timers:
            self._expire()
        busy = bool(self._inbox)
        rings = self._rings
        if rings is None or self.failure:
            return busy
        more = rings.transmitter.batch()
        if rings.transmit.queue.publish():
            self._late_call = rings.transmit.call
        busy |= more
        busy |= rings.receiver.batch()
        self._publish(rings.receive)
        if self._event_due:
            busy |= self._send_transport_reset(rings.event)
        busy = busy or self._arm(rings)
        if self._late_call is not None:
            # That one packet was taken is no news to wake the guest for, if an answer may be on its way.
            self._late_rounds += 1
            if busy or not self._spin_pays or self._late_rounds > LATE_ROUNDS_MAX:
                self._calls.append(self._late_call)
                self._late_call, self._late_rounds = None, 0
        return busy

    def _arm(self, rings: _Rings) -> bool:
        """Before sleep: ask for the kicks that matter; true if what they would tell is here already."""
        more = not self._links.choked and rings.transmit.queue.enable_notifications()
        if rings.receiver.starved:
            more |= rings.receive.queue.enable_notifications()
        return more

    def _publish(self, vring: Vring) -> None:
        if vring.queue.publish():
            self._calls.append(vring.call)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._opener.open = False
        self._links.forget_all()

    def _note_bad_chain(self) -> None:
        self._counters.bad_chains += 1
        self._bad_chains += 1
        if self._bad_chains >= BAD_CHAINS_MAX and not self.failure:
            raise QueueError(f"{BAD_CHAINS_MAX} bad descriptor chains, the driver is broken", queue="vsock")

    # Host programs that connect

    def _accept(self, listener: UnixListener) -> None:
        """Take one; if there are more, the next look at the events tells."""
        try:
            sock, _ = listener.socket.accept()
            self._greet(sock, listener.socket_type)
        except BlockingIOError:
            pass
        except OSError:  # nothing left of descriptors or the like: level with it later, not in a loop
            self._epoll.modify(listener.socket.fileno(), 0)
            self._schedule(None, ACCEPT_RETRY_S)

    def _greet(self, sock: socket.socket, socket_type: SocketType) -> None:
        sock.setblocking(False)
        full = len(self._handshakes) >= self.config.half_open_max or self._links.full
        if not self._opener.open or full or not may_connect(sock, self._users):
            self._counters.refused += 1
            sock.close()
            return
        handshake = Handshake(sock, socket_type, self._clock() + self.config.handshake_timeout_s)
        self._handshakes[sock.fileno()] = handshake
        self._on_handshake(handshake)
        if sock.fileno() in self._handshakes:
            try:
                self._epoll.register(sock.fileno(), SOCKET_EVENTS)
            except OSError:
                self._drop_handshake(handshake)
                raise
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
        host_port = self._opener.free_host_port(port)
        number = port if self.config.ok_port == "guest" else host_port
        self._opener.connect_guest(
            Adoption(
                sock,
                port,
                handshake.socket_type,
                greeting=b"OK %d\n" % number,
                host_cid=self._opener.source_cid,
                host_port=host_port,
                on_result=None,
                unread_line=handshake.unread,
            )
        )

    def _drop_handshake(self, handshake: Handshake) -> None:
        del self._handshakes[handshake.socket.fileno()]
        if handshake.unread:
            take_line(handshake.socket, handshake.unread)
        handshake.socket.close()

    # From the host

    def _on_socket(self, link: Link, events: int) -> None:
        if link.state == State.CONNECTING and link.socket is not None:
            self._opener.host_connected(link)
            return
        if events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            link.readable = True
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                link.ending = True
            if events & (select.EPOLLHUP | select.EPOLLERR):
                link.hangup = True
                if link.lingering:
                    self._links.drop_socket(link)
                    return
                if link.guest_shutdown & Shutdown.RECEIVE:
                    self._links.host_closed(link)
                    return
            if not link.queued and link.state == State.ESTABLISHED:
                self._links.queue(link)
        if events & select.EPOLLOUT and link.holding:
            self._links.flush(link)

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
                for fd in self._listeners:
                    self._epoll.modify(fd, select.EPOLLIN)
            elif isinstance(what, Handshake):
                if self._handshakes.get(what.socket.fileno()) is what:
                    self._counters.refused += 1
                    self._drop_handshake(what)
            elif what.deadline == deadline:
                self._links.expire(what)

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

    def _send_transport_reset(self, vring: Vring | None) -> bool:
        """Send the event that is due, or wait for a buffer; true if another look may find one."""
        if vring is None:
            self._event_due = False
            return False
        try:
            chain = vring.queue.pop()
        except ChainError:
            self._publish(vring)
            self._note_bad_chain()
            return True
        if chain is None:
            return vring.queue.enable_notifications()
        event = EVENT_TRANSPORT_RESET.to_bytes(EVENT_BYTES, "little")
        written = 0
        for segment in chain.writable:
            part = event[written : written + len(segment)]
            segment[: len(part)] = part
            written += len(part)
        vring.queue.push(chain.head, written)
        self._event_due = False
        self._publish(vring)
        return False
