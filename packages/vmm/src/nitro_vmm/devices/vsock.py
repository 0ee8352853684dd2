"""virtio-vsock (virtio 1.3 §5.10), served within the process by `nitro_vsock`.

Two threads meet here. The processor's thread sets the rings up and kicks, under the machine's bus lock. The
main loop waits until `VsockDevice.fileno` is readable, or for as long as `VsockDevice.turn` said, and then
calls `turn`. The engine has a lock of its own, which it releases before it interrupts the guest. So a thread
that needs both locks takes the bus lock first, and no two threads can wait for each other.

A thread that wakes another one costs more than what most packets need done. So the processor's thread does
it where it can: at a kick, and while the processor waits in HLT (see `Attended`). The main loop sleeps then,
behind a gate. After a kick the guest is asked for no more of them until it halts, because then the
processor's thread looks at the rings anyway. If it runs for `UNATTENDED_NS` instead, a timer opens the gate:
the main loop serves the device beside the guest until the next kick or halt.
"""

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from nitro_vmm.devices.timer_fd import TimerFd
from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.errors import StateError
from nitro_vsock import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    GuestMemory,
    QueueLayout,
    SplitQueue,
    Vring,
    VsockEngine,
    VsockState,
)

DEVICE_ID: Final = 19

RECEIVE: Final = 0
TRANSMIT: Final = 1
EVENTS: Final = 2
ENGINE_NAMES: Final = ("receive", "transmit", "event")
QUEUE_NAMES: Final = ("vsock receive queue", "vsock transmit queue", "vsock event queue")
QUEUE_SIZES: Final = (128, 128, 16)
"""Linux fills its receive queue with pages when it starts, so a longer one would slow every boot. 128 pages
hold as much as Linux lets a peer send before it has read any. It puts eight buffers into the event queue."""

UNATTENDED_NS: Final = 1_000_000
"""How long the main loop leaves the engine to the processor's thread while the guest runs. After most packets
a guest waits for an answer long before, and then the processor's thread looks."""

SLACK_NS: Final = 1_500_000
"""How much longer it may be, so that the timer need not be set each time that the guest goes on."""

# virtio_vsock_config (virtio 1.3 §5.10.4): guest_cid
CONFIG: Final = struct.Struct("<Q")


def split_queue(
    memory: GuestMemory, layouts: Sequence[QueueLayout | None], index: int, features: int
) -> SplitQueue:
    """One of a vsock device's queues.

    Raises:
        QueueError: The driver did not set it up, or it cannot be used.
    """
    return SplitQueue.negotiated(memory, layouts[index], features, name=QUEUE_NAMES[index])


class VsockDevice:
    """The guest's vsock device.

    Args:
        engine: What serves it; closed with it.
        memory: The guest's memory.
        locked: Calls a function under the machine's bus lock.
        fresh: Whether a guest that goes on from a saved machine has no connections and the right address, so
            that it need not be told of a reset. A reset would end what it opens meanwhile.
        clock_ns: A monotonic clock, nanoseconds.
    """

    device_id = DEVICE_ID
    queue_sizes = QUEUE_SIZES

    def __init__(
        self,
        engine: VsockEngine,
        memory: GuestMemory,
        *,
        locked: Callable[[Callable[[], None]], None],
        fresh: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.features = engine.features | F_INDIRECT_DESC | F_EVENT_IDX
        self._fresh = fresh
        self._engine = engine
        self._memory = memory
        self._locked = locked
        self._clock_ns = clock_ns
        self._driver: Driver | None = None
        self._rings: dict[str, Vring] = {}
        self._kicks = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in QUEUE_NAMES]
        self._attended = False
        """A processor's thread serves the device where it can."""
        self._halted = False
        """It waits for the engine."""
        self._halted_ns = 0
        """When it began to wait."""
        self._often = False
        """Its last wait was short, so the timer runs on through the next one: see `_keep_gate_closed`."""
        self._timer = TimerFd()
        self._fires_ns = 0
        """When the timer fires, or has fired, by our clock; 0: it was stopped."""
        self._nudge = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gate = select.epoll()
        """What the main loop waits for: timer and nudge, and the engine while the gate is open."""
        self._open = True
        self._gate_lock = threading.Lock()
        """Held for a moment, so that what `_open` says and what the gate does cannot differ."""
        self._gate.register(engine.fileno(), select.EPOLLIN)
        for edge in (self._nudge, self._timer.fileno()):
            self._gate.register(edge, select.EPOLLIN | select.EPOLLET)

    # What the main loop calls.

    def fileno(self) -> int:
        """Readable when `turn` has something to do."""
        return self._gate.fileno()

    def turn(self) -> float | None:
        """Move what there is to move, in both directions; never waits.

        Returns:
            In how many seconds to call again at the latest; `None` when only `fileno` matters.
        """
        self._gate.poll(0)  # takes the edges of nudge and timer
        with self._gate_lock:
            self._set_gate(is_open=not self._halted)
        delay_s = self._engine.turn()
        if self._engine.failure is not None:
            self._locked(self._fail)
        return delay_s

    def close(self) -> None:
        """Close the engine and every descriptor."""
        self._engine.close()
        self._gate.close()
        self._timer.close()
        for eventfd in (*self._kicks, self._nudge):
            os.close(eventfd)

    # What the processor's thread calls, see `Attended`.

    def work_fileno(self) -> int:
        """Readable when `assist` has something to do."""
        return self._engine.fileno()

    def claim(self, *, mine: bool) -> None:
        """Wait for `work_fileno` in the main loop's place, or no longer."""
        self._attended = True
        with self._gate_lock:
            self._halted = mine
            if mine:
                self._set_gate(is_open=False)
        now_ns = self._clock_ns()
        if mine:
            self._halted_ns = now_ns
            if self._fires_ns and not self._often:
                self._timer.set(0)
                self._fires_ns = 0
            if self._engine.rest():
                self.assist()
        else:
            self._often = now_ns - self._halted_ns < UNATTENDED_NS
            self._keep_gate_closed(now_ns)

    def _keep_gate_closed(self, now_ns: int) -> None:
        """The guest runs from now on: have the timer open the gate if it does so for `UNATTENDED_NS`.

        Setting the timer costs as much as a small packet. So where the guest halts often, the timer is not
        stopped meanwhile, and set anew only when it would fire too early. If it fires while the guest is
        halted, the gate stays closed.
        """
        if self._fires_ns - now_ns < UNATTENDED_NS:
            self._timer.set(UNATTENDED_NS + SLACK_NS)
            self._fires_ns = now_ns + UNATTENDED_NS + SLACK_NS

    def assist(self) -> None:
        """Take a turn of the main loop's."""
        self._assist(halted=True)

    def _assist(self, *, halted: bool) -> None:
        if self._engine.assist(halted=halted):
            os.eventfd_write(self._nudge, 1)
        if self._engine.failure is not None:
            self._locked(self._fail)

    def _set_gate(self, *, is_open: bool) -> None:
        if self._open != is_open:
            self._open = is_open
            self._gate.modify(self._engine.fileno(), select.EPOLLIN if is_open else 0)

    @property
    def holds(self) -> bool:
        """Whether an interrupt is held back."""
        return self._engine.holds

    def release(self) -> None:
        """Raise the interrupt that is held back."""
        self._engine.release()

    def _call(self) -> None:
        self._locked(self._interrupt)

    def _interrupt(self) -> None:
        if self._driver is not None:
            self._driver.raise_interrupt()

    def _fail(self) -> None:
        reason = self._engine.failure
        if reason is not None and self._driver is not None:
            self._driver.need_reset(reason)

    # What the transport calls.

    def read_config(self, offset: int, length: int) -> bytes:
        """The guest's CID."""
        return self._engine.config_space[offset : offset + length]

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:
        """Give the rings to the engine.

        Raises:
            QueueError: The receive or transmit queue was not set up, or a queue cannot be used.
        """
        self._rings = self._make_rings(queues, features)
        self._driver = driver
        self._engine.attach(**self._rings)

    def _make_rings(self, queues: Sequence[QueueLayout | None], features: int) -> dict[str, Vring]:
        """The queues that the driver uses, as the engine names them. A driver may do without the events."""
        return {
            name: Vring(split_queue(self._memory, queues, index, features), self._kicks[index], self._call)
            for index, name in enumerate(ENGINE_NAMES)
            if index != EVENTS or queues[EVENTS] is not None
        }

    def kick_descriptor(self, index: int) -> int:
        """The engine's."""
        return self._kicks[index]

    def notify(self, index: int) -> None:
        """Serve the rings at once, or have the main loop do it."""
        if not self._attended:
            os.eventfd_write(self._kicks[index], 1)
            return
        if self._open:
            with self._gate_lock:
                self._set_gate(is_open=False)
            self._keep_gate_closed(self._clock_ns())
        self._assist(halted=False)

    def reset(self) -> None:
        """Take the rings from the engine; what the guest had sent before is still delivered."""
        self._engine.detach()
        self._rings = {}
        self._driver = None

    def pause(self) -> None:
        """Take the rings from the engine, which keeps the connections and lets their programs wait."""
        if self._rings:
            self._engine.detach(keep_connections=True)

    def resume(self) -> None:
        """Give the rings to the engine again."""
        if self._rings:
            self._engine.attach(**self._rings)

    def state(self) -> RunningState:
        """How far the queues were served. The connections end with this machine, and are no part of it."""
        rings = [self._rings.get(name) for name in ENGINE_NAMES]
        return RunningState(tuple(None if ring is None else ring.queue.state() for ring in rings))

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None:
        """Serve the queues from where they were; the guest is told that its connections are gone, if need be.

        Raises:
            QueueError: A queue cannot be used.
            StateError: The state lacks the receive or transmit queue.
        """
        receive, transmit, event = state.queues
        if receive is None or transmit is None:
            raise StateError("a vsock device without receive and transmit queue does not run")
        self._rings = self._make_rings(queues, features)
        self._driver = driver
        if not self._fresh:
            self._engine.restore(VsockState(receive, transmit, event), **self._rings)
            return
        for ring, saved in zip(self._rings.values(), state.queues, strict=False):
            if saved is not None:
                ring.queue.restore(saved)
        self._engine.attach(**self._rings)
