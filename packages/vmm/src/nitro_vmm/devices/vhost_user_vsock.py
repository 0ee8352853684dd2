"""virtio-vsock whose data path is another process: a vhost-user daemon, ours or any other.

The daemon maps the guest's memory, gets kicks through eventfds and interrupts through another one. This
device only sets it up. It is used like the device in the process: wait until `fileno` is readable, or for as
long as `turn` said, and then call `turn`.

A daemon may die and come back, and the guest goes on. It is told that its connections are gone by an event
(TRANSPORT_RESET, virtio 1.3 §5.10.6.7), so the event queue is served by this device, not by the daemon. The
other rings go on where the used index says that the old daemon had come to.
"""

import logging
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.devices.vsock import (
    CONFIG,
    DEVICE_ID,
    EVENTS,
    QUEUE_SIZES,
    RECEIVE,
    TRANSMIT,
    split_queue,
)
from nitro_vmm.errors import StateError
from nitro_vsock import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    VSOCK_F_NO_IMPLIED_STREAM,
    VSOCK_F_SEQPACKET,
    VSOCK_F_STREAM,
    ChainError,
    GuestMemory,
    QueueError,
    QueueLayout,
    SplitQueue,
    SplitQueueState,
    VsockError,
    send_transport_reset,
)
from nitro_vsock.vhost_user import FrontendSocket, SharedRegion, SharedRing, VhostUserError

logger = logging.getLogger(__name__)

FEATURES_PASSED_ON: Final = (
    VSOCK_F_STREAM | VSOCK_F_SEQPACKET | VSOCK_F_NO_IMPLIED_STREAM | F_INDIRECT_DESC | F_EVENT_IDX
)
RETRY_S: Final = 0.5
"""How often to look for a daemon that has gone."""


class VhostUserVsockDevice:
    """The guest's vsock device, served by the daemon that listens at a path.

    Args:
        path: The daemon's vhost-user socket.
        memory: The guest's memory.
        regions: The guest's memory once more, as files that the daemon can map.
        locked: Calls a function under the machine's bus lock.
        clock: A monotonic clock, seconds.
        answer_timeout_s: How long a daemon that hangs may hold the guest up, seconds; then it counts as gone.

    Raises:
        HostError: Nobody listens at ``path``.
        VhostUserError: What listens there cannot serve a vsock device.
    """

    device_id = DEVICE_ID
    queue_sizes = QUEUE_SIZES

    def __init__(
        self,
        path: Path,
        memory: GuestMemory,
        regions: Sequence[SharedRegion],
        *,
        locked: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        answer_timeout_s: float = 5.0,
    ) -> None:
        self._path = path
        self._memory = memory
        self._regions = regions
        self._locked = locked
        self._clock = clock
        self._answer_timeout_s = answer_timeout_s
        daemon = self._connect()
        self._daemon: FrontendSocket | None = daemon
        self.features = daemon.features & FEATURES_PASSED_ON
        self._retry_at_s: float | None = None
        self._rings: list[QueueLayout] = []
        self._agreed = 0
        self._paused_at: list[int] | None = None
        """While paused: from where each ring goes on."""
        self._events: SplitQueue | None = None
        self._event_due = False
        self._driver: Driver | None = None
        self._kicks = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in (RECEIVE, TRANSMIT)]
        self._call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._call, select.EPOLLIN)
        self._epoll.register(daemon.fileno(), select.EPOLLIN)

    def _connect(self) -> FrontendSocket:
        daemon = FrontendSocket.connect(self._path, timeout_s=self._answer_timeout_s)
        try:
            if not daemon.features & F_VERSION_1:
                raise VhostUserError(f"the back-end at {self._path} serves only legacy drivers")
            self._config = daemon.read_config(0, CONFIG.size)
        except VsockError:
            daemon.close()
            raise
        return daemon

    # What the main loop calls.

    def fileno(self) -> int:
        """Readable when `turn` has something to do."""
        return self._epoll.fileno()

    def turn(self) -> float | None:
        """Pass on interrupts, notice that the daemon has gone, look for a new one.

        Returns:
            In how many seconds to call again at the latest; `None` when only `fileno` matters.
        """
        self._locked(self._serve)
        if self._paused_at is not None:
            return None
        if self._retry_at_s is not None and self._clock() >= self._retry_at_s:
            self._try_again()
        return self._until_retry()

    def close(self) -> None:
        """Leave the daemon and close every descriptor."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None
        self._epoll.close()
        for descriptor in (*self._kicks, self._call):
            os.close(descriptor)

    def _serve(self) -> None:
        if self._paused_at is not None:
            return
        # Under the bus lock no exchange with the daemon is under way: what is readable now came unasked.
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == self._call:
                os.eventfd_read(self._call)
                if self._driver is not None:
                    self._driver.raise_interrupt()
            else:
                self._lose("it closed the connection")

    def _until_retry(self) -> float | None:
        return None if self._retry_at_s is None else max(self._retry_at_s - self._clock(), 0.0)

    def _try_again(self) -> None:
        self._retry_at_s = self._clock() + RETRY_S
        before = self._config
        try:
            daemon = self._connect()
        except VsockError as error:
            logger.debug("vsock: %s", error)
            return
        if self.features & ~daemon.features:
            logger.warning("vsock: the back-end at %s lacks features that the old one had", self._path)
            daemon.close()
            return

        def go_on() -> None:
            self._daemon, self._retry_at_s = daemon, None
            self._epoll.register(daemon.fileno(), select.EPOLLIN)
            logger.warning("vsock: the back-end at %s is back", self._path)
            if self._config != before:
                self._tell_transport_reset()
            self._start(self._used_indices())

        self._locked(go_on)

    # What the transport calls.

    def read_config(self, offset: int, length: int) -> bytes:
        """The guest's CID."""
        return self._config[offset : offset + length]

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:
        """Hand the rings to the daemon.

        Raises:
            QueueError: The receive or transmit queue was not set up, or a queue cannot be used.
        """
        self._set_up(features, queues, driver)
        self._start([0, 0])

    def _set_up(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:
        for index in (RECEIVE, TRANSMIT):
            # The daemon makes its own of them. This one is only to find out whether it can.
            split_queue(self._memory, queues, index, features)
        self._events = split_queue(self._memory, queues, EVENTS, features) if queues[EVENTS] else None
        self._rings = [layout for layout in queues[:EVENTS] if layout is not None]
        self._agreed = features
        self._driver = driver

    def kick_descriptor(self, index: int) -> int | None:
        """The daemon's; the event queue is served here."""
        return self._kicks[index] if index in (RECEIVE, TRANSMIT) else None

    def notify(self, index: int) -> None:
        """Pass on a kick."""
        if index in (RECEIVE, TRANSMIT):
            os.eventfd_write(self._kicks[index], 1)
        elif self._event_due:
            self._tell_transport_reset()

    def reset(self) -> None:
        """Take the rings back."""
        running, self._rings, self._events, self._event_due = bool(self._rings), [], None, False
        if running and self._daemon is not None:
            try:
                self._daemon.stop()
                self._daemon.reset()
            except VhostUserError as error:
                self._lose(str(error))

    def pause(self) -> None:
        """Let the daemon stop the rings; whether it keeps the connections meanwhile is its own business."""
        positions = self._used_indices()
        if self._rings and self._daemon is not None:
            try:
                positions = self._daemon.stop()
            except VhostUserError as error:
                self._lose(str(error))
        # An interrupt that the daemon has asked for belongs to the state that is saved now.
        self._serve()
        self._paused_at = positions
        # What happens meanwhile is found after `resume`, so it must not keep the main loop awake.
        self._epoll.unregister(self._call)
        if self._daemon is not None:
            self._epoll.unregister(self._daemon.fileno())

    def resume(self) -> None:
        """Let the daemon go on with the rings."""
        positions, self._paused_at = self._paused_at, None
        self._epoll.register(self._call, select.EPOLLIN)
        if self._daemon is not None:
            self._epoll.register(self._daemon.fileno(), select.EPOLLIN)
        os.eventfd_write(self._call, 1)  # so that the main loop asks when to look again
        if positions is not None:
            self._start(positions)

    def state(self) -> RunningState:
        """How far the daemon and this device have served the queues."""
        used = self._used_indices()
        served = map(SplitQueueState, self._paused_at or used, used, used)
        return RunningState((*served, None if self._events is None else self._events.state()))

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None:
        """Let the daemon serve the rings from where they were; the guest hears that its connections are gone.

        Raises:
            QueueError: A queue cannot be used.
            StateError: The state lacks the receive or transmit queue.
        """
        receive, transmit, events = state.queues
        if receive is None or transmit is None:
            raise StateError("a vsock device without receive and transmit queue does not run")
        self._set_up(features, queues, driver)
        if self._events is not None and events is not None:
            self._events.restore(events)
        self._tell_transport_reset()
        self._start([receive.next_available, transmit.next_available])

    def _start(self, positions: Sequence[int]) -> None:
        if self._daemon is None or not self._rings:
            return
        rings = [
            SharedRing(layout, kick, self._call, position)
            for layout, kick, position in zip(self._rings, self._kicks, positions, strict=True)
        ]
        try:
            self._daemon.start(self._agreed, self._regions, rings)
        except VhostUserError as error:
            self._lose(str(error))
            return
        # A kick may have come before the daemon could see it.
        for kick in self._kicks:
            os.eventfd_write(kick, 1)

    def _used_indices(self) -> list[int]:
        used_rings = [layout.used_ring for layout in self._rings]
        return [int.from_bytes(self._memory.slice(address + 2, 2), "little") for address in used_rings]

    # What happens when the daemon goes.

    def _lose(self, why: str) -> None:
        logger.warning("vsock: the back-end at %s is gone (%s); waiting for it to come back", self._path, why)
        if self._daemon is not None:
            self._epoll.unregister(self._daemon.fileno())
            self._daemon.close()
            self._daemon = None
        self._retry_at_s = self._clock() + RETRY_S
        os.eventfd_write(self._call, 1)  # so that the main loop asks when to look again
        self._tell_transport_reset()

    def _tell_transport_reset(self) -> None:
        """Say that all connections are gone; when the driver has left no room for it, as soon as it has."""
        self._event_due = False
        while self._events is not None:
            try:
                sent = send_transport_reset(self._events)
            except ChainError as error:
                logger.warning("vsock: an event buffer was dropped: %s", error)
                continue
            except QueueError as error:
                # The main loop may be the caller, which must not suffer from what a guest does to its queue.
                if self._driver is not None:
                    self._driver.need_reset(str(error))
                return
            if not sent:
                self._event_due = True
                return
            if self._events.publish() and self._driver is not None:
                self._driver.raise_interrupt()
            return
