"""The vsock device of one guest: rings on one side, sockets on the other. A turn moves what there is to move.

Everything waits on one epoll object of the engine's own, edge-triggered and registered once per socket. So a
turn costs a handful of system calls however many connections there are: one to learn what happened, and one
for each connection that has something to move, whatever the number of packets.

A turn takes a batch from the transmit ring (guest to host) first and then fills receive buffers (host to
guest), because what was transmitted frees credit, which the packets to the guest report. A turn never waits.
What a slow host program does not take is held, up to the guest's credit; a guest without buffers or credit is
simply not read for. Nothing that a guest does raises an exception here.

Interrupts are raised after the engine's lock was released, because raising one may take locks that the
caller of `attach` holds.
"""

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.coalescing import EVENTS_MAX, Coalescing
from nitro_vsock.device.connections import Connections
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.dialing import ConnectRequest, ConnectResult, Service
from nitro_vsock.device.lane import Lanes
from nitro_vsock.device.rings import Pace, Rings, Vring
from nitro_vsock.device.router import Sibling, VsockRouter
from nitro_vsock.device.state import VsockState
from nitro_vsock.device.timers import NEVER
from nitro_vsock.errors import QueueError, UsageError
from nitro_vsock.host.sides import HostSide
from nitro_vsock.host.unix import UNIX_TYPES, UnixHostSide
from nitro_vsock.virtio.features import VSOCK_F_SEQPACKET, VSOCK_F_STREAM

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

ROUNDS_PER_TURN: Final = 16
"""After so many rounds `VsockEngine.turn` returns, so that its caller can do something else in between."""

ROUNDS_PER_ASSIST: Final = 4
"""After so many rounds `VsockEngine.assist` returns, so that the guest goes on."""

LOOKS_AT_THE_DOOR: Final = 2
"""How often a round looks again for host programs that connect, after it has let some in. Then it goes on to
the data of others."""

KICK_EVENTS: Final = select.EPOLLIN | select.EPOLLET
"""Every write to an eventfd makes a new edge, so it need not be read."""


class VsockEngine:
    """The vsock device of one guest; the package's docstring shows how to run one.

    Args:
        config: The guest's address, where the host side is, limits.
        services: Handlers of ports that the guest may connect to and that are not unix sockets. A handler
            gets a connected, blocking socket and owns it. It must neither block nor raise.
        host_side: What other guest connections are joined with; `None`: the unix sockets that ``config``
            names.
        router: The other guests of this process.
        clock: Seconds, monotonic.

    Raises:
        HostError: The unix socket cannot be listened on.
        UsageError: Another engine of ``router`` has this CID.
    """

    def __init__(
        self,
        config: "VsockSettings",
        *,
        services: Mapping[int, Service] | None = None,
        host_side: HostSide | None = None,
        router: VsockRouter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.failure: str | None = None
        """Why the rings are not served any more, until `detach`; `None` while all is well."""
        self._router = router
        self._lock = threading.RLock()
        self._wake_lock = threading.Lock()
        self._closed = self._stopping = self._running = False
        self._rings: Rings | None = None
        self._detached = 0
        """How many times connections were forgotten while another thread may have been waiting for events."""
        self._event_due = False
        """The guest has to be told that its connections are lost."""
        self._promised: float = NEVER
        """When the caller of `turn` comes again by itself, if `fileno` is not readable before."""
        self._inbox: deque[Callable[[], None]] = deque()
        """What other threads want to have called in the next turn."""

        # The router comes first, because it may refuse, and then nothing has been opened that had to be
        # closed.
        path = config.uds_path
        host_side = host_side or (UnixHostSide(path) if path else None)
        if router is not None:
            router.add(self)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, KICK_EVENTS)
        spin_s = (config.spin_us or 0) / 1e6
        self._coalescing = Coalescing(spin_s, self._epoll.poll, clock, self._before_sleep)
        self._connections = Connections(
            config,
            self._epoll,
            clock,
            host_side=host_side,
            services=services or {},
            find_sibling=self._find_sibling,
            post=self._post,
        )
        self._counters = self._connections.counters
        self._dialer = self._connections.dialer
        try:
            if path is not None:
                self._connections.door.listen(path)
        except BaseException:
            self.close()
            raise

    def _find_sibling(self, cid: int) -> Sibling | None:
        return self._router.find(cid, seen_from=self) if self._router is not None else None

    # What siblings and a router see

    @property
    def guest_cid(self) -> int:
        """The guest's address."""
        return self.config.guest_cid

    @property
    def groups(self) -> frozenset[str]:
        """Guests of one process reach each other if they have a group in common."""
        return self.config.groups

    # What a transport asks a device

    @property
    def features(self) -> int:
        """The device's feature bits that belong to vsock (virtio 1.3 §5.10.3)."""
        return VSOCK_F_STREAM | (VSOCK_F_SEQPACKET if self.config.seqpacket else 0)

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
            rings = Rings(
                self.config,
                self._connections,
                self._coalescing,
                receive=receive,
                transmit=transmit,
                event=event,
            )
            # All kick descriptors or none: an engine that waits for half of its rings would only seem to
            # work.
            watched: list[int] = []
            try:
                for kick_fd in rings.kick_fds():
                    self._epoll.register(kick_fd, KICK_EVENTS)
                    watched.append(kick_fd)
            except OSError as error:
                for kick_fd in watched:
                    self._epoll.unregister(kick_fd)
                raise UsageError(
                    f"cannot wait for kicks at descriptor {kick_fd}: {error.strerror}"
                ) from error
            self._rings = rings
            self.failure = None
            self._dialer.guest_present = True
        self._wake()
        rings.interrupt()

    def _check_attachable(self) -> None:
        if self._closed or self._rings is not None:
            raise UsageError("the engine is closed" if self._closed else "rings are attached already")

    def detach(self, *, keep_connections: bool = False) -> None:
        """The guest's driver is gone, or the rings are: forget them and every connection. From any thread.

        What the guest had sent before is delivered to the host programs. Buffers of the receive ring that
        were taken and not used count as not taken, so ``next_available`` of the queues says where to go on.

        Args:
            keep_connections: The guest is only paused, and will go on with the same rings at the same place.
        """
        with self._lock:
            # Whoever waits for events in `_round` must not take them for those of later sockets.
            self._detached += 1
            rings, self._rings = self._rings, None
            if rings is None:
                if not keep_connections:
                    self._event_due = False
                    self._connections.forget_all()
                return
            # What the guest wrote before it went counts as sent, even if nobody has looked at it yet.
            if self.failure is None:
                with suppress(QueueError):
                    rings.take_all()
            calls = rings.take_calls()
            held = self._coalescing.take()
            if held is not None:
                calls.append(held)
            self._dialer.guest_present = False
            if not keep_connections:
                self._connections.forget_all()
                self._event_due = False
                calls = []  # a guest that is gone waits for no interrupt
            for kick_fd in rings.kick_fds():
                with suppress(OSError):  # whoever gave it may have closed it already
                    self._epoll.unregister(kick_fd)
            rings.release()
            self.failure = None
        # After the lock, like all interrupts: the machine may hold its own lock while it detaches.
        for call in calls:
            call()
        self._wake()

    def state(self) -> VsockState | None:
        """How far the attached rings were served; `None` while there are none. From any thread.

        The engine goes on as before. Save the guest's memory before it takes its next turn: ask for the state
        while no thread is in `turn` or `run`.
        """
        with self._lock:
            return None if self._rings is None else self._rings.state()

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

        This is for a device that was saved or started again. Call it before `attach`, because it ends what
        the guest opened until now. The guest reads its CID again and keeps its listeners.
        """
        with self._lock:
            self._detached += 1
            self._connections.forget_all()
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
            self._connections.close()
            # What others have posted may hold sockets, and closing is how each of these jobs ends now.
            while self._inbox:
                self._inbox.popleft()()
            # The wake lock decides who releases the descriptors: `run`, if it is under way, or we.
            with self._wake_lock:
                if self._running:
                    os.eventfd_write(self._wake_fd, 1)  # `run` is waiting for epoll, and releases it
                else:
                    self._release()

    def _release(self) -> None:
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake_fd)

    def counters(self) -> Counters:
        """A copy of the numbers, which does not change any more. From any thread."""
        with self._lock:
            return replace(
                self._counters,
                connections=len(self._connections.table),
                half_open=len(self._connections.door.handshakes),
            )

    # Connections that the host opens

    def connect(self, port: int, socket_type: SocketType = SocketType.STREAM) -> socket.socket:
        """A blocking socket that is joined with the guest's ``port``. From any thread.

        What is written before the guest accepts is kept. If the guest refuses, the socket reads its end.
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
        lanes: Lanes | None = None,
        on_result: ConnectResult | None = None,
    ) -> None:
        """Join a connected socket, which the engine owns from now on, with the guest's ``guest_port``.

        From any thread. If the guest refuses, or limits do, the socket is closed.

        Args:
            sock: Stream sockets of any family, or SOCK_SEQPACKET ones of AF_UNIX.
            guest_port: The port in the guest.
            socket_type: What ``sock`` is.
            greeting: Written to ``sock`` when the guest accepts.
            source: CID and port that the guest sees; `None`: the host's CID, and a free port.
            lanes: Where credit comes from if another guest is at the other end; only engines that join two
                guests give them. Messages on ``sock`` then have a byte behind them that says whether they end
                a record.
            on_result: Told whether the guest accepted, in the thread of `turn`.
        """
        cid, host_port = source or (self._dialer.source_cid, None)
        request = ConnectRequest(
            sock,
            guest_port,
            socket_type,
            greeting=greeting,
            host_cid=cid,
            host_port=host_port,
            on_result=on_result,
            lanes=lanes,
        )
        self._post(partial(self._dialer.connect_guest, request))

    def _post(self, job: Callable[[], None]) -> None:
        """Have ``job`` called by the next turn. A closed engine has no more turns, and calls it at once."""
        self._inbox.append(job)
        self._wake()
        if self._closed:
            with suppress(IndexError):
                self._inbox.popleft()()

    def _wake(self) -> None:
        # Not under the engine's lock, because two siblings that wake each other must not wait for each other.
        with self._wake_lock:
            if not self._closed:
                with suppress(BlockingIOError):
                    os.eventfd_write(self._wake_fd, 1)

    # The turn

    def turn(self) -> float | None:
        """Do what there is to do, and never block.

        Returns:
            Seconds after which to call again even if `fileno` is not readable: 0 when there is more to do
            now, `None` when there is no need.
        """
        # More rounds while there is more to do, because coming back through an event loop costs as much as a
        # round.
        wait: float | None = 0.0
        for _ in range(ROUNDS_PER_TURN):
            # Within the lock, because what another thread's `assist` does must not come between the events
            # and their meaning.
            with self._lock:
                busy, calls = self._look(Pace.TURN)
                wait = self._seconds_to_wait(busy=busy)
                self._promised = self._connections.timers.next_deadline()
            for call in calls:
                call()
            if wait != 0.0:
                break
        return wait

    def assist(self, *, halted: bool) -> bool:
        """Take some rounds in place of the thread that calls `turn`, because that one would have to wake up.

        For the thread in which the guest runs, and not with `run`. The guest is asked for no more kicks until
        it halts: look again then, and call `turn` if it does not halt for a while. The interrupt of the
        transmit ring may be held back: while `holds` says so, call `release` within a millisecond or so. If
        there is more to do at once, or the other thread is at it, `fileno` becomes readable.

        Args:
            halted: Whether the guest waits for an interrupt. Otherwise it has just kicked.

        Returns:
            Whether `turn` has to be called, because something is due earlier than it has said.
        """
        if not self._lock.acquire(halted):  # as a position, because a keyword is put into a dictionary
            self._wake()
            return False
        try:
            busy, calls = self._look(Pace.HALTED if halted else Pace.KICKED)
            if halted:
                # One interrupt for all that is there, because each costs the guest as much as some packets.
                for _ in range(ROUNDS_PER_ASSIST - 1):
                    if not busy:
                        break
                    busy, more = self._look(Pace.HALTED)
                    fresh = [call for call in more if call not in calls]
                    self._counters.interrupts -= len(more) - len(fresh)
                    calls += fresh
            timers = self._connections.timers
            earlier = timers.soonest < self._promised and timers.next_deadline() < self._promised
            if earlier:
                self._promised = timers.soonest
        finally:
            self._lock.release()
        for call in calls:
            call()
        if busy:
            self._wake()
        return earlier

    def rest(self) -> bool:
        """The guest halts: ask for the kicks that matter; true if `assist` has something to do at once."""
        with self._lock:
            return self._rings is not None and not self.failure and self._rings.arm(Pace.HALTED)

    @property
    def holds(self) -> bool:
        """Whether an interrupt is held back by `assist`."""
        return self._coalescing.holds

    def release(self) -> None:
        """Raise the interrupt that `assist` holds back. From any thread."""
        with self._lock:
            call = self._coalescing.take()
            self._counters.interrupts += call is not None
        if call is not None:
            call()

    def run(self) -> None:
        """Take turns until `stop`, and sleep in between: for a thread of its own.

        It costs fewer system calls than waiting for `fileno` and calling `turn`. Do not use it in the main
        thread, where Python runs the handlers of signals: `run` seldom gives it the opportunity.
        """
        with self._wake_lock:
            self._running = True
        try:
            wait: float | None = 0.0
            while not (self._stopping or self._closed):
                wait = self._round(wait)
        finally:
            self._coalescing.spin_pays = False  # nobody knows when the next round comes
            self._before_sleep()
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
        # Waiting needs no lock, so other threads can attach and detach meanwhile. The count tells whether
        # they did.
        detached = self._detached
        try:
            events = self._coalescing.wait(wait)
        except (OSError, ValueError):  # epoll was closed by `close` in another thread
            if not self._closed:
                raise
            return None
        with self._lock:
            if self._closed:
                return None
            if detached != self._detached:
                events = self._connections.still_meant(events)
            busy, calls = self._serve(events, Pace.TURN)
            wait = self._seconds_to_wait(busy=busy)
        for call in calls:
            call()
        return wait

    def _seconds_to_wait(self, *, busy: bool) -> float | None:
        """How long the next round may wait. A closed engine has none, whatever was to be due."""
        if self._closed:
            return None
        return 0.0 if busy else self._connections.timers.seconds_left()

    def _look(self, pace: int) -> tuple[bool, list[Callable[[], None]]]:
        """One look at everything without waiting, under the lock; returns as `_serve`.

        At a kick only at what the guest has sent. What host programs have to say can wait for a moment: there
        is no other kick before the guest halts, or another thread takes a turn.
        """
        if self._closed:
            return False, []
        events = [] if pace == Pace.KICKED else self._epoll.poll(0.0, EVENTS_MAX)
        return self._serve(events, pace)

    def _serve(self, events: list[tuple[int, int]], pace: int) -> tuple[bool, list[Callable[[], None]]]:
        """Do what there is to do, under the lock.

        Returns:
            Whether another look may find more, and the interrupts to be raised when the lock is released.
        """
        calls: list[Callable[[], None]] = []
        try:
            busy = self._serve_all(events, pace)
        except QueueError as error:
            self._fail(str(error))
            busy = False
        if self._rings is not None:
            calls = self._rings.take_calls()
            self._counters.interrupts += len(calls)
        return busy, calls

    def _before_sleep(self) -> None:
        """Raise the interrupt that is held back, and look at what could wait until now."""
        with self._lock:
            if self._connections.table.doubtful and self._connections.delivery.look_at_doubtful():
                self._wake()  # the guest has to hear of something, so the sleep ends at once
            call = self._coalescing.take()
            self._counters.interrupts += call is not None
        if call is not None:
            call()

    def _serve_all(self, events: list[tuple[int, int]], pace: int) -> bool:
        """Do what these events and the rings ask for; true if another look may find more.

        Raises:
            QueueError: A ring is broken.
        """
        # Sockets first, because what they tell decides who gets a turn. Then the jobs of other threads, which
        # begin connections, and the deadlines, which end them. The rings come last and see the result of all
        # that.
        busy = self._connections.on_events(events)
        for _ in range(LOOKS_AT_THE_DOOR):
            if not busy:
                break
            # Who else is at the door? The guest hears of all of them by one interrupt.
            busy = self._connections.on_events(self._epoll.poll(0.0, EVENTS_MAX))
        for _ in range(len(self._inbox)):
            self._inbox.popleft()()
        self._connections.timers.run_due()
        busy |= bool(self._inbox)
        rings = self._rings
        if rings is None or self.failure:
            return busy
        busy |= rings.serve(pace)
        if self._event_due:
            sent, again = rings.send_transport_reset()
            self._event_due = not sent
            busy |= again
        return rings.settle(busy=busy, pace=pace)

    def _fail(self, reason: str) -> None:
        """Stop serving the rings, because the guest has broken one."""
        self.failure = reason
        self._dialer.guest_present = False
        self._connections.forget_all()
